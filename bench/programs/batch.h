/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The protocol of every measured program: it makes one batch for each line on standard
 * input and prints one number, so that bench/run can interleave two programs fairly.
 */
#ifndef BATCH_H
#define BATCH_H

#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static inline double user_ns(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec * 1e9 + usage.ru_utime.tv_usec * 1e3;
}

/* A listening socket on `port`, also right after another program has used it. */
static inline int listen_on(int port)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, 8))
		die("listen");
	return fd;
}

/* Waits for the next batch to be asked for; 0 at the end of standard input. */
static inline int asked(void)
{
	char line;

	return read(0, &line, 1) == 1;
}

static inline void answer(double value)
{
	printf("%.1f\n", value);
	fflush(stdout);
}

#endif
