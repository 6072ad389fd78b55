// SPDX-License-Identifier: GPL-2.0
/* freeze_*: a process with so much touched memory; answers with a checksum. Argument: MiB. */
#include "batch.h"

int main(int argc, char **argv)
{
	size_t words = argc == 2 ? (atol(argv[1]) << 20) / sizeof(uint64_t) : 0;
	uint64_t *memory = malloc(words * sizeof(uint64_t));

	if (!words || !memory)
		die("hold MIB");
	for (size_t i = 0; i < words; i++)
		memory[i] = i * 0x9e3779b97f4a7c15ULL | 1;
	puts("ready");
	fflush(stdout);
	while (asked()) {
		uint64_t sum = 0;

		for (size_t i = 0; i < words; i++)
			sum ^= memory[i];
		answer(sum >> 12);
	}
	return 0;
}
