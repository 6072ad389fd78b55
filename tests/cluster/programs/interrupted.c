/*
 * Reads clocks all the time, by one function of the vdso after the other.  A SIGUSR1 whose handler
 * interrupts one says "inside" and waits in the handler for a line of input, others say
 * "outside".  The line "fork" has the handler make a child first.  Ends at the line "end", or
 * when input ends.  To be linked statically: all that is not in its text is the vdso.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

extern const char __executable_start[], etext[];

static volatile sig_atomic_t over;

static void handler(int sig, siginfo_t *info, void *context)
{
	uint64_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	char line[16] = "";
	long n;

	(void)sig;
	(void)info;
	if (rip >= (uint64_t)__executable_start && rip < (uint64_t)etext) {
		write(1, "outside\n", 8);
		return;
	}
	write(1, "inside\n", 7);
	n = read(0, line, sizeof(line) - 1);
	if (!strncmp(line, "fork", 4)) {
		pid_t child = fork();

		if (!child)
			_exit(7);
		waitpid(child, NULL, 0);
	}
	over = n <= 0 || !strncmp(line, "end", 3);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME };
	struct timespec t, last[2] = { { 0, 0 } };
	struct timeval tv, last_tv = { 0, 0 };
	long back = 0;

	sigaction(SIGUSR1, &action, NULL);
	write(1, "ready\n", 6);
	while (!over) {
		for (int i = 0; i < 2; i++) {
			clock_gettime(clocks[i], &t);
			back += t.tv_sec < last[i].tv_sec ||
				(t.tv_sec == last[i].tv_sec && t.tv_nsec < last[i].tv_nsec);
			last[i] = t;
		}
		gettimeofday(&tv, NULL);
		back += timercmp(&tv, &last_tv, <);
		last_tv = tv;
	}
	printf("back %ld\n", back);
	return 0;
}
