// SPDX-License-Identifier: GPL-2.0
/*
 * Mean ns of one open and close of a file.  opens FILE FLAGS ROUNDS, FLAGS: plain (those that a
 * job's filter notifies) or cloexec
 */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "batch.h"

int main(int argc, char **argv)
{
	int flags;
	long rounds;

	if (argc != 4) {
		fputs("opens FILE plain|cloexec ROUNDS\n", stderr);
		return 2;
	}
	flags = strcmp(argv[2], "plain") ? O_CLOEXEC : 0;
	rounds = atol(argv[3]);
	while (asked()) {
		double begin = now_ns();

		for (long i = 0; i < rounds; i++) {
			int fd = syscall(SYS_openat, AT_FDCWD, argv[1], flags, 0);

			if (fd < 0)
				die(argv[1]);
			close(fd);
		}
		answer((now_ns() - begin) / rounds);
	}
	return 0;
}
