// SPDX-License-Identifier: GPL-2.0
/*
 * Three processes open a file as fast as they can, with the flags that a job's filter notifies.
 * For each line of standard input: "ok", when each of them has opened it 200 times more; the
 * program ends by SIGALRM when they do not.  An open that fails, or finds something else, is
 * said at once, and the program ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOPERS 3
#define MORE 200
#define PATIENCE_S 20

static void look(const char *path)
{
	int fd = syscall(SYS_open, path, 0L, 0L);
	char byte;

	if (fd < 0 || read(fd, &byte, 1) != 1) {
		printf("%s\n", strerrorname_np(errno));
		fflush(stdout);
		kill(0, SIGTERM);
		_exit(1);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	volatile long *counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char line[16];
	int i;

	if (argc != 2 || setpgid(0, 0))
		return 2;
	for (i = 0; i < LOOPERS; i++)
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				look(argv[1]);
				counts[i]++;
			}
		}
	while (fgets(line, sizeof(line), stdin)) {
		long until[LOOPERS];

		alarm(PATIENCE_S);
		for (i = 0; i < LOOPERS; i++)
			until[i] = counts[i] + MORE;
		for (i = 0; i < LOOPERS; i++)
			while (counts[i] < until[i])
				usleep(1000);
		alarm(0);
		puts("ok");
		fflush(stdout);
	}
	return 0;
}
