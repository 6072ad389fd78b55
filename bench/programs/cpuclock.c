// SPDX-License-Identifier: GPL-2.0
/* cpu_clock_home: mean ns of reading the process's CPU clock.  cpuclock ROUNDS */
#include "batch.h"

int main(int argc, char **argv)
{
	long rounds = argc == 2 ? atol(argv[1]) : 0;
	struct timespec t;

	if (rounds <= 0)
		die("cpuclock ROUNDS");
	while (asked()) {
		double begin = now_ns();

		for (long i = 0; i < rounds; i++)
			clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
		answer((now_ns() - begin) / rounds);
	}
	return 0;
}
