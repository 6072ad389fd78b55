// SPDX-License-Identifier: GPL-2.0
/* launch: ns from before the start of a command until it has ended. Arguments: the command. */
#include <spawn.h>
#include <sys/wait.h>

#include "batch.h"

extern char **environ;

int main(int argc, char **argv)
{
	if (argc < 2) {
		fputs("launch COMMAND...\n", stderr);
		return 2;
	}
	while (asked()) {
		double begin = now_ns();
		int status;
		pid_t pid;

		if (posix_spawnp(&pid, argv[1], NULL, NULL, argv + 1, environ))
			die(argv[1]);
		if (waitpid(pid, &status, 0) != pid || status) {
			fprintf(stderr, "%s: status %d\n", argv[1], status);
			return 1;
		}
		answer(now_ns() - begin);
	}
	return 0;
}
