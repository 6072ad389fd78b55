// SPDX-License-Identifier: GPL-2.0
/*
 * Waits in one call after the other that a signal nobody wants would cut short under a tracer.
 * Before each it says its name, after it what came of it; SIGUSR1 is ignored, as SIGWINCH and SIGURG
 * are by default.  On stderr, since the last call fills standard output.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void count(int number)
{
	(void)number;
	handled++;
}

static void begin(const char *name)
{
	dprintf(2, "%s\n", name);
}

static void end(long result)
{
	dprintf(2, "%ld %s\n", result, result < 0 ? strerror(errno) : "");
}

/* Whether anything is pending that the program could see. */
static int pending(void)
{
	sigset_t set;

	sigpending(&set);
	for (int number = 1; number < 65; number++)
		if (sigismember(&set, number) == 1)
			return number;
	return 0;
}

int main(void)
{
	struct timespec while_waiting = { 0, 400000000 };
	struct timeval limit = { 0, 400000 };
	struct epoll_event event;
	sigset_t none, two;
	int pair[2], epoll;
	size_t size = 1 << 20;
	char *block, line[8];

	signal(SIGUSR1, SIG_IGN);
	sigemptyset(&none);
	sigemptyset(&two);
	sigaddset(&two, SIGUSR2);
	sigprocmask(SIG_BLOCK, &two, NULL);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	epoll = epoll_create1(0);
	event.events = EPOLLIN;
	epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);

	begin("epoll_wait");
	end(epoll_wait(epoll, &event, 1, 400));
	begin("epoll_pwait");
	end(epoll_pwait(epoll, &event, 1, 400, &none));
	begin("recv");
	end(recv(pair[0], line, 1, 0));
	begin("sigtimedwait");
	end(sigtimedwait(&two, NULL, &while_waiting));
	begin("ppoll");
	end(ppoll(&(struct pollfd){ pair[0], POLLIN, 0 }, 1, &while_waiting, &none));
	begin("pselect");
	end(pselect(0, NULL, NULL, NULL, &while_waiting, &none));
	begin("nanosleep");
	end(nanosleep(&while_waiting, NULL));
	begin("read");
	end(read(0, line, 1));
	begin("sigpending");
	end(pending());

	/* what was ignored until now must not be handled now */
	signal(SIGUSR1, count);
	begin("handled");
	end(handled + (getppid() < 0));
	end(read(0, line, 1));
	signal(SIGUSR1, SIG_IGN);

	block = calloc(1, size);
	begin("write");
	end(write(1, block, size));
	return 0;
}
