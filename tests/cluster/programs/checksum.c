// SPDX-License-Identifier: GPL-2.0
/*
 * Computes over memory, integers, doubles, long doubles and vectors, round after round, and
 * prints what it has. "until FILE": until FILE exists; "rounds N": N rounds. Both print the
 * same for the same number of rounds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS (1 << 18)

typedef double vector __attribute__((vector_size(32)));

static uint64_t memory[WORDS];

int main(int argc, char **argv)
{
	vector four = { 1.0, 1.5, 2.0, 2.5 };
	long double wide = 1.0L;
	double narrow = 0.5;
	uint64_t state = 88172645463325252ULL;
	long rounds;

	if (argc != 3)
		return 2;
	for (rounds = 0;; rounds++) {
		if (!strcmp(argv[1], "until") ? !access(argv[2], F_OK) : rounds == atol(argv[2]))
			break;
		for (int i = 0; i < 4 * WORDS; i++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			memory[state % WORDS] += state;
			narrow = narrow * 1.0000001 + 1e-7 * (state & 15);
			wide = wide * 0.9999999L + (long double)(state & 7) * 1e-9L;
			four = four * 0.9999999 + (double)(state & 3);
		}
		if (rounds % 16 == 0) {
			printf("round %ld: %016lx\n", rounds, memory[state % WORDS]);
			fflush(stdout);
		}
	}
	for (int i = 0; i < WORDS; i++)
		state = state * 31 + memory[i];
	printf("rounds %ld sum %016lx %a %La %a %a %a %a\n", rounds, state, narrow, wide, four[0], four[1], four[2],
	       four[3]);
	return 0;
}
