// SPDX-License-Identifier: GPL-2.0
/*
 * storm N: waits for N queued SIGRTMIN, blocking and unblocking them all the time, while SIGUSR1
 * comes as it likes, two timers tick and children end.  Says how many came, whether their values
 * were 0 to N-1 in order, whether every child was reaped with its own status, and that
 * everything else came at all.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 60

static volatile sig_atomic_t queued, wrong, users, alarms, ticks, ended, repaired, told;
static volatile char reaped[CHILDREN];
static char *page;

static void on_signal(int number, siginfo_t *info, void *context)
{
	int saved = errno, status;

	(void)context;
	if (number == SIGRTMIN)
		wrong += info->si_value.sival_int != queued++;
	else if (number == SIGUSR1)
		users++;
	else if (number == SIGALRM)
		alarms++;
	else if (number == SIGVTALRM)
		ticks++;
	else if (number == SIGCHLD) {
		told++;
		wrong += info->si_code != CLD_EXITED && info->si_code != CLD_KILLED;
		/* one signal may stand for several children */
		while (waitpid(-1, &status, WNOHANG) > 0) {
			int which = WIFEXITED(status) ? WEXITSTATUS(status) : -1;

			wrong += which < 0 || which >= CHILDREN || reaped[which]++;
			ended++;
		}
	} else if (number == SIGSEGV && info->si_addr == page && !mprotect(page, 4096, PROT_WRITE))
		repaired++;
	else
		_exit(90);
	errno = saved;
}

/* They end one after the other while the parent moves. */
static void have_children(void)
{
	for (int i = 0; i < CHILDREN; i++)
		if (!fork()) {
			usleep(300000 + i * 20000);
			_exit(i);
		}
}

int main(int argc, char **argv)
{
	int numbers[] = { SIGRTMIN, SIGUSR1, SIGALRM, SIGVTALRM, SIGCHLD, SIGSEGV };
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval real = { { 0, 7000 }, { 0, 7000 } }, virtual = { { 0, 9000 }, { 0, 9000 } };
	int wanted = argc > 1 ? atoi(argv[1]) : 1000, faults = 0, errors = 0;
	sigset_t some, before;

	page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (unsigned int i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &action, NULL);
	sigemptyset(&some);
	sigaddset(&some, SIGRTMIN);
	sigaddset(&some, SIGUSR1);
	have_children();
	setitimer(ITIMER_REAL, &real, NULL);
	setitimer(ITIMER_VIRTUAL, &virtual, NULL);
	puts("ready");
	fflush(stdout);
	while (queued < wanted || ended < CHILDREN) {
		volatile unsigned int work = 0;

		errors += sigprocmask(SIG_BLOCK, &some, &before) != 0;
		for (int i = 0; i < 20000; i++)
			work += i;
		errors += sigismember(&before, SIGRTMIN) || getpid() <= 0;
		errors += sigprocmask(SIG_SETMASK, &before, NULL) != 0;
		*page = 1;
		faults++;
		errors += mprotect(page, 4096, PROT_NONE) != 0;
	}
	printf("%d queued, %d wrong, %d errors, %s\n", (int)queued, (int)wrong, errors,
	       users && alarms && ticks && told && repaired == faults && waitpid(-1, NULL, 0) < 0 ? "all came"
												  : "some are missing");
	return 0;
}
