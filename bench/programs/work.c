// SPDX-License-Identifier: GPL-2.0
/* live_spread: computes for so many millions of steps, and ends. Asks nothing of anybody. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	long steps = argc == 2 ? atol(argv[1]) * 1000000 : 0;
	uint64_t x = 88172645463325252ULL;

	if (!steps) {
		fprintf(stderr, "work MILLIONS\n");
		return 2;
	}
	for (long i = 0; i < steps; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return x == 0;
}
