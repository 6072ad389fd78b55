// SPDX-License-Identifier: GPL-2.0
/* usage: lseek_loop N: median and mean nanoseconds of N lseek calls on standard input. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	int n = atoi(argv[argc - 1]), i;
	long *took = calloc(n, sizeof(*took)), start = now(), last = start;

	for (i = 0; i < n; i++) {
		lseek(0, i, SEEK_SET);
		took[i] = now() - last;
		last += took[i];
	}
	qsort(took, n, sizeof(*took), compare);
	printf("%ld %ld\n", took[n / 2], (last - start) / n);
	return 0;
}
