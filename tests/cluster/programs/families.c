/*
 * Every family of system calls, used as programs use it, for a while: families NAME [MS [FILE]]:
 * until MS have passed, or FILE exists.
 * Prints only what does not depend on time or place, so that a plain run and one that was moved
 * about can be compared; complains on stderr and exits with 1 when something is wrong.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <immintrin.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

static long long begin_ns, length_ns;
static const char *stop_file;

static long long now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

static void __attribute__((format(printf, 3, 4), noreturn)) fail(int line, const char *what, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fprintf(stderr, "line %d: %s ", line, what);
	vfprintf(stderr, format, list);
	fprintf(stderr, " (errno %s)\n", strerrorname_np(errno));
	exit(1);
}

#define EXPECT(what, ...)                                       \
	do {                                                    \
		if (!(what))                                    \
			fail(__LINE__, #what, " " __VA_ARGS__); \
	} while (0)

/* Time is up: every test goes round until then, and prints the same however often it went. */
static int again(void)
{
	if (stop_file)
		return access(stop_file, F_OK);
	return now(CLOCK_MONOTONIC) - begin_ns < length_ns;
}

static void burn(long long ns)
{
	long long until = now(CLOCK_MONOTONIC) + ns;

	while (now(CLOCK_MONOTONIC) < until)
		;
}

/* `least` has passed since `from`, and not hours more. */
static void passed(int line, long long from, long long least)
{
	long long took = now(CLOCK_MONOTONIC) - from;

	if (took < least || took > least + 20 * NS)
		fail(line, "time", "%lld ns instead of %lld", took, least);
}

static volatile sig_atomic_t count[65];
static siginfo_t last;

static void counting(int signal, siginfo_t *info, void *context)
{
	(void)context;
	count[signal]++;
	last = *info;
}

static void catch (int signal, int flags)
{
	struct sigaction action = { .sa_sigaction = counting, .sa_flags = SA_SIGINFO | flags };

	EXPECT(!sigaction(signal, &action, NULL));
}

static sigset_t only(int signal)
{
	sigset_t set;

	sigemptyset(&set);
	if (signal)
		sigaddset(&set, signal);
	return set;
}

/* ---- files ---- */

static void at_files(void)
{
	int dir, fd;
	char link[64] = { 0 };
	struct stat st;
	struct statx stx;

	do {
		EXPECT(!mkdir("d", 0755));
		dir = open("d", O_RDONLY | O_DIRECTORY);
		EXPECT(dir >= 0);
		fd = openat(dir, "a", O_CREAT | O_RDWR | O_EXCL, 0640);
		EXPECT(fd >= 0);
		EXPECT(pwrite(fd, "hello", 5, 3) == 5);
		EXPECT(!fstatat(dir, "a", &st, 0) && st.st_size == 8 && (st.st_mode & 07777) == 0640);
		EXPECT(!linkat(dir, "a", dir, "b", 0) && !symlinkat("b", dir, "c"));
		EXPECT(readlinkat(dir, "c", link, sizeof(link)) == 1 && link[0] == 'b');
		EXPECT(!fchmodat(dir, "a", 0600, 0) && !faccessat(dir, "a", R_OK, 0));
		EXPECT(!renameat(dir, "a", dir, "e") && openat(dir, "a", O_RDONLY) < 0 && errno == ENOENT);
		EXPECT(renameat2(dir, "e", dir, "b", RENAME_EXCHANGE) == 0);
		EXPECT(!statx(dir, "c", AT_SYMLINK_NOFOLLOW, STATX_ALL, &stx) && S_ISLNK(stx.stx_mode));
		EXPECT(!statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &stx) && stx.stx_size == 8);
		EXPECT(!utimensat(dir, "e", (struct timespec[2]){ { 7, 8 }, { 9, 10 } }, 0));
		EXPECT(!fstat(fd, &st) && st.st_mtim.tv_sec == 9 && st.st_mtim.tv_nsec == 10);
		EXPECT(!fallocate(fd, 0, 0, 10000) && !ftruncate(fd, 4) && lseek(fd, 0, SEEK_END) == 4);
		EXPECT(!mkfifoat(dir, "p", 0600) && !unlinkat(dir, "p", 0));
		EXPECT(!unlinkat(dir, "b", 0) && !unlinkat(dir, "c", 0) && !unlinkat(dir, "e", 0));
		EXPECT(!fstat(fd, &st) && st.st_nlink == 0);
		close(fd);
		close(dir);
		EXPECT(!rmdir("d"));
	} while (again());
	puts("files at directories");
}

static void listing(void)
{
	DIR *dir;
	char name[32];
	int i, sum, n;

	EXPECT(!mkdir("many", 0755));
	for (i = 0; i < 500; i++) {
		sprintf(name, "many/%05d", i);
		close(open(name, O_CREAT | O_WRONLY, 0600));
	}
	do {
		dir = opendir("many");
		for (n = sum = 0; again() || !(n % 100); n++) {
			struct dirent *e = readdir(dir);

			if (!e)
				break;
			if (e->d_name[0] != '.')
				sum += atoi(e->d_name);
			if (n == 250) {
				long at = telldir(dir);
				seekdir(dir, at);
			}
		}
		EXPECT(n == 502 ? sum == 500 * 499 / 2 : 1);
		closedir(dir);
	} while (again());
	for (i = 0; i < 500; i++) {
		sprintf(name, "many/%05d", i);
		unlink(name);
	}
	rmdir("many");
	puts("listed");
}

static void appending(void)
{
	int fd = open("log", O_CREAT | O_WRONLY | O_APPEND, 0600), i, who, counts[2] = { 0 };
	char line[16];
	pid_t pid = fork();
	FILE *file;

	who = pid ? 1 : 0;
	for (i = 0; i < 3000; i++) {
		sprintf(line, "%d %05d\n", who, i);
		EXPECT(write(fd, line, 8) == 8);
		if (i % 100 == 0)
			burn(length_ns / 40);
	}
	if (!pid)
		_exit(0);
	EXPECT(wait(NULL) == pid);
	file = fopen("log", "r");
	while (fscanf(file, "%d %d", &who, &i) == 2)
		EXPECT(counts[who]++ == i);
	printf("%d %d\n", counts[0], counts[1]);
	unlink("log");
}

static void locks(void)
{
	int fd = open("l", O_CREAT | O_RDWR, 0600), value = 0, i, status;
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 4 };
	struct flock unlock = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_len = 4 };
	pid_t pid;

	EXPECT(write(fd, &value, 4) == 4);
	pid = fork();
	if (!pid)
		fd = open("l", O_RDWR);
	for (i = 0; i < 200; i++) {
		if (i & 1)
			EXPECT(!fcntl(fd, F_SETLKW, &lock));
		else
			EXPECT(!fcntl(fd, F_OFD_SETLKW, &lock));
		EXPECT(!flock(fd, LOCK_EX));
		EXPECT(pread(fd, &value, 4, 0) == 4);
		value++;
		if (i % 20 == 0)
			usleep(2000);
		EXPECT(pwrite(fd, &value, 4, 0) == 4);
		EXPECT(!flock(fd, LOCK_UN));
		if (i & 1)
			EXPECT(!fcntl(fd, F_SETLK, &unlock));
		else
			EXPECT(!fcntl(fd, F_OFD_SETLK, &unlock));
	}
	if (!pid)
		_exit(0);
	EXPECT(waitpid(pid, &status, 0) == pid && !status);
	EXPECT(pread(fd, &value, 4, 0) == 4);
	EXPECT(!fcntl(fd, F_SETLK, &lock));
	pid = fork();
	if (!pid) {
		EXPECT(!fcntl(fd, F_GETLK, &lock));
		_exit(lock.l_type == F_WRLCK && lock.l_pid == getppid() ? 3 : 4);
	}
	EXPECT(waitpid(pid, &status, 0) == pid);
	printf("%d %d\n", value, WEXITSTATUS(status));
	unlink("l");
}

static void watching(void)
{
	int fd = inotify_init1(0), wd;
	char buffer[4096] __attribute__((aligned(8)));
	struct inotify_event *e = (struct inotify_event *)buffer;

	EXPECT(!mkdir("w", 0700));
	wd = inotify_add_watch(fd, "w", IN_CREATE | IN_DELETE);
	do {
		close(open("w/f", O_CREAT | O_WRONLY, 0600));
		EXPECT(read(fd, buffer, sizeof(buffer)) > 0 && e->wd == wd && e->mask == IN_CREATE &&
		       !strcmp(e->name, "f"));
		unlink("w/f");
		EXPECT(read(fd, buffer, sizeof(buffer)) > 0 && e->mask == IN_DELETE);
	} while (again());
	rmdir("w");
	puts("watched");
}

static void where(void)
{
	char text[PATH_MAX], before[PATH_MAX];

	EXPECT(getcwd(before, sizeof(before)) && !mkdir("x", 0755) && !mkdir("x/y", 0755));
	do {
		EXPECT(!chdir("x/y") && getcwd(text, sizeof(text)));
		EXPECT(!strcmp(text + strlen(text) - 4, "/x/y"));
		int fd = open("..", O_RDONLY | O_DIRECTORY);
		EXPECT(!fchdir(fd));
		close(fd);
		EXPECT(umask(0227) != 0227);
		fd = open("m", O_CREAT | O_WRONLY, 0666);
		struct stat st;
		EXPECT(!fstat(fd, &st) && (st.st_mode & 0777) == 0440);
		EXPECT(umask(022) == 0227);
		close(fd);
		unlink("m");
		EXPECT(!chdir(before));
	} while (again());
	rmdir("x/y");
	rmdir("x");
	puts("there and back");
}

/* ---- waiting for descriptors ---- */

static void multiplexing(void)
{
	int p[2], q[2], ep = epoll_create1(EPOLL_CLOEXEC), n;
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 }, got[4];
	char c;

	EXPECT(!pipe(p) && !pipe2(q, O_NONBLOCK));
	EXPECT(!epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
	do {
		long long from = now(CLOCK_MONOTONIC);
		struct pollfd pf[2] = { { p[0], POLLIN, 0 }, { q[1], POLLOUT, 0 } };
		struct timeval tv = { 0, 30000 };
		struct timespec ts = { 0, 20000000 };
		fd_set r;

		EXPECT(epoll_wait(ep, got, 4, 30) == 0);
		passed(__LINE__, from, 30000000);
		from = now(CLOCK_MONOTONIC);
		EXPECT(poll(pf, 1, 25) == 0);
		passed(__LINE__, from, 25000000);
		from = now(CLOCK_MONOTONIC);
		FD_ZERO(&r);
		FD_SET(p[0], &r);
		EXPECT(syscall(SYS_select, p[0] + 1, &r, NULL, NULL, &tv) == 0 && !FD_ISSET(p[0], &r));
		EXPECT(tv.tv_sec == 0 && tv.tv_usec == 0);
		passed(__LINE__, from, 30000000);
		from = now(CLOCK_MONOTONIC);
		EXPECT(ppoll(pf, 1, &ts, NULL) == 0);
		passed(__LINE__, from, 20000000);
		from = now(CLOCK_MONOTONIC);
		FD_SET(p[0], &r);
		EXPECT(pselect(p[0] + 1, &r, NULL, NULL, &ts, NULL) == 0);
		passed(__LINE__, from, 20000000);
		EXPECT(write(p[1], "x", 1) == 1);
		n = epoll_wait(ep, got, 4, -1);
		EXPECT(n == 1 && got[0].data.u64 == ev.data.u64 && got[0].events == EPOLLIN);
		EXPECT(poll(pf, 2, -1) == 2 && pf[0].revents == POLLIN && pf[1].revents == POLLOUT);
		FD_SET(p[0], &r);
		EXPECT(select(p[0] + 1, &r, NULL, NULL, NULL) == 1 && FD_ISSET(p[0], &r));
		EXPECT(read(p[0], &c, 1) == 1 && c == 'x');
		EXPECT(read(q[0], &c, 1) == -1 && errno == EAGAIN);
	} while (again());
	puts("poll, select, epoll");
}

static void special_descriptors(void)
{
	int ev = eventfd(0, EFD_SEMAPHORE), timer = timerfd_create(CLOCK_MONOTONIC, 0), sfd;
	uint64_t v;
	struct itimerspec its = { { 0, 10000000 }, { 0, 10000000 } };
	sigset_t set = only(SIGUSR2);
	struct signalfd_siginfo si;

	sigprocmask(SIG_BLOCK, &set, NULL);
	sfd = signalfd(-1, &set, 0);
	EXPECT(!timerfd_settime(timer, 0, &its, NULL));
	do {
		v = 3;
		EXPECT(write(ev, &v, 8) == 8);
		EXPECT(read(ev, &v, 8) == 8 && v == 1);
		EXPECT(read(ev, &v, 8) == 8 && read(ev, &v, 8) == 8);
		EXPECT(read(timer, &v, 8) == 8 && v >= 1 && v < 2000);
		EXPECT(!sigqueue(getpid(), SIGUSR2, (union sigval){ .sival_int = 99 }));
		EXPECT(read(sfd, &si, sizeof(si)) == sizeof(si) && si.ssi_signo == SIGUSR2);
		EXPECT(si.ssi_int == 99 && si.ssi_pid == (uint32_t)getpid() && si.ssi_code == SI_QUEUE);
		its.it_value.tv_nsec = 1;
	} while (again());
	/* absolute */
	{
		long long from = now(CLOCK_MONOTONIC), until = from + 60000000;
		struct itimerspec once = { { 0, 0 }, { until / NS, until % NS } };

		EXPECT(!timerfd_settime(timer, TFD_TIMER_ABSTIME, &once, NULL));
		EXPECT(read(timer, &v, 8) == 8 && v == 1);
		passed(__LINE__, from, 60000000);
	}
	puts("eventfd, timerfd, signalfd");
}

/* ---- bytes ---- */

static unsigned char pattern(long i)
{
	return (i * 2654435761u) >> 13;
}

static void through(int from, int to, int vectors)
{
	enum { SIZE = 3 << 20 };
	static unsigned char data[SIZE], got[SIZE];
	long i, n, at;
	pid_t pid;
	int status;

	for (i = 0; i < SIZE; i++)
		data[i] = pattern(i);
	pid = fork();
	if (!pid) {
		close(to);
		for (at = 0;; at += n) {
			n = read(from, got + at, 1 + (at * 7 + 1) % 60000);
			if (n <= 0)
				break;
			if (at % 11 == 0)
				usleep(500);
		}
		EXPECT(n == 0 && at == SIZE && !memcmp(data, got, SIZE));
		_exit(7);
	}
	close(from);
	if (vectors) {
		struct iovec v[4] = { { data, 1000001 },
				      { data + 1000001, 0 },
				      { data + 1000001, 999 },
				      { data + 1001000, SIZE - 1001000 } };
		EXPECT(writev(to, v, 4) == SIZE);
	} else {
		EXPECT(write(to, data, SIZE) == SIZE);
	}
	close(to);
	EXPECT(waitpid(pid, &status, 0) == pid);
	printf("%d\n", WEXITSTATUS(status));
}

static void pipes(void)
{
	int p[2];

	EXPECT(!pipe(p));
	through(p[0], p[1], 0);
	EXPECT(!pipe(p));
	through(p[0], p[1], 1);
	EXPECT(!socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	through(p[0], p[1], 0);
	EXPECT(!socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	through(p[0], p[1], 1);
}

static void messages(void)
{
	int s[2], p[2], fd, i;
	char control[CMSG_SPACE(sizeof(int))], a[10], b[100], c;

	EXPECT(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
	do {
		struct iovec out[2] = { { "abcdef", 6 }, { "0123456789", 10 } }, in[2] = { { a, 10 }, { b, 100 } };
		struct msghdr m = {
			.msg_iov = out, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control)
		};
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		struct mmsghdr mm[3];

		EXPECT(!pipe(p));
		*h = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(h), &p[1], sizeof(int));
		EXPECT(sendmsg(s[0], &m, 0) == 16);
		memset(control, 0, sizeof(control));
		m.msg_iov = in;
		m.msg_controllen = sizeof(control);
		EXPECT(recvmsg(s[1], &m, MSG_CMSG_CLOEXEC) == 16 && !memcmp(a, "abcdef0123", 10) &&
		       !memcmp(b, "456789", 6));
		h = CMSG_FIRSTHDR(&m);
		EXPECT(h && h->cmsg_type == SCM_RIGHTS);
		memcpy(&fd, CMSG_DATA(h), sizeof(int));
		EXPECT(write(fd, "z", 1) == 1 && read(p[0], &c, 1) == 1 && c == 'z');
		EXPECT(fcntl(fd, F_GETFD) == FD_CLOEXEC);
		close(fd);
		close(p[0]);
		close(p[1]);
		memset(mm, 0, sizeof(mm));
		for (i = 0; i < 3; i++) {
			mm[i].msg_hdr.msg_iov = out;
			mm[i].msg_hdr.msg_iovlen = 1 + i % 2;
		}
		EXPECT(sendmmsg(s[0], mm, 3, 0) == 3 && mm[1].msg_len == 16 && mm[2].msg_len == 6);
		for (i = 0; i < 3; i++) {
			mm[i].msg_hdr.msg_iov = in;
			mm[i].msg_hdr.msg_iovlen = 2;
			mm[i].msg_len = 0;
		}
		EXPECT(recvmmsg(s[1], mm, 3, 0, NULL) == 3 && mm[0].msg_len == 6 && mm[1].msg_len == 16);
	} while (again());
	puts("messages");
}

static void local_network(void)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd, client, on = 1, n;
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, peer;
	socklen_t size = sizeof(addr);
	struct timeval wait = { 0, 30000 };
	char text[64];
	int u = socket(AF_INET, SOCK_DGRAM, 0);

	EXPECT(!setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
	EXPECT(!bind(listener, (void *)&addr, size) && !listen(listener, 4) &&
	       !getsockname(listener, (void *)&addr, &size));
	do {
		client = socket(AF_INET, SOCK_STREAM, 0);
		EXPECT(!connect(client, (void *)&addr, sizeof(addr)));
		size = sizeof(peer);
		fd = accept4(listener, (void *)&peer, &size, SOCK_CLOEXEC);
		EXPECT(fd >= 0 && size == sizeof(peer) && peer.sin_addr.s_addr == addr.sin_addr.s_addr);
		EXPECT(send(client, "question", 8, 0) == 8 && recv(fd, text, 64, 0) == 8);
		EXPECT(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)));
		long long from = now(CLOCK_MONOTONIC);
		EXPECT(recv(fd, text, 64, 0) == -1 && errno == EAGAIN);
		passed(__LINE__, from, 20000000);
		EXPECT(!shutdown(client, SHUT_WR) && recv(fd, text, 64, 0) == 0);
		EXPECT(!ioctl(fd, FIONREAD, &n) && n == 0);
		close(fd);
		close(client);
		size = sizeof(peer);
		EXPECT(sendto(u, "d", 1, 0, (void *)&addr, sizeof(addr)) == 1 || errno == ECONNREFUSED);
	} while (again());
	puts("loopback");
}

/* ---- time ---- */

static void clocks(void)
{
	clockid_t ids[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME };
	long long before[2] = { 0 }, t;
	int i;

	do {
		for (i = 0; i < 2; i++) {
			t = now(ids[i]);
			EXPECT(t >= before[i], "clock %d ran back by %lld", i, before[i] - t);
			EXPECT(!before[i] || t - before[i] < 20 * NS, "clock %d jumped", i);
			before[i] = t;
		}
	} while (again());
	puts("clocks");
}

static long long us(struct timeval t)
{
	return t.tv_sec * 1000000LL + t.tv_usec;
}

/* CPU time, which belongs to where the body is. */
static void cpu_clocks(void)
{
	long long before[6] = { 0 }, t[6];
	struct rusage usage;
	struct tms tms;
	int i;

	do {
		t[0] = now(CLOCK_PROCESS_CPUTIME_ID);
		t[1] = now(CLOCK_THREAD_CPUTIME_ID);
		EXPECT(!getrusage(RUSAGE_SELF, &usage));
		t[2] = us(usage.ru_utime) + us(usage.ru_stime) + 1; /* each is rounded down */
		t[3] = us(usage.ru_utime) + 20000;
		times(&tms);
		t[4] = tms.tms_utime + tms.tms_stime + 1;
		t[5] = clock();
		for (i = 0; i < 6; i++) {
			EXPECT(t[i] >= before[i], "%d ran back by %lld", i, before[i] - t[i]);
			before[i] = t[i] - (i == 2 || i == 4) - 20000 * (i == 3);
		}
		EXPECT(t[2] * 1000 >= t[0], "%lld us of %lld ns", t[2], t[0]);
		burn(300000);
	} while (again());
	EXPECT(t[0] > length_ns / 50, "used only %lld ns", t[0]);
	puts("CPU clocks");
}

static void sleeping(void)
{
	do {
		long long from = now(CLOCK_MONOTONIC), until;
		struct timespec t = { 0, 40000000 };

		EXPECT(!nanosleep(&t, NULL));
		passed(__LINE__, from, 40000000);
		from = now(CLOCK_MONOTONIC);
		EXPECT(!clock_nanosleep(CLOCK_BOOTTIME, 0, &t, NULL));
		passed(__LINE__, from, 40000000);
		from = now(CLOCK_MONOTONIC);
		until = from + 50000000;
		t = (struct timespec){ until / NS, until % NS };
		EXPECT(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
		passed(__LINE__, from, 50000000);
		from = now(CLOCK_MONOTONIC);
		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 20000000;
		t.tv_sec += t.tv_nsec / NS;
		t.tv_nsec %= NS;
		EXPECT(!clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL));
	} while (again());
	puts("slept");
}

static void timers(void)
{
	struct itimerval real = { { 0, 10000 }, { 0, 10000 } }, cpu = { { 0, 20000 }, { 0, 20000 } }, got;
	timer_t id;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 5 };
	struct itimerspec its = { { 0, 15000000 }, { 0, 15000000 } };

	catch (SIGALRM, 0);
	catch (SIGVTALRM, 0);
	catch (SIGPROF, 0);
	catch (SIGRTMIN, 0);
	EXPECT(!setitimer(ITIMER_REAL, &real, NULL) && !setitimer(ITIMER_VIRTUAL, &cpu, NULL) &&
	       !setitimer(ITIMER_PROF, &cpu, NULL));
	EXPECT(!timer_create(CLOCK_MONOTONIC, &event, &id) && !timer_settime(id, 0, &its, NULL));
	while (again() || count[SIGALRM] < 5 || count[SIGVTALRM] < 3 || count[SIGPROF] < 3 || count[SIGRTMIN] < 5)
		;
	EXPECT(!getitimer(ITIMER_VIRTUAL, &got) && got.it_interval.tv_usec == 20000);
	EXPECT(!getitimer(ITIMER_REAL, &got) && got.it_interval.tv_usec == 10000);
	EXPECT(last.si_signo != SIGRTMIN || last.si_value.sival_int == 5);
	memset(&real, 0, sizeof(real));
	EXPECT(!setitimer(ITIMER_REAL, &real, NULL) && !setitimer(ITIMER_VIRTUAL, &real, NULL) &&
	       !setitimer(ITIMER_PROF, &real, NULL) && !timer_delete(id));
	count[SIGALRM] = 0;
	EXPECT(alarm(100) == 0 && alarm(1) >= 99);
	while (!count[SIGALRM])
		pause();
	EXPECT(alarm(0) == 0);
	puts("timers");
}

/* ---- signals ---- */

static void signals(void)
{
	sigset_t usr1 = only(SIGUSR1), none = only(0), pending, mask;
	siginfo_t info;
	struct timespec little = { 0, 30000000 }, zero = { 0, 0 };
	int p[2], i;
	struct pollfd pf;
	pid_t pid;

	catch (SIGUSR1, 0);
	catch (SIGCHLD, SA_RESTART);
	EXPECT(!pipe(p));
	pf = (struct pollfd){ p[0], POLLIN, 0 };
	do {
		int before = count[SIGUSR1];

		/* blocked, pending, taken with sigtimedwait */
		sigprocmask(SIG_BLOCK, &usr1, NULL);
		EXPECT(!kill(getpid(), SIGUSR1) && count[SIGUSR1] == before);
		EXPECT(!sigpending(&pending) && sigismember(&pending, SIGUSR1));
		EXPECT(sigtimedwait(&usr1, &info, &little) == SIGUSR1 && info.si_pid == getpid());
		long long from = now(CLOCK_MONOTONIC);
		EXPECT(sigtimedwait(&usr1, NULL, &little) == -1 && errno == EAGAIN);
		passed(__LINE__, from, 30000000);
		EXPECT(sigtimedwait(&usr1, NULL, &zero) == -1 && errno == EAGAIN);
		/* temporary masks: pending before */
		kill(getpid(), SIGUSR1);
		EXPECT(sigsuspend(&none) == -1 && errno == EINTR && count[SIGUSR1] == before + 1);
		kill(getpid(), SIGUSR1);
		EXPECT(ppoll(&pf, 1, NULL, &none) == -1 && errno == EINTR && count[SIGUSR1] == before + 2);
		kill(getpid(), SIGUSR1);
		fd_set r;
		FD_ZERO(&r);
		FD_SET(p[0], &r);
		EXPECT(pselect(p[0] + 1, &r, NULL, NULL, NULL, &none) == -1 && errno == EINTR &&
		       count[SIGUSR1] == before + 3);
		int ep = epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN };
		EXPECT(!epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
		kill(getpid(), SIGUSR1);
		EXPECT(epoll_pwait(ep, &ev, 1, -1, &none) == -1 && errno == EINTR && count[SIGUSR1] == before + 4);
		from = now(CLOCK_MONOTONIC);
		EXPECT(epoll_pwait(ep, &ev, 1, 20, &none) == 0);
		EXPECT(ppoll(&pf, 1, &little, &none) == 0);
		passed(__LINE__, from, 50000000);
		close(ep);
		/* and coming from another process while it waits */
		pid = fork();
		if (!pid) {
			usleep(30000);
			kill(getppid(), SIGUSR1);
			_exit(4);
		}
		while (count[SIGUSR1] < before + 5)
			EXPECT(sigsuspend(&none) == -1 && errno == EINTR);
		sigprocmask(0, NULL, &mask);
		EXPECT(sigismember(&mask, SIGUSR1));
		EXPECT(waitpid(pid, &i, 0) == pid && WEXITSTATUS(i) == 4);
		sigprocmask(SIG_UNBLOCK, &usr1, NULL);
		EXPECT(count[SIGUSR1] == before + 5, "%d", count[SIGUSR1] - before);
	} while (again());
	puts("signals");
}

/* Many signals: one that a process sends to itself is taken before kill returns, and a timer that
 * was stopped is never heard of again. */
static void storm(void)
{
	struct itimerval fast = { { 0, 3000 }, { 0, 3000 } }, off = { { 0, 0 }, { 0, 0 } };
	struct timespec little = { 0, 2000000 };
	int i, before;
	pid_t own = getpid(), me;

	catch (SIGALRM, 0);
	catch (SIGUSR1, SA_RESTART);
	do {
		EXPECT(!setitimer(ITIMER_REAL, &fast, NULL));
		for (i = 0; i < 20; i++) {
			before = count[SIGUSR1];
			errno = 0;
			me = getpid();
			EXPECT(me == own, "%d instead of %d", me, own);
			EXPECT(!kill(me, SIGUSR1));
			EXPECT(count[SIGUSR1] == before + 1, "%d", count[SIGUSR1] - before);
			if (nanosleep(&little, NULL))
				EXPECT(errno == EINTR);
			burn(100000);
		}
		EXPECT(!setitimer(ITIMER_REAL, &off, NULL));
		before = count[SIGALRM];
		burn(2000000);
		EXPECT(access("/", F_OK) == 0 && count[SIGALRM] == before);
	} while (again());
	EXPECT(count[SIGALRM] > 0);
	puts("storm");
}

static sigjmp_buf back;
static volatile int *hole;
static char *alternate;

static void jumping(int signal, siginfo_t *info, void *context)
{
	char here;

	(void)context;
	if (&here < alternate || &here >= alternate + 65536)
		_exit(9);
	if (signal == SIGSEGV && info->si_addr != (void *)hole)
		_exit(8);
	siglongjmp(back, signal);
}

static void repairing(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	if (mprotect((void *)((uintptr_t)info->si_addr & ~4095UL), 4096, PROT_READ | PROT_WRITE))
		_exit(7);
}

static void faults(void)
{
	struct sigaction action = { .sa_sigaction = jumping, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack, got;
	volatile int zero = 0;
	int kinds[4] = { 0 };
	int got_signal;

	alternate = malloc(65536);
	stack = (stack_t){ .ss_sp = alternate, .ss_size = 65536 };
	EXPECT(!sigaltstack(&stack, NULL));
	hole = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	do {
		sigaction(SIGSEGV, &action, NULL);
		sigaction(SIGFPE, &action, NULL);
		sigaction(SIGILL, &action, NULL);
		got_signal = sigsetjmp(back, 1);
		if (!got_signal) {
			*hole = 1;
			exit(6);
		}
		EXPECT(got_signal == SIGSEGV);
		kinds[0]++;
		got_signal = sigsetjmp(back, 1);
		if (!got_signal)
			exit(77 / zero);
		EXPECT(got_signal == SIGFPE);
		got_signal = sigsetjmp(back, 1);
		if (!got_signal)
			__asm__ volatile("ud2");
		EXPECT(got_signal == SIGILL);
		EXPECT(!sigaltstack(NULL, &got) && got.ss_sp == alternate && got.ss_flags == 0);
		struct sigaction repair = { .sa_sigaction = repairing, .sa_flags = SA_SIGINFO };
		sigaction(SIGSEGV, &repair, NULL);
		for (int i = 0; i < 256; i++)
			hole[i * 1024] = i;
		for (int i = 0; i < 256; i++)
			EXPECT(hole[i * 1024] == i);
		EXPECT(!mprotect((void *)hole, 1 << 20, PROT_READ));
	} while (again());
	EXPECT(kinds[0] > 0);
	puts("faults");
}

static void nothing(int signal)
{
	(void)signal;
}

static void restarting(void)
{
	int p[2], status;
	char c;
	pid_t pid;
	struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };

	do {
		EXPECT(!pipe(p));
		sigaction(SIGUSR1, &action, NULL);
		pid = fork();
		if (!pid) {
			usleep(20000);
			kill(getppid(), SIGUSR1);
			usleep(20000);
			kill(getppid(), SIGWINCH);
			usleep(20000);
			EXPECT(write(p[1], "x", 1) == 1);
			_exit(0);
		}
		EXPECT(read(p[0], &c, 1) == 1 && c == 'x');
		EXPECT(waitpid(pid, &status, 0) == pid && !status);
		action.sa_flags = 0;
		sigaction(SIGUSR1, &action, NULL);
		pid = fork();
		if (!pid) {
			for (;;) {
				usleep(20000);
				kill(getppid(), SIGUSR1);
			}
		}
		EXPECT(read(p[0], &c, 1) == -1 && errno == EINTR);
		EXPECT(waitpid(pid, &status, 0) == -1 && errno == EINTR);
		EXPECT(!kill(pid, SIGKILL));
		while (waitpid(pid, &status, 0) < 0)
			EXPECT(errno == EINTR);
		EXPECT(WTERMSIG(status) == SIGKILL);
		action.sa_flags = SA_RESTART;
		close(p[0]);
		close(p[1]);
	} while (again());
	puts("restarted and interrupted");
}

/* ---- identity ---- */

static void identity(void)
{
	pid_t pid = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
	char name[17] = { 0 };
	struct rlimit limit;
	gid_t groups[4];

	EXPECT(!prctl(PR_SET_NAME, "renamed"));
	do {
		burn(1000000);
		EXPECT(getpid() == pid && getppid() == parent && getpgrp() == group && getsid(0) == session);
		EXPECT(gettid() == pid && getpgid(pid) == group);
		EXPECT(!prctl(PR_GET_NAME, name) && !strcmp(name, "renamed"));
		EXPECT(!setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 200, 300 }));
		EXPECT(!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur == 200 && limit.rlim_max == 300);
		EXPECT(dup2(1, 250) == -1 && errno == EBADF);
		EXPECT(dup2(1, 199) == 199 && !close(199));
		EXPECT(!getrlimit(RLIMIT_STACK, &limit));
		EXPECT(nice(0) != -1 || !errno);
		EXPECT(sched_getscheduler(0) == SCHED_OTHER);
		EXPECT(prctl(PR_GET_DUMPABLE) == 1);
	} while (again());
	if (!getuid()) {
		EXPECT(!setgroups(2, (gid_t[]){ 12, 13 }) && getgroups(4, groups) == 2 && groups[1] == 13);
		EXPECT(!setresgid(5, 6, 7) && !setresuid(1000, 1001, 1002));
		EXPECT(getuid() == 1000 && geteuid() == 1001 && getgid() == 5 && getegid() == 6);
		EXPECT(seteuid(1002) == 0 && geteuid() == 1002);
		EXPECT(setuid(0) == -1 && errno == EPERM);
		EXPECT(open("/etc/shadow", O_RDONLY) == -1 && errno == EACCES);
	}
	puts("identity");
}

static void children(void)
{
	int status, i, total = 0;
	siginfo_t info;
	struct rusage usage;
	char text[64];

	do {
		pid_t pid = vfork();
		if (!pid) {
			execl("/bin/sh", "sh", "-c", "exit 3", NULL);
			_exit(127);
		}
		EXPECT(wait4(pid, &status, 0, &usage) == pid && WEXITSTATUS(status) == 3);
		FILE *file = popen("echo from a pipe", "r");
		EXPECT(fgets(text, sizeof(text), file) && !strcmp(text, "from a pipe\n"));
		EXPECT(pclose(file) == 0);
		pid = fork();
		if (!pid) {
			raise(SIGSTOP);
			_exit(5);
		}
		EXPECT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
		EXPECT(waitpid(pid, &status, WNOHANG) == 0);
		kill(pid, SIGCONT);
		EXPECT(!waitid(P_PID, pid, &info, WEXITED | WNOWAIT) && info.si_status == 5);
		EXPECT(!waitid(P_PID, pid, &info, WEXITED) && info.si_pid == pid);
		EXPECT(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
		EXPECT(system("exit 9") == 9 << 8);
		for (i = 0; i < 3; i++)
			if (!fork()) {
				burn(30000000);
				_exit(i);
			}
		for (i = total = 0; i < 3; i++) {
			EXPECT(wait(&status) > 0);
			total += WEXITSTATUS(status);
		}
		EXPECT(total == 3);
	} while (again());
	EXPECT(!getrusage(RUSAGE_CHILDREN, &usage) && usage.ru_utime.tv_usec + usage.ru_utime.tv_sec);
	puts("children");
}

static void across_exec(void)
{
	int kept = open("k", O_CREAT | O_RDWR, 0600), closed = open("k", O_RDONLY | O_CLOEXEC);
	char a[16], b[16];
	sigset_t set = only(SIGUSR2);

	burn(length_ns);
	EXPECT(write(kept, "kept", 4) == 4 && lseek(kept, 1, SEEK_SET) == 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGUSR1, SIG_IGN);
	kill(getpid(), SIGUSR2);
	sprintf(a, "%d", kept);
	sprintf(b, "%d", closed);
	execl("/proc/self/exe", "families", "executed", "300", a, b, NULL);
	fail(__LINE__, "exec", " ");
}

static void executed(const char *a, const char *b)
{
	char text[8] = { 0 };
	sigset_t set;
	struct sigaction action;

	burn(length_ns);
	EXPECT(read(atoi(a), text, 7) == 3 && !strcmp(text, "ept"));
	EXPECT(fcntl(atoi(b), F_GETFD) == -1 && errno == EBADF);
	sigpending(&set);
	EXPECT(sigismember(&set, SIGUSR2));
	sigaction(SIGUSR1, NULL, &action);
	EXPECT(action.sa_handler == SIG_IGN);
	unlink("k");
	puts("executed");
}

static void daemonised(void)
{
	int p[2];
	char text[100];
	long n;
	pid_t session = getsid(0);

	EXPECT(!pipe(p));
	if (!fork()) {
		if (daemon(1, 1))
			_exit(1);
		burn(length_ns);
		dprintf(p[1], "session is own %d, parent is another %d", getsid(0) != session, getppid() != getpid());
		_exit(0);
	}
	close(p[1]);
	wait(NULL);
	n = read(p[0], text, sizeof(text));
	printf("%.*s\n", (int)n, text);
}

/* ---- memory ---- */

static void memory(void)
{
	enum { PAGES = 64 };
	long i, round = 0;

	do {
		char *low = sbrk(0), *top = sbrk(300000);
		EXPECT(low == top);
		memset(top, round, 300000);
		char *m = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		EXPECT(m != MAP_FAILED);
		for (i = 0; i < PAGES; i++)
			m[i * 4096] = i + round;
		EXPECT(!madvise(m + 8 * 4096, 8 * 4096, MADV_DONTNEED));
		m = mremap(m, PAGES * 4096, 4 * PAGES * 4096, MREMAP_MAYMOVE);
		EXPECT(m != MAP_FAILED);
		burn(3000000);
		for (i = 0; i < PAGES; i++)
			EXPECT(m[i * 4096] == (char)(i >= 8 && i < 16 ? 0 : i + round), "page %ld", i);
		EXPECT(m[(4 * PAGES - 1) * 4096] == 0);
		EXPECT(!mprotect(m, 4096, PROT_NONE) && !munmap(m + 4096, 4096));
		EXPECT(!munmap(m, 4 * PAGES * 4096));
		for (i = 0; i < 300000; i++)
			EXPECT(top[i] == (char)round);
		EXPECT(sbrk(-300000) != (void *)-1 && sbrk(0) == low);
		round++;
		char *block = malloc(5 << 20);
		memset(block, 3, 5 << 20);
		block = realloc(block, 9 << 20);
		EXPECT(block[(5 << 20) - 1] == 3);
		free(block);
	} while (again());
	puts("memory");
}

static void shared(void)
{
	int fd = open("s", O_CREAT | O_RDWR, 0600), status;
	char *m;
	volatile int *n;

	EXPECT(!ftruncate(fd, 8192));
	m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	n = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	EXPECT(m != MAP_FAILED && n != MAP_FAILED);
	if (!fork()) {
		strcpy(m + 4096, "child");
		for (int i = 0; i < 1000; i++)
			__sync_fetch_and_add(n, 1);
		_exit(0);
	}
	for (int i = 0; i < 1000; i++)
		__sync_fetch_and_add(n, 1);
	burn(length_ns / 2);
	wait(&status);
	char text[6] = { 0 };
	EXPECT(pread(fd, text, 5, 4096) == 5);
	printf("%s %d\n", text, *n);
	EXPECT(!munmap(m, 8192) && !munmap((void *)n, 4096));
	burn(length_ns / 2);
	unlink("s");
}

__attribute__((target("avx"))) static void vectors(void)
{
	double expected[4], got[4];
	long rounds = 0;

	if (!__builtin_cpu_supports("avx")) {
		puts("vectors");
		return;
	}
	__m256d a = _mm256_set_pd(1, 2, 3, 4), b = _mm256_set_pd(0.5, 0.25, 0.125, 1);
	_mm256_storeu_pd(expected, _mm256_add_pd(a, b));
	do {
		register __m256d x __asm__("ymm9") = a, y __asm__("ymm14") = b;
		for (long i = 0; i < 100000; i++) {
			__asm__ volatile("" : "+x"(x), "+x"(y));
			x = _mm256_sub_pd(_mm256_add_pd(x, y), y);
		}
		_mm256_storeu_pd(got, _mm256_add_pd(x, y));
		EXPECT(!memcmp(got, expected, sizeof(got)), "round %ld", rounds);
		rounds++;
	} while (again());
	puts("vectors");
}

/* ---- /proc ---- */

static long number_in(const char *path, const char *format)
{
	FILE *file = fopen(path, "r");
	char line[4096];
	long number = -1;

	if (!file)
		fail(__LINE__, "open", "%s", path);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, format, &number) == 1)
			break;
	fclose(file);
	return number;
}

/* Our stack is in the maps that are shown: they are the body's, not the ghost's. */
static int shows_stack(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[4096];
	unsigned long start, end, here = (unsigned long)__builtin_frame_address(0);
	int found = 0;

	if (!file)
		fail(__LINE__, "open", "%s", path);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && here >= start && here < end)
			found = strstr(line, "[stack]") != NULL;
	fclose(file);
	return found;
}

static void own_proc(void)
{
	char path[64], text[256] = { 0 };
	char *big = malloc(64 << 20);
	int dir;

	memset(big, 1, 64 << 20);
	EXPECT(!symlink("/proc/self", "self") && !symlink("self/maps", "maps"));
	do {
		burn(10000000);
		EXPECT(shows_stack("/proc/self/maps"));
		EXPECT(number_in("/proc/self/status", "VmRSS: %ld") > 64 << 10);
		EXPECT(number_in("/proc/self/statm", "%ld") > 16 << 10);
		EXPECT(number_in("/proc/self/status", "Pid: %ld") == getpid());
		sprintf(path, "/proc/%d/task/%d/smaps", getpid(), getpid());
		EXPECT(shows_stack(path));
		EXPECT(shows_stack("self/maps") && shows_stack("maps"));
		EXPECT(shows_stack("/proc/../proc/self/maps") && shows_stack("/proc/thread-self/maps"));
		EXPECT(shows_stack("/dev/../proc/self/fd/../maps"));
		dir = open("/proc/self", O_RDONLY | O_DIRECTORY);
		int fd = openat(dir, "maps", O_RDONLY);
		sprintf(path, "/proc/self/fd/%d", fd);
		EXPECT(shows_stack(path));
		EXPECT(!fchdir(dir));
		close(fd);
		close(dir);
		EXPECT(shows_stack("maps") && shows_stack("task/../maps"));
		sprintf(path, "/proc/self/cwd/task/%d/../../maps", getpid());
		EXPECT(shows_stack(path));
		EXPECT(!chdir("/proc") && shows_stack("self/maps") && !chdir("/tmp"));
		/* what is the ghost's as well as the body's */
		EXPECT(readlink("/proc/self/exe", text, sizeof(text)) > 0 && strstr(text, "families"));
		EXPECT(number_in("/proc/sys/kernel/pid_max", "%ld") > 100);
		EXPECT(readlink("/proc/self", text, sizeof(text)) > 0 && atoi(text) == getpid());
		sprintf(path, "%s", getenv("HERE"));
		EXPECT(!chdir(path));
	} while (again());
	unlink("self");
	unlink("maps");
	EXPECT(big[12345678] == 1);
	puts("/proc");
}

/* Ways to one's own maps: each waits for a line of input, to be tried wherever it then is. */
static void paths(void)
{
	static const char *const ways[] = {
		"/proc/self/maps",
		"self/maps",
		"maps_link",
		"/proc/../proc/thread-self/maps",
		"/proc/self/cwd/self/task/../maps",
	};
	char path[64], line[16];
	size_t i;
	int dir;

	EXPECT(!symlink("/proc/self", "self") && !symlink("self/maps", "maps_link"));
	for (i = 0; i < sizeof(ways) / sizeof(ways[0]) + 3; i++) {
		printf("ready %zu\n", i);
		EXPECT(read(0, line, sizeof(line)) > 0);
		if (i < sizeof(ways) / sizeof(ways[0])) {
			EXPECT(shows_stack(ways[i]));
			continue;
		}
		dir = open("/proc/self", O_RDONLY | O_DIRECTORY);
		sprintf(path, "task/%d/maps", getpid());
		if (i % 3 == 0) {
			int fd = openat(dir, path, O_RDONLY), copy = dup2(fd, 90);

			EXPECT(copy == 90 && shows_stack("/dev/fd/90"));
			close(fd);
			close(copy);
		} else {
			EXPECT(!fchdir(dir) && shows_stack(i % 3 == 1 ? "maps" : path));
			EXPECT(!chdir("/node"));
		}
		close(dir);
	}
	unlink("self");
	unlink("maps_link");
	puts("paths");
}

static const struct {
	const char *name;
	void (*run)(void);
} families[] = {
	{ "at_files", at_files },
	{ "listing", listing },
	{ "appending", appending },
	{ "locks", locks },
	{ "watching", watching },
	{ "where", where },
	{ "multiplexing", multiplexing },
	{ "special", special_descriptors },
	{ "pipes", pipes },
	{ "messages", messages },
	{ "network", local_network },
	{ "clocks", clocks },
	{ "cpu", cpu_clocks },
	{ "sleeping", sleeping },
	{ "timers", timers },
	{ "signals", signals },
	{ "storm", storm },
	{ "faults", faults },
	{ "restarting", restarting },
	{ "identity", identity },
	{ "children", children },
	{ "exec", across_exec },
	{ "daemon", daemonised },
	{ "memory", memory },
	{ "shared", shared },
	{ "vectors", vectors },
	{ "proc", own_proc },
	{ "paths", paths },
};

int main(int argc, char **argv)
{
	size_t i;

	length_ns = (argc > 2 ? atoi(argv[2]) : 500) * 1000000LL;
	begin_ns = now(CLOCK_MONOTONIC);
	setvbuf(stdout, NULL, _IOLBF, 0);
	stop_file = argc == 4 ? argv[3] : NULL;
	if (argc == 5) {
		executed(argv[3], argv[4]);
		return 0;
	}
	for (i = 0; i < sizeof(families) / sizeof(families[0]); i++)
		if (argc > 1 && !strcmp(argv[1], families[i].name)) {
			families[i].run();
			return 0;
		}
	for (i = 0; i < sizeof(families) / sizeof(families[0]); i++)
		puts(families[i].name);
	return 2;
}
