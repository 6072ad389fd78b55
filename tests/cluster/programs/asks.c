// SPDX-License-Identifier: GPL-2.0
/*
 * Obeys lines of standard input about /proc/self/{special}, each answered by a line:
 *   r NAME | w NAME VALUE | x NAME VALUE   read, write, exchange: result, or -1 and errno's name
 *   f LINE   a child obeys LINE
 *   o PATH   opens and reads a file with the flags that are notified
 *   c NUMBER counts so far in needmem by exchanges, each of which must find what the one before left
 *   d        the date in seconds
 *   s        how many signals of SIGUSR1 came
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "mosix.h"

static volatile sig_atomic_t signals;

static void count(int number)
{
	(void)number;
	signals++;
}

static void obey(const char *line)
{
	char what, name[64], path[4096];
	long long value = 0;
	long result = 0;

	if (sscanf(line, "%c %63s %lli", &what, name, &value) < 1)
		exit(2);
	snprintf(path, sizeof(path), "/proc/self/%s", name);
	switch (what) {
	case 'r':
		result = mosix_read(path);
		break;
	case 'w':
		result = mosix_write(path, value);
		break;
	case 'x':
		result = mosix_exchange(path, value);
		break;
	case 'd':
		result = time(NULL);
		break;
	case 's':
		result = signals;
		break;
	case 'c':
		value = strtoll(line + 2, NULL, 0);
		for (result = 1; result <= value; result++)
			if (mosix_exchange("/proc/self/needmem", result) != result - 1 || mosix_read("/proc/self/lock"))
				break;
		break;
	case 'o': {
		int fd = syscall(SYS_open, line + 2, 0L, 0L);

		if (fd < 0) {
			result = -1;
			break;
		}
		result = read(fd, path, sizeof(path) - 1);
		path[result > 0 ? result : 0] = 0;
		path[strcspn(path, "\n")] = 0;
		close(fd);
		printf("%s\n", path);
		return;
	}
	case 'f': {
		pid_t child = fork();

		if (child < 0) {
			result = -1;
			break;
		}
		if (!child) {
			obey(line + 2);
			fflush(stdout);
			_exit(0);
		}
		waitpid(child, NULL, 0);
		return;
	}
	}
	if (result == -1)
		printf("-1 %s\n", strerrorname_np(errno));
	else
		printf("%ld\n", result);
}

int main(void)
{
	struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART };
	char line[4096];

	sigaction(SIGUSR1, &action, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		obey(line);
		fflush(stdout);
	}
	return 0;
}
