// SPDX-License-Identifier: GPL-2.0
/*
 * Goes to the limits that it was given and says what it found there; the answers must be those
 * of a plain run.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_all(void)
{
	int count = 0, fd;

	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		count++;
	printf("opened %d, then %s\n", count, strerror(errno));
	return count;
}

/* Every number is the program's own: opened, duplicated onto, closed one by one and in ranges. */
static void descriptors(void)
{
	struct rlimit limit;
	int last, fd, failed = 0;

	getrlimit(RLIMIT_NOFILE, &limit);
	last = limit.rlim_cur - 1;
	open_all();
	for (fd = 3; fd <= last; fd++)
		failed += close(fd) < 0;
	printf("%d closes failed\n", failed);
	for (fd = last, failed = 0; fd >= 3; fd--)
		failed += dup2(0, fd) != fd;
	printf("%d duplications failed\n", failed);
	open_all();
	printf("close_range: %d\n", close_range(3, ~0U, 0));
	for (fd = 3, failed = 0; fd <= last; fd++)
		failed += close(fd) == 0 || errno != EBADF;
	printf("%d were still open\n", failed);
	printf("F_DUPFD: %d\n", fcntl(0, F_DUPFD, last) - last);
	open_all();
	printf("close_range: %d\n", close_range(3, ~0U, 0));
	printf("highest: %d\n", fcntl(0, F_DUPFD, last - 1) - last);
	open_all();
}

/* As much memory as it can have, a mebibyte at a time, all of it used. */
static void memory(void)
{
	long count = 0;
	char *block;

	while ((block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) !=
		       MAP_FAILED &&
	       count < 4096) {
		memset(block, count, 1 << 20);
		count++;
	}
	printf("mapped %ld, then %s\n", count, strerror(errno));
}

/* A stack as deep as it may be, less a little. */
static int deep(long left)
{
	volatile char frame[4096];

	memset((char *)frame, left, sizeof(frame));
	return left > 0 ? deep(left - 1) + frame[7] : frame[5];
}

static void stack(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_STACK, &limit);
	printf("%d\n", deep(limit.rlim_cur / 4096 * 9 / 10 - 20));
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "descriptors"))
			descriptors();
		else if (!strcmp(argv[i], "memory"))
			memory();
		else if (!strcmp(argv[i], "stack"))
			stack();
		else if (!strcmp(argv[i], "wait"))
			for (char c = 0; c != '\n' && read(0, &c, 1) == 1;)
				;
	}
	puts("end");
	return 0;
}
