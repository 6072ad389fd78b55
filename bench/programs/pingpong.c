// SPDX-License-Identifier: GPL-2.0
/*
 * The floor of forward_rtt: mean ns of a request and its reply over one TCP_NODELAY connection.
 * pingpong serve PORT REQUEST REPLY | pingpong ask IP PORT REQUEST REPLY ROUNDS (sizes: bytes)
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <string.h>

#include "batch.h"

static char buffer[65536];

static int get(int fd, size_t size)
{
	while (size) {
		ssize_t got = recv(fd, buffer, size, 0);

		if (got <= 0)
			return 0;
		size -= got;
	}
	return 1;
}

static void put(int fd, size_t size)
{
	if (send(fd, buffer, size, MSG_NOSIGNAL) != (ssize_t)size)
		die("send");
}

static int tcp(int fd)
{
	int one = 1;

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("socket");
	return fd;
}

static int serve(int port, size_t request, size_t reply)
{
	int listener = listen_on(port);
	int fd;

	puts("ready");
	fflush(stdout);
	fd = tcp(accept(listener, NULL, NULL));
	while (get(fd, request))
		put(fd, reply);
	return 0;
}

static int ask(const char *ip, int port, size_t request, size_t reply, long rounds)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = tcp(socket(AF_INET, SOCK_STREAM, 0));

	if (inet_pton(AF_INET, ip, &there.sin_addr) != 1 || connect(fd, (struct sockaddr *)&there, sizeof(there)))
		die("connect");
	while (asked()) {
		double begin = now_ns();

		for (long i = 0; i < rounds; i++) {
			put(fd, request);
			if (!get(fd, reply))
				die("recv");
		}
		answer((now_ns() - begin) / rounds);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]), atol(argv[3]), atol(argv[4]));
	if (argc == 7 && !strcmp(argv[1], "ask"))
		return ask(argv[2], atoi(argv[3]), atol(argv[4]), atol(argv[5]), atol(argv[6]));
	fputs("pingpong serve PORT REQUEST REPLY | ask IP PORT REQUEST REPLY ROUNDS\n", stderr);
	return 2;
}
