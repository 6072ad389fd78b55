"""C programs that the round trips of test_restore.py move. Each says "ready" first."""

from __future__ import annotations

#: What a guest is before it is filled: no libc, so neither rseq nor robust list.
EMPTY = r"""
__attribute__((naked)) void _start(void)
{
	__asm__("1: mov $34, %eax\n\tsyscall\n\tjmp 1b");
}
"""

#: Answers commands on stdin; what it answers must not depend on where it runs.
PROBE = r"""
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef double v4 __attribute__((vector_size(32)));
static char alternate[1 << 16];
static volatile int on_alternate;
static __thread long thread_local = 4711;
static const char constant[] = "read-only data";
static sigset_t blocked;
static char *past_end, *mapped;

static void on_usr1(int s)
{
	char here;
	on_alternate = &here >= alternate && &here < alternate + sizeof(alternate);
}

static void on_bus(int s)
{
	const char text[] = "bus error\n";
	write(1, text, sizeof(text) - 1);
	_exit(9);
}

static __attribute__((noipa)) long deep(long left)
{
	volatile char page[4096];
	memset((char *)page, left, sizeof(page));
	return left ? page[17] + deep(left - 1) : 0;
}

int main(void)
{
	char line[100], name[17] = "", path[] = "/tmp/probe-XXXXXX";
	struct sigaction usr1 = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK};
	struct sigaction bus = {.sa_handler = on_bus};
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
	struct itimerval timer = {{100, 0}, {100, 0}};
	v4 a = {1, 2, 3, 4};
	void *kept[3000];
	int count = 0, fd;

	setvbuf(stdout, 0, _IOLBF, 0);
	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	sigaction(SIGUSR1, &usr1, 0);
	sigaction(SIGBUS, &bus, 0);
	sigaltstack(&stack, 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &blocked, 0);
	setitimer(ITIMER_PROF, &timer, 0);
	prctl(PR_SET_NAME, "probe's name");
	fd = mkstemp(path);
	unlink(path);
	write(fd, "x", 1);
	past_end = mmap(0, 8192, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		for (int i = 0; i < 1000; i++)
			a = a * (v4){1.0001, 0.9999, 1.0002, 0.9998} + (v4){1e-3, 1e-3, 1e-3, 1e-3};
		if (!strcmp(line, "heap")) {
			char *before = sbrk(0);
			long sum = 0;
			for (int i = 0; i < 100; i++) {
				kept[count] = malloc(20000);
				memset(kept[count], count, 20000);
				count++;
			}
			for (int i = 0; i < count; i++)
				sum += ((unsigned char *)kept[i])[19999];
			printf("heap grew by %ld, sum %ld\n", (char *)sbrk(0) - before, sum);
		} else if (!strcmp(line, "stack")) {
			printf("stack %ld\n", deep(1500));
		} else if (!strcmp(line, "altstack")) {
			on_alternate = 0;
			raise(SIGUSR1);
			printf("altstack %d\n", on_alternate);
		} else if (!strcmp(line, "queue")) {
			for (int i = 1; i <= 3; i++)
				sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i * 11});
			raise(SIGUSR2);
			printf("queued\n");
		} else if (!strcmp(line, "dequeue")) {
			siginfo_t info;
			struct timespec now = {0};
			int sum = 0, s;
			while ((s = sigtimedwait(&blocked, &info, &now)) > 0)
				sum = sum * 100 + (s == SIGUSR2 ? 1 : info.si_value.sival_int);
			printf("dequeued %d\n", sum);
		} else if (!strcmp(line, "timer")) {
			getitimer(ITIMER_PROF, &timer);
			printf("timer %d\n", timer.it_value.tv_sec > 90 && timer.it_interval.tv_sec == 100);
		} else if (!strcmp(line, "sleep")) {
			struct timespec begin, end, wish = {1, 200000000};
			clock_gettime(CLOCK_MONOTONIC, &begin);
			int r = nanosleep(&wish, 0);
			clock_gettime(CLOCK_MONOTONIC, &end);
			long ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
			printf("sleep %d %d\n", r, ms >= 1199);
		} else if (!strcmp(line, "clock")) {
			struct timespec now;
			clock_gettime(CLOCK_MONOTONIC, &now);
			printf("clock %d\n", now.tv_sec > 0 && getauxval(AT_SYSINFO_EHDR) != 0);
		} else if (!strcmp(line, "name")) {
			prctl(PR_GET_NAME, name);
			printf("%s %ld %s %d\n", name, thread_local++, constant, errno);
		} else if (!strncmp(line, "map ", 4)) {
			void *at = (void *)strtoul(line + 4, 0, 16);
			int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
			mapped = mmap(at, 4 << 20, PROT_READ | PROT_WRITE, flags, -1, 0);
			memset(mapped, 77, 4 << 20);
			printf("mapped %d\n", mapped != MAP_FAILED);
		} else if (!strcmp(line, "mapped")) {
			long sum = 0;
			for (long i = 0; i < 4 << 20; i++)
				sum += mapped[i];
			printf("sum %ld\n", sum);
		} else if (!strcmp(line, "bus")) {
			printf("first page %c\n", past_end[0]);
			printf("never %c\n", past_end[4096]);
		} else {
			printf("%.12f %s\n", a[0] + a[1] + a[2] + a[3], line);
		}
	}
	return 7;
}
"""

#: Computes without end in vector and general registers; SIGUSR1 asks for laps right and wrong.
SPINNER = r"""
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>
typedef double v4 __attribute__((vector_size(32)));
static volatile sig_atomic_t asked;
static void on(int s) { asked = s; }
static __attribute__((noipa)) uint64_t lap(void)
{
	v4 a = {1, 2, 3, 4};
	unsigned __int128 x = 12345;
	uint64_t h = 0;
	for (int i = 0; i < 20000; i++) {
		a = a * (v4){1.0001, 0.9999, 1.0002, 0.9998} + (v4){1e-3, 1e-3, 1e-3, 1e-3};
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		h ^= (uint64_t)(x >> 61) + (h << 7) + (h >> 3);
		h += x > ((unsigned __int128)h << 64);
	}
	return h ^ (uint64_t)(a[0] * 1e6) ^ (uint64_t)(a[3] * 1e9);
}
int main(void)
{
	struct sigaction sa = {.sa_handler = on};
	uint64_t want = lap();
	long right = 0, wrong = 0;
	sigaction(SIGUSR1, &sa, 0);
	dprintf(1, "ready\n");
	for (;;) {
		if (lap() == want)
			right++;
		else
			wrong++;
		if (asked) {
			asked = 0;
			dprintf(1, "%ld %ld\n", right, wrong);
		}
	}
}
"""

PYTHON = r"""
import hashlib, sys
print("ready", flush=True)
seen, digest = {}, hashlib.sha256()
for line in iter(sys.stdin.readline, ""):
    for i in range(2000):
        seen[f"{line}{i}"] = [i, str(i) * 3, {"n": float(i)}]
        digest.update(repr(seen[f"{line}{i}"]).encode())
    print(len(seen), digest.hexdigest(), line.strip(), flush=True)
"""

#: A write that fills a pipe several times over; says on stderr what write(2) returned.
WRITER = r"""
import os, sys
print("ready", flush=True)
sys.stdin.readline()
block = bytes(range(256)) * 4096
sys.exit(0 if os.write(1, block) == len(block) else 1)
"""
