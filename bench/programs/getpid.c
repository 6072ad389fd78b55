// SPDX-License-Identifier: GPL-2.0
/* account_cost: mean CPU ns of a getpid in a loop. Argument: milliseconds of CPU time a batch. */
#include <sys/syscall.h>

#include "batch.h"

static double cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	double length = argc == 2 ? atol(argv[1]) * 1e6 : 0;

	if (length <= 0)
		die("getpid MILLISECONDS");
	while (asked()) {
		double begin = cpu_ns(), spent;
		long calls = 0;

		do {
			for (int i = 0; i < 10000; i++)
				syscall(SYS_getpid);
			calls += 10000;
			spent = cpu_ns() - begin;
		} while (spent < length);
		answer(spent / calls);
	}
	return 0;
}
