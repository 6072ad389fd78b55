// SPDX-License-Identifier: GPL-2.0
/*
 * Takes memory: a line N makes it hold N MiB more, touched page by page, and answers with a
 * checksum of all it holds; a line rN the same by read(2) from /dev/zero, into memory nobody has
 * touched.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define MOST 256

int main(void)
{
	static struct {
		uint64_t *at;
		size_t words;
	} held[MOST];
	int zero = open("/dev/zero", O_RDONLY);
	char line[32];
	int n = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (n < MOST && fgets(line, sizeof(line), stdin)) {
		int by_read = line[0] == 'r';
		size_t size = atol(line + by_read) * MIB;
		uint64_t sum = 0;
		char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED) {
			puts("no memory");
			continue;
		}
		held[n].at = (uint64_t *)at;
		held[n].words = size / sizeof(uint64_t);
		if (by_read) {
			for (size_t done = 0; done < size;) {
				ssize_t got = read(zero, at + done, MIB);

				if (got <= 0) {
					perror("read");
					return 1;
				}
				done += got;
			}
		} else {
			for (size_t i = 0; i < held[n].words; i += 512)
				held[n].at[i] = (i + n) * 0x9e3779b97f4a7c15ull | 1;
		}
		n++;
		for (int k = 0; k < n; k++)
			for (size_t i = 0; i < held[k].words; i += 512)
				sum = sum * 31 + held[k].at[i];
		printf("%llx\n", (unsigned long long)sum);
	}
	return 0;
}
