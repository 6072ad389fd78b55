// SPDX-License-Identifier: GPL-2.0
/* Reads FILE in runs of reads of one size, with every kind of other call between and behind them,
 * and says what came: nothing of it may depend on what was read ahead. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static _Alignas(8) char data[600000];

static void say(const char *what, long result)
{
	uint64_t sum = 0xcbf29ce484222325ULL;
	long i;

	for (i = 0; i < (long)sizeof(data) / 8; i++) /* what lies behind the result as well */
		sum = (sum ^ ((uint64_t *)data)[i]) * 0x100000001b3ULL;
	printf("%s %ld %016lx\n", what, result, (unsigned long)sum);
	memset(data, 0x5a, sizeof(data));
}

static void run(int fd, size_t size, int count)
{
	while (count--)
		say("read", read(fd, data, size));
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = { 32 << 10, 40000, 64 << 10, 128 << 10, 256 << 10 };
	static char change[] = "changed";
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	int writer = argc == 2 ? open(argv[1], O_RDWR) : -1;
	int other, links[2];
	unsigned int i;
	struct stat st;

	if (fd < 0 || writer < 0 || pipe(links))
		return 2;
	other = dup(fd); /* with the same position */
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t size = sizes[i];
		off_t at;

		lseek(fd, 0, SEEK_SET);
		run(fd, size, 5);
		at = lseek(fd, 0, SEEK_CUR);
		printf("at %ld\n", (long)at);
		run(fd, size, 4);
		say("larger", read(fd, data, 2 * size + 1));
		run(fd, size, 4);
		say("much larger", read(fd, data, sizeof(data)));
		run(fd, size, 4);
		say("smaller", read(fd, data, size - 1));
		run(fd, size, 4);
		say("tiny", read(fd, data, 1));
		run(other, size, 4);
		say("by the other", read(fd, data, size));
		run(fd, size, 4);
		say("elsewhere", pread(fd, data, size, 12345));
		run(fd, size, 4);
		say("vector", readv(fd, (struct iovec[]){ { data, 1000 }, { data + 2000, size - 1000 } }, 2));
		lseek(fd, 77, SEEK_SET);
		run(fd, size, 4);
		at = lseek(fd, 0, SEEK_CUR);
		say("change", pwrite(writer, change, sizeof(change), at + 100));
		run(fd, size, 4);
		say("status", fstat(fd, &st));
		printf("size %ld\n", (long)st.st_size);
		run(fd, size, 4);
		say("write", write(links[1], change, sizeof(change)));
		say("pipe", read(links[0], data, size));
		lseek(fd, 0, SEEK_SET);
		for (at = 0; at < 8; at++) {
			run(fd, size, 1);
			say("between", pwrite(writer, change, sizeof(change), (at + 2 + at % 2) * size));
		}
		lseek(fd, -(off_t)(3 * size + 500), SEEK_END);
		run(fd, size, 6);
	}
	lseek(fd, 0, SEEK_SET);
	run(fd, 64 << 10, 4);
	say("cut", ftruncate(writer, (64 << 10) * 4 + 1000));
	run(fd, 64 << 10, 3);
	return 0;
}
