// SPDX-License-Identifier: GPL-2.0
/*
 * The work of mx_spin: a chain in which every instruction waits for the one before, so that what
 * counts is latency and clock, as in code that computers are bought for, and not how many
 * independent instructions a core can find.
 */
#include "spin.h"

#include <time.h>

#define TABLE 512 /* words: fits into the smallest first-level cache (8 KiB) with room to spare */

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

uint64_t mx_spin(uint64_t rounds)
{
	uint64_t table[TABLE], x = 1, begin;
	unsigned int i;

	for (i = 0; i < TABLE; i++)
		table[i] = i * 0x9e3779b97f4a7c15ull;
	begin = cpu_ns();
	while (rounds--) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		x ^= x >> 29;
		x += table[x % TABLE];
	}
	__asm__ volatile("" : : "r"(x)); /* it is wanted */
	return cpu_ns() - begin;
}
