// SPDX-License-Identifier: GPL-2.0
/* Does one small thing that a test asks for by name, and says what came of it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;
static volatile int values[64];

static void count(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	values[signals++ & 63] = info->si_value.sival_int;
}

static void say(const char *what)
{
	puts(what);
	fflush(stdout);
}

/* sleep SECONDS: says whether it was interrupted, and the time by CLOCK_MONOTONIC in ms. */
static int sleeping(long seconds)
{
	struct timespec want = { .tv_sec = seconds }, left, begin, end;
	int result;

	say("ready");
	clock_gettime(CLOCK_MONOTONIC, &begin);
	result = nanosleep(&want, &left);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%s %ld\n", result ? strerror(errno) : "slept",
	       (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
	return 0;
}

/* signals N: N queued real-time signals, in order, with their values; pauses in between. */
static int queued(int wanted)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
	sigset_t blocked, none;

	sigaction(SIGRTMIN, &action, NULL);
	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	say("ready");
	while (signals < wanted)
		sigsuspend(&none);
	for (int i = 0; i < wanted; i++)
		printf("%d%c", values[i], i + 1 < wanted ? ' ' : '\n');
	return 0;
}

/* handle: SIGUSR1 is handled without SA_RESTART; a read of stdin is interrupted by it. */
static int handle(void)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
	char byte;

	sigaction(SIGUSR1, &action, NULL);
	say("ready");
	for (;;) {
		ssize_t got = read(0, &byte, 1);

		if (got == 1)
			printf("read %d\n", byte);
		else
			printf("%s, %d signals\n", got ? strerror(errno) : "end", (int)signals);
		fflush(stdout);
		if (got == 0)
			return 0;
	}
}

/* wait: compute until a line comes, then exit with the status it says or die by its signal. */
static int wait_and(void)
{
	char what[32];
	int number;

	say("ready");
	if (scanf("%31s %d", what, &number) != 2)
		return 99;
	if (!strcmp(what, "exit"))
		return number;
	if (!strcmp(what, "fault"))
		*(volatile int *)0 = number;
	if (!strcmp(what, "abort"))
		abort();
	raise(number);
	return 98;
}

/* fork: a child computes and exits with 5; the parent waits. After a line on stdin. */
static int forking(void)
{
	int status;
	pid_t child;

	say("ready");
	getchar();
	child = fork();
	if (child == 0)
		_exit(getppid() > 1 ? 5 : 6);
	if (waitpid(child, &status, 0) != child)
		return 1;
	printf("child %s %d\n", WIFEXITED(status) ? "exited" : "died", WEXITSTATUS(status));
	return 0;
}

/* exec PROGRAM: after a line on stdin. */
static int exec(char **argv)
{
	say("ready");
	getchar();
	execvp(argv[0], argv);
	return 127;
}

/* map FILE: maps it shared after a line on stdin and prints its first line. */
static int map(const char *path)
{
	int fd = open(path, O_RDONLY);
	char *text;

	say("ready");
	getchar();
	text = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (text == MAP_FAILED)
		return 1;
	printf("%.*s\n", (int)strcspn(text, "\n"), text);
	return 0;
}

/* self: after a line, how many lines of /proc/self/maps name [stack]. */
static int self(void)
{
	char line[512];
	int found = 0;
	FILE *maps;

	say("ready");
	getchar();
	maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps))
		found += strstr(line, "[stack]") != NULL;
	printf("stacks %d\n", found);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "sleep") && argc == 3)
		return sleeping(atol(argv[2]));
	if (!strcmp(what, "signals") && argc == 3)
		return queued(atoi(argv[2]));
	if (!strcmp(what, "handle"))
		return handle();
	if (!strcmp(what, "wait"))
		return wait_and();
	if (!strcmp(what, "fork"))
		return forking();
	if (!strcmp(what, "exec") && argc > 2)
		return exec(argv + 2);
	if (!strcmp(what, "map") && argc == 3)
		return map(argv[2]);
	if (!strcmp(what, "self"))
		return self();
	return 2;
}
