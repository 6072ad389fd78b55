/*
 * Reads the clock all the time.  A SIGUSR1 whose handler interrupts a function of the vdso says
 * "inside" and waits in the handler for a line of input, others say "outside".  Ends at the line
 * "end", or when input ends.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t over;

static void handler(int sig, siginfo_t *info, void *context)
{
	uint64_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	uint64_t vdso = getauxval(AT_SYSINFO_EHDR);
	char line[16];
	long n;

	(void)sig;
	(void)info;
	if (rip < vdso || rip >= vdso + 8192) {
		write(1, "outside\n", 8);
		return;
	}
	write(1, "inside\n", 7);
	n = read(0, line, sizeof(line));
	over = n <= 0 || !strncmp(line, "end", 3);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	struct timespec t, last = { 0, 0 };
	long back = 0;

	sigaction(SIGUSR1, &action, NULL);
	write(1, "ready\n", 6);
	while (!over) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		back += t.tv_sec < last.tv_sec || (t.tv_sec == last.tv_sec && t.tv_nsec < last.tv_nsec);
		last = t;
	}
	printf("back %ld\n", back);
	return 0;
}
