// SPDX-License-Identifier: GPL-2.0
/* usage: one_call WHAT: makes one call that waits, and tells on standard error (or as its exit
 * status) how it ended. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int handled;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	handled = number * 1000 + info->si_code;
}

static void tell(const char *what, long result)
{
	fprintf(stderr, "%s %ld %d %d\n", what, result, result < 0 ? errno : 0, handled);
}

int main(int argc, char **argv)
{
	const char *what = argv[argc - 1];
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	static char data[1 << 20];
	struct timespec before, after, rem = { 0, 0 };
	long result;

	if (strchr(what, '+'))
		action.sa_flags |= SA_RESTART;
	sigaction(SIGUSR1, &action, NULL);
	clock_gettime(CLOCK_MONOTONIC, &before);
	if (!strncmp(what, "read", 4)) {
		result = read(0, data, 100);
		tell(data, result);
		memset(data, 0, 100);
		result = read(0, data, 100);
		tell(data, result);
	} else if (!strncmp(what, "write", 5)) {
		memset(data, 'w', sizeof(data));
		tell("write", write(1, data, sizeof(data)));
	} else if (!strncmp(what, "sleep", 5)) {
		result = nanosleep(&(struct timespec){ 0, 300000000 }, &rem);
		clock_gettime(CLOCK_MONOTONIC, &after);
		tell(rem.tv_nsec ? "rem" : "none", result);
		after.tv_nsec += (after.tv_sec - before.tv_sec) * 1000000000;
		tell("long enough", after.tv_nsec - before.tv_nsec >= 300000000);
	} else if (!strncmp(what, "poll", 4)) {
		result = poll(&(struct pollfd){ 0, POLLIN, 0 }, 1, 300);
		clock_gettime(CLOCK_MONOTONIC, &after);
		tell("poll", result);
		after.tv_nsec += (after.tv_sec - before.tv_sec) * 1000000000;
		tell("long enough", after.tv_nsec - before.tv_nsec >= 300000000);
	} else if (!strcmp(what, "pause")) {
		tell("pause", pause());
	} else if (!strcmp(what, "raise")) {
		tell("raise", kill(getpid(), SIGUSR1));
	} else if (!strcmp(what, "unblock")) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigprocmask(SIG_BLOCK, &set, NULL);
		kill(getpid(), SIGUSR1);
		tell("blocked", 0);
		tell("unblock", sigprocmask(SIG_UNBLOCK, &set, NULL));
	} else if (!strcmp(what, "fork")) {
		tell("fork", fork());
	} else if (!strcmp(what, "maps")) {
		tell("maps", open("//proc/./self//maps", O_RDONLY));
	} else if (!strcmp(what, "unknown")) {
		tell("unknown", syscall(470));
	} else if (!strcmp(what, "x32")) {
		tell("x32", syscall(0x40000000 + 39));
	} else if (!strcmp(what, "spin")) {
		for (;;)
			clock_gettime(CLOCK_MONOTONIC, &after);
	}
	return 0;
}
