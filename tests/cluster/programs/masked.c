// SPDX-License-Identifier: GPL-2.0
/* Waits in every call that has a temporary signal mask, once for data and once for a signal that
 * only that mask lets through, and says how each ended, what was blocked in the handler, and what
 * is blocked again behind it.  Standard input gives the data. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int handled;
static sigset_t inside, outside;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)info;
	handled += number;
	outside = ((ucontext_t *)context)->uc_sigmask;
	sigprocmask(0, NULL, &inside);
}

static int wait_in(const char *call, int epoll, const sigset_t *none)
{
	struct pollfd poll = { 0, POLLIN, 0 };
	struct timespec long_time = { 100, 0 };
	struct epoll_event event;
	fd_set set;

	if (!strcmp(call, "ppoll"))
		return ppoll(&poll, 1, &long_time, none);
	if (!strcmp(call, "epoll_pwait"))
		return epoll_pwait(epoll, &event, 1, 100000, none);
	if (!strcmp(call, "epoll_pwait2"))
		return syscall(SYS_epoll_pwait2, epoll, &event, 1, &long_time, none, 8);
	if (!strcmp(call, "sigsuspend"))
		return sigsuspend(none);
	FD_ZERO(&set);
	FD_SET(0, &set);
	return pselect(1, &set, NULL, NULL, &long_time, none);
}

static void one(const char *call, int epoll, const sigset_t *none)
{
	sigset_t after;
	char c[8];
	int result;

	handled = 0;
	sigemptyset(&inside);
	sigemptyset(&outside);
	errno = 0;
	printf("%s\n", call);
	result = wait_in(call, epoll, none);
	sigprocmask(0, NULL, &after);
	printf("%d %s, handled %d, blocked inside %d %d outside %d %d after %d %d\n", result, strerror(errno), handled,
	       sigismember(&inside, SIGUSR1), sigismember(&inside, SIGUSR2), sigismember(&outside, SIGUSR1),
	       sigismember(&outside, SIGUSR2), sigismember(&after, SIGUSR1), sigismember(&after, SIGUSR2));
	if (result > 0)
		read(0, c, sizeof(c));
}

int main(void)
{
	static const char *const calls[] = { "ppoll", "pselect", "epoll_pwait", "epoll_pwait2", "sigsuspend" };
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	struct epoll_event event = { .events = EPOLLIN };
	int epoll = epoll_create1(0);
	sigset_t both, none;
	unsigned i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	sigemptyset(&none);
	sigemptyset(&both);
	sigaddset(&both, SIGUSR1);
	sigaddset(&both, SIGUSR2);
	sigprocmask(SIG_BLOCK, &both, NULL);
	epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (strcmp(calls[i], "sigsuspend"))
			one(calls[i], epoll, &none);
		one(calls[i], epoll, &none);
	}
	return 0;
}
