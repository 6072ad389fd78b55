// SPDX-License-Identifier: GPL-2.0
/*
 * Does what a byte on standard input asks for: 'c' compute until SIGUSR1 comes, every lap with the same
 * result, 's' sleep for 0.7 s; any other is only said.  programs/states.py is the same in Python.
 */
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void count(int number)
{
	(void)number;
	signals++;
}

static __attribute__((noipa)) unsigned long lap(void)
{
	double sum = 1;
	unsigned long hash = 0;

	for (int i = 1; i < 50000; i++) {
		sum = sum * 1.0000001 + 1.0 / i;
		hash = (hash ^ (unsigned long)(sum * 1e9)) * 1099511628211UL;
	}
	return hash;
}

static void compute(void)
{
	unsigned long wanted = lap();
	int before = signals, wrong = 0;

	puts("computing");
	fflush(stdout);
	while (signals == before)
		wrong += lap() != wanted;
	puts(wrong ? "computed wrong" : "computed right");
}

static void rest(void)
{
	struct timespec want = { 0, 700000000 }, begin, end;
	int result;

	puts("sleeping");
	fflush(stdout);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	result = nanosleep(&want, NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += (end.tv_sec - begin.tv_sec) * 1000000000L - begin.tv_nsec;
	puts(!result && end.tv_nsec >= want.tv_nsec ? "slept" : "slept too little");
}

int main(void)
{
	struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART };
	char byte;

	sigaction(SIGUSR1, &action, NULL);
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) == 1) {
		if (byte == 'c')
			compute();
		else if (byte == 's')
			rest();
		else
			printf("read %c\n", byte);
		fflush(stdout);
	}
	printf("end, %d signals\n", (int)signals);
	return 0;
}
