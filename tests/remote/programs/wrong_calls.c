// SPDX-License-Identifier: GPL-2.0
/* Makes calls with right and wrong arguments and tells what came of each: the same wherever they
 * are made.  usage: wrong_calls CALLS RESULTS SKIP; CALLS: struct call[], made by test_arguments.py;
 * SKIP: one byte for each, 1: not made, as if it had been ENOSYS. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind { NUMBER, DESCRIPTOR, ADDRESS };

struct call {
	uint64_t nr;
	uint64_t kinds[6];
	uint64_t values[6];
};

struct result {
	int64_t result, error;
	uint64_t memory;
};

#define BASE ((char *)0x200000000)
#define PAGE 4096ul
#define PAGES 8 /* usable; then one that can only be read, one that is not accessible */
#define FIRST_FREE 40

static int descriptors[16];

static void descriptor(int *n, int fd)
{
	descriptors[*n] = dup2(fd, 20 + *n);
	close(fd);
	(*n)++;
}

static void make_descriptors(void)
{
	int pair[2], n = 0, fd;

	/* From FIRST_FREE on is whatever a call opens. */
	fd = open("/dev/null", O_RDWR);
	for (n = 0; n < FIRST_FREE; n++)
		dup2(fd, n);
	n = 0;
	descriptor(&n, open("small", O_RDONLY));
	descriptor(&n, open("big", O_RDWR));
	descriptor(&n, open("sub", O_RDONLY | O_DIRECTORY));
	pipe2(pair, O_NONBLOCK);
	write(pair[1], "in the pipe", 11);
	descriptor(&n, pair[0]);
	descriptor(&n, pair[1]);
	socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
	write(pair[0], "in the socket", 13);
	descriptor(&n, pair[0]);
	descriptor(&n, pair[1]);
	descriptor(&n, socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
	descriptor(&n, socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	descriptor(&n, eventfd(3, EFD_NONBLOCK));
	descriptor(&n, epoll_create1(0));
	descriptors[n++] = 700;
	descriptors[n++] = -1;
	descriptors[n++] = AT_FDCWD;
	descriptors[n++] = 900; /* the agent's own: closed natively */
	descriptors[n++] = 0x7fffffff;
}

/* What a call finds: words that are small numbers, and names. */
static void make_memory(void)
{
	static const char *const names[] = { "small", "missing", "sub", "link", "", "sub/file1", "new", "big" };
	uint32_t *word = (uint32_t *)BASE;
	unsigned i;

	for (i = 0; i < PAGES * PAGE / 4; i++)
		word[i] = i % 4 ? 0 : i % 8 ? 16 : 3;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		strcpy(BASE + PAGE + i * 64, names[i]);
	memset(BASE + 2 * PAGE, 'x', 2 * PAGE); /* a name that never ends */
	for (i = 0; i < 8; i++) {		/* buffers: the last one leads out of memory */
		((uint64_t *)(BASE + 5 * PAGE))[2 * i] = (uint64_t)BASE + 6 * PAGE + 64 * i;
		((uint64_t *)(BASE + 5 * PAGE))[2 * i + 1] = 24;
	}
	((uint64_t *)(BASE + 5 * PAGE))[6] = (uint64_t)BASE + (PAGES + 1) * PAGE;
	memset(BASE + 6 * PAGE, 'm', PAGE);
	memset(BASE + 7 * PAGE, 0, 16); /* no time */
}

static uint64_t sum(void)
{
	const uint64_t *word = (uint64_t *)BASE;
	uint64_t s = 1;
	unsigned i;

	for (i = 0; i < PAGES * PAGE / 8; i++)
		s = s * 31 + word[i];
	return s;
}

static char *load(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	char *data;

	*size = lseek(fd, 0, SEEK_END);
	data = malloc(*size + 1);
	if (pread(fd, data, *size, 0) != (ssize_t)*size)
		abort();
	close(fd);
	return data;
}

int main(int argc, char **argv)
{
	size_t size, skips;
	struct call *calls = (struct call *)load(argv[1], &size);
	char *skip = load(argv[3], &skips);
	size_t n = size / sizeof(*calls), i;
	struct result *results = calloc(n, sizeof(*results));
	int fd, k;

	(void)argc;
	signal(SIGPIPE, SIG_IGN);
	mmap(BASE, (PAGES + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	mprotect(BASE + PAGES * PAGE, PAGE, PROT_READ);
	mprotect(BASE + (PAGES + 1) * PAGE, PAGE, PROT_NONE);
	make_descriptors();
	for (i = 0; i < n; i++) {
		uint64_t args[6];

		for (k = 0; k < 6; k++)
			args[k] = calls[i].kinds[k] == DESCRIPTOR ? (uint64_t)descriptors[calls[i].values[k] % 16]
								  : calls[i].values[k];
		make_memory();
		errno = ENOSYS;
		results[i].result = -1;
		if (!skip[i])
			results[i].result = syscall(calls[i].nr, args[0], args[1], args[2], args[3], args[4], args[5]);
		results[i].error = results[i].result == -1 ? errno : 0;
		results[i].memory = sum();
		/* whatever it has opened */
		for (fd = FIRST_FREE; fd < FIRST_FREE + 4; fd++)
			if (!skip[i] && (results[i].result >= FIRST_FREE || !results[i].result))
				close(fd);
	}
	fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	write(fd, results, n * sizeof(*results));
	return 0;
}
