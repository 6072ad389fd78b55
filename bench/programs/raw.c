// SPDX-License-Identifier: GPL-2.0
/*
 * The floor of freeze_512m and read_stream: bytes over one raw TCP connection, in ns.
 * raw send PORT MIB (once for each connection) | raw receive IP PORT MIB [KIB] (for each line of
 * standard input, into fresh memory, or always into the same buffer of KIB)
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/mman.h>

#include "batch.h"

static void give(int port, size_t size)
{
	int listener = listen_on(port);
	char *memory = malloc(size);

	if (!memory)
		die("malloc");
	memset(memory, 0x5a, size);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		char begin;

		if (fd < 0 || recv(fd, &begin, 1, 0) != 1)
			die("accept");
		for (size_t sent = 0; sent < size;) {
			ssize_t part = send(fd, memory + sent, size - sent, MSG_NOSIGNAL);

			if (part <= 0)
				die("send");
			sent += part;
		}
		close(fd);
	}
}

static int take(const char *ip, int port, size_t size, size_t buffer)
{
	size_t room = buffer ? buffer : size;
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(port) };

	if (inet_pton(AF_INET, ip, &there.sin_addr) != 1)
		die(ip);
	while (asked()) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		char *memory;
		double begin;

		if (connect(fd, (struct sockaddr *)&there, sizeof(there)))
			die("connect");
		begin = now_ns();
		memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED || send(fd, "b", 1, 0) != 1)
			die("begin");
		for (size_t got = 0; got < size;) {
			size_t at = got % room;
			ssize_t part = recv(fd, memory + at, room - at, 0);

			if (part <= 0)
				die("recv");
			got += part;
		}
		answer(now_ns() - begin);
		munmap(memory, room);
		close(fd);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "send"))
		give(atoi(argv[2]), atol(argv[3]) << 20);
	if ((argc == 5 || argc == 6) && !strcmp(argv[1], "receive"))
		return take(argv[2], atoi(argv[3]), atol(argv[4]) << 20, argc == 6 ? atol(argv[5]) << 10 : 0);
	fputs("raw send PORT MIB | receive IP PORT MIB [KIB]\n", stderr);
	return 2;
}
