/*
 * Uses CPU time, in the way of its first argument:
 *   clocks FILE  until FILE exists or it is told by SIGUSR1 to start anew: reads all clocks of its
 *                CPU time, and says how often one ran back or jumped by more than 0.2 s, which of
 *                them (a letter) and by how much
 *   prof         ITIMER_PROF every 0.05 s: at each line of input says how many signals it got in
 *                a second of CPU time
 *   limit        until the limit of CPU time: at SIGXCPU says what it has used, in ms, and what
 *                its soft limit is
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define TOO_FAR (NS / 5)

static int64_t of(struct timeval t)
{
	return t.tv_sec * NS + t.tv_usec * 1000;
}

static int64_t cpu_clock(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

enum { PROCESS, THREAD, CLOCK, USER, SYSTEM, TICKS, CLOCKS };

static void read_clocks(int64_t *now)
{
	struct rusage usage;
	struct tms ticks;

	now[PROCESS] = cpu_clock(CLOCK_PROCESS_CPUTIME_ID);
	now[THREAD] = cpu_clock(CLOCK_THREAD_CPUTIME_ID);
	now[CLOCK] = clock() * 1000LL;
	getrusage(RUSAGE_SELF, &usage);
	now[USER] = of(usage.ru_utime);
	now[SYSTEM] = of(usage.ru_stime);
	times(&ticks);
	now[TICKS] = (ticks.tms_utime + ticks.tms_stime) * (NS / sysconf(_SC_CLK_TCK));
}

static volatile sig_atomic_t anew = 1, signals;

static void start_anew(int sig)
{
	(void)sig;
	anew = 1;
}

static void count(int sig)
{
	(void)sig;
	signals++;
}

static int clocks(const char *file)
{
	int64_t last[CLOCKS], now[CLOCKS];
	int wrong = 0;

	signal(SIGUSR1, start_anew);
	printf("ready\n");
	fflush(stdout);
	do {
		if (anew) {
			read_clocks(last);
			anew = 0;
		}
		for (volatile int i = 0; i < 200000; i++)
			;
		read_clocks(now);
		for (int i = 0; i < CLOCKS; i++) {
			if (!anew && (now[i] < last[i] || now[i] > last[i] + TOO_FAR)) {
				wrong++;
				printf("%c by %ld us\n", "PTCUSK"[i], (long)(now[i] - last[i]) / 1000);
			}
			last[i] = now[i];
		}
	} while (access(file, F_OK));
	printf("wrong %d\n", wrong);
	return 0;
}

static int prof(void)
{
	struct itimerval every = { { 0, 50000 }, { 0, 50000 } };
	char line[16];

	signal(SIGPROF, count);
	setitimer(ITIMER_PROF, &every, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		int64_t end = cpu_clock(CLOCK_PROCESS_CPUTIME_ID) + NS;

		signals = 0;
		while (cpu_clock(CLOCK_PROCESS_CPUTIME_ID) < end)
			for (volatile int i = 0; i < 100000; i++)
				;
		printf("%d\n", signals);
		fflush(stdout);
	}
	return 0;
}

static int limit(void)
{
	struct rlimit cpu;

	signal(SIGXCPU, count);
	printf("ready\n");
	fflush(stdout);
	while (!signals)
		;
	getrlimit(RLIMIT_CPU, &cpu);
	printf("%ld %ld\n", (long)(cpu_clock(CLOCK_PROCESS_CPUTIME_ID) / 1000000), (long)cpu.rlim_cur);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "clocks"))
		return clocks(argv[2]);
	return argc > 1 && !strcmp(argv[1], "prof") ? prof() : limit();
}
