// SPDX-License-Identifier: GPL-2.0
/*
 * ledger FILE STOP STATUS [PAUSE]: counts up, writing every number to FILE (appended) and to standard
 * output, every PAUSE us (500) until STOP exists; then says how far it came and exits with STATUS plus the number of
 * SIGUSR1 that it was sent.  A number missing, doubled or out of order in either shows a call that was lost or made
 * twice.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void put(int fd, const char *line, int size)
{
	while (size) {
		ssize_t n = write(fd, line, size);

		if (n <= 0)
			_exit(98);
		line += n;
		size -= n;
	}
}

static volatile sig_atomic_t signals;

static void count(int number)
{
	(void)number;
	signals++;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART };
	volatile unsigned int work = 0;
	unsigned int number = 0, pause;
	char line[32];
	int fd;

	if (argc != 4 && argc != 5)
		return 99;
	sigaction(SIGUSR1, &action, NULL);
	pause = argc > 4 ? atoi(argv[4]) : 500;
	fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0)
		return 97;
	while (access(argv[2], F_OK)) {
		int size = snprintf(line, sizeof(line), "%u\n", ++number);

		put(fd, line, size);
		put(1, line, size);
		for (int i = 0; i < 10000; i++)
			work += i;
		usleep(pause);
	}
	put(1, "end\n", 4);
	return atoi(argv[3]) + signals;
}
