/* A program that notices whatever a tracer could break: it computes, sleeps, reads or waits
 * for signals in a loop and counts laps and errors in a shared file.
 * usage: self_check KIND FILE */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static volatile struct state {
	long laps, errors, signals, ready, longest_ns;
} * state;

typedef double v4 __attribute__((vector_size(32)));

static void on_signal(int s)
{
	(void)s;
	state->signals++;
}

__attribute__((noipa, target("avx"))) static uint64_t compute(int rounds)
{
	v4 a = { 1, 2, 3, 4 }, b = { 1.0001, 0.9999, 1.0002, 0.9998 };
	unsigned __int128 x = 12345;
	uint64_t h = 0;

	for (int i = 0; i < rounds; i++) {
		a = a * b + (v4){ 1e-3, 1e-3, 1e-3, 1e-3 };
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		h ^= (uint64_t)(x >> 61) + (h << 7) + (h >> 3);
		h += x > ((unsigned __int128)h << 64);
	}
	for (int i = 0; i < 4; i++) {
		double d = a[i];
		uint64_t u;

		memcpy(&u, &d, 8);
		h ^= u * 31;
	}
	return h;
}

static long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void lap(int ok)
{
	if (!ok)
		state->errors++;
	state->laps++;
}

static void lap_of(int ok, long started, long wanted_ns)
{
	long took = now_ns() - started;

	if (took > state->longest_ns)
		state->longest_ns = took;
	lap(ok && took >= wanted_ns);
}

static void start_timer(long us, int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };
	struct itimerval it = { { 0, us }, { 0, us } };

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
}

int main(int argc, char **argv)
{
	const char *kind = argv[1];
	int fd = open(argv[2], O_RDWR), p[2], e;

	(void)argc;
	state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (pipe(p))
		return 2;
	e = epoll_create1(0);
	epoll_ctl(e, EPOLL_CTL_ADD, p[0], &(struct epoll_event){ .events = EPOLLIN });
	if (!strcmp(kind, "compute")) {
		uint64_t want = compute(100000);

		start_timer(1000, SA_RESTART);
		for (state->ready = 1;;)
			lap(compute(100000) == want);
	}
	if (!strcmp(kind, "spin"))
		for (state->ready = 1;;)
			lap(compute(1000) != 0);
	if (!strcmp(kind, "nanosleep"))
		for (state->ready = 1;;) {
			long t = now_ns();

			lap_of(!nanosleep(&(struct timespec){ 0, 3000000 }, NULL), t, 3000000);
		}
	if (!strcmp(kind, "nanosleep_rem"))
		for (state->ready = 1;;) {
			struct timespec rem;
			long t = now_ns();

			lap_of(!clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){ 0, 30000000 }, &rem), t,
			       30000000);
		}
	if (!strcmp(kind, "poll"))
		for (state->ready = 1;;) {
			long t = now_ns();

			lap_of(!poll(&(struct pollfd){ p[0], POLLIN, 0 }, 1, 30), t, 30000000);
		}
	if (!strcmp(kind, "epoll"))
		for (state->ready = 1;;) {
			struct epoll_event out;
			long t = now_ns();

			/* epoll_wait may return a slack too early by its own rounding, never more */
			lap_of(epoll_wait(e, &out, 1, 30) == 0, t, 29000000);
		}
	if (!strcmp(kind, "read")) {
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (long i = 0;; i++) {
				if (write(p[1], &i, 8) != 8)
					_exit(0);
				usleep(700);
			}
		}
		state->ready = 1;
		for (long i = 0, v = -1;; i++)
			lap(read(p[0], &v, 8) == 8 && v == i);
	}
	if (!strcmp(kind, "write")) {
		static char data[300000];

		if (!fork()) {
			char buffer[40000];

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			while (read(p[0], buffer, sizeof(buffer)) > 0)
				usleep(300);
			_exit(0);
		}
		for (state->ready = 1;;)
			lap(write(p[1], data, sizeof(data)) == sizeof(data));
	}
	if (!strcmp(kind, "send") || !strcmp(kind, "writev") || !strcmp(kind, "sendmsg")) {
		static char data[300000];
		struct iovec v[3] = { { data, 100000 }, { data + 100000, 100000 }, { data + 200000, 100000 } };
		struct msghdr m = { .msg_iov = v, .msg_iovlen = 3 };
		int s[2];

		for (int i = 0; i < 300000; i++)
			data[i] = (char)(i * 7);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
			return 2;
		if (!fork()) {
			char buffer[40000];
			long at = 0, n;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			while ((n = read(s[0], buffer, sizeof(buffer))) > 0) {
				for (long i = 0; i < n; i++, at = (at + 1) % 300000)
					if (buffer[i] != (char)(at * 7))
						state->errors++;
				usleep(300);
			}
			_exit(0);
		}
		for (state->ready = 1;;)
			lap((*kind == 'w'	     ? writev(s[1], v, 3)
			     : !strcmp(kind, "send") ? send(s[1], data, 300000, 0)
						     : sendmsg(s[1], &m, 0)) == 300000);
	}
	if (!strcmp(kind, "waitall")) {
		static char data[200000];
		int s[2];

		if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
			return 2;
		if (!fork()) {
			char c = 0, piece[5000];

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;; usleep(200)) {
				for (int i = 0; i < 5000; i++)
					piece[i] = c++ * 7;
				if (write(s[0], piece, 5000) != 5000)
					_exit(0);
			}
		}
		char want = 0;
		for (state->ready = 1;;) {
			int ok = recv(s[1], data, 200000, MSG_WAITALL) == 200000;

			for (int i = 0; i < 200000; i++)
				ok &= data[i] == (char)((char)want++ * 7);
			lap(ok);
		}
	}
	if (!strcmp(kind, "sigsuspend")) {
		sigset_t block, old, now;

		sigemptyset(&block);
		sigaddset(&block, SIGALRM);
		sigprocmask(SIG_BLOCK, &block, &old);
		start_timer(2000, SA_RESTART);
		for (state->ready = 1;;) {
			long before = state->signals;
			int r = sigsuspend(&old);

			lap(r == -1 && errno == EINTR && state->signals == before + 1);
			sigprocmask(SIG_BLOCK, NULL, &now);
			if (!sigismember(&now, SIGALRM) || sigismember(&now, SIGUSR1))
				state->errors++;
		}
	}
	return 2;
}
