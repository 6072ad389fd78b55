// SPDX-License-Identifier: GPL-2.0
/* cpu_guest, cpu_home: user ns of a loop that only computes. Argument: millions of steps. */
#include "batch.h"

int main(int argc, char **argv)
{
	long steps = argc == 2 ? atol(argv[1]) * 1000000 : 0;
	uint64_t x = 88172645463325252ULL;

	if (!steps)
		die("spin MILLIONS");
	while (asked()) {
		double begin = user_ns();

		for (long i = 0; i < steps; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		answer(user_ns() - begin + (x == 0));
	}
	return 0;
}
