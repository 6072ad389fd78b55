// SPDX-License-Identifier: GPL-2.0
/* Makes calls of every shape and prints what came back: the same wherever they are made. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int line;

static void say(const char *what, long result)
{
	printf("%d %s %ld %s\n", ++line, what, result, result < 0 ? strerrorname_np(errno) : "");
}
#define SAY(call) say(#call, (long)(call))

static unsigned sum(const void *p, size_t n)
{
	const unsigned char *c = p;
	unsigned s = 1;

	while (n--)
		s = s * 31 + *c++;
	return s;
}

static void files(void)
{
	char a[10], b[100] = { 0 }, *big = malloc(12 << 20);
	struct iovec v[3] = { { a, 3 }, { b, 50 }, { a + 5, 4 } };
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10 };
	struct statx sx;
	struct statfs sf;
	int fd, other, i, flag;

	SAY(fd = open("work", O_RDWR | O_CREAT | O_TRUNC, 0640));
	for (i = 0; i < 12 << 20; i++)
		big[i] = i * 2654435761u >> 13;
	SAY(write(fd, big, 12 << 20));
	SAY(lseek(fd, 100, SEEK_SET));
	SAY(readv(fd, v, 3));
	say("sum", sum(b, 50) ^ sum(a, 3) ^ sum(a + 5, 4));
	SAY(pwritev(fd, v, 3, 5000));
	SAY(preadv(fd, v, 2, 4000));
	say("sum", sum(b, 50));
	SAY(preadv2(fd, v, 2, 4100, 0));
	SAY(preadv2(fd, v, 2, -1, 0));
	SAY(pwritev2(fd, v, 2, 9000, RWF_DSYNC));
	say("position", lseek(fd, 0, SEEK_CUR));
	memset(a, 'x', sizeof(a));
	SAY(sum(a, sizeof(a)));
	SAY(writev(fd, v, 0));
	SAY(read(fd, NULL, 0));
	lseek(fd, 0, SEEK_SET);
	memset(big, 0, 12 << 20);
	SAY(read(fd, big, 12 << 20));
	say("sum", sum(big, 12 << 20));
	SAY(pread(fd, big, 10 << 20, 3 << 20));
	say("sum", sum(big, 9 << 20));
	SAY(pwrite(fd, big, 9 << 20, 1 << 20));
	v[0] = (struct iovec){ big, 5 << 20 };
	v[1] = (struct iovec){ big + (6 << 20), 5 << 20 };
	SAY(pwritev(fd, v, 2, 0));
	memset(big, 0, 12 << 20);
	SAY(preadv(fd, v, 2, 0));
	say("sum", sum(big, 12 << 20));
	SAY(fcntl(fd, F_SETLK, &lock));
	lock.l_type = F_RDLCK;
	SAY(fcntl(fd, F_GETLK, &lock));
	say("type", lock.l_type);
	SAY(fcntl(fd, F_GETFL));
	SAY(fcntl(fd, F_DUPFD, 50));
	SAY(dup2(fd, 77));
	SAY(close(77));
	SAY(close(77));
	SAY(statx(AT_FDCWD, "work", 0, STATX_ALL, &sx));
	say("size", sx.stx_size);
	SAY(statfs(".", &sf));
	say("type", sf.f_type);
	SAY(fsetxattr(fd, "user.x", "value", 5, 0));
	memset(b, 0, sizeof(b));
	SAY(getxattr("work", "user.x", b, sizeof(b)));
	puts(b);
	SAY(getxattr("work", "user.none", b, sizeof(b)));
	SAY(listxattr("work", NULL, 0));
	SAY(readlink("link", b, 3));
	say("b", sum(b, 4));
	SAY(access("none", R_OK));
	SAY(open("", O_RDONLY));
	memset(big, 'x', 5000);
	big[5000] = 0;
	SAY(ioctl(fd, FIONREAD, &flag));
	SAY(ioctl(fd, TCGETS, b));
	SAY(isatty(1));
	SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100));
	SAY(other = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600));
	SAY(copy_file_range(fd, &(off64_t){ 10 }, other, NULL, 1000, 0));
	SAY(sendfile(other, fd, &(off_t){ 3 }, 100));
	say("length", lseek(other, 0, SEEK_END));
	SAY(ftruncate(fd, 3));
	SAY(renameat2(AT_FDCWD, "copy", AT_FDCWD, "work", RENAME_NOREPLACE));
	SAY(unlink("copy"));
	SAY(chdir("sub"));
	SAY((long)strlen(getcwd(big, 4096)) > 3);
	SAY(chdir(".."));
	SAY(mkdir("new", 0700));
	SAY(rmdir("new"));
	SAY(utimensat(AT_FDCWD, "work", (struct timespec[2]){ { 5, 6 }, { 7, 8 } }, 0));
	close(fd);
	close(other);
	unlink("work");
	free(big);
}

static void sockets(void)
{
	char data[64] = "0123456789", in[64] = { 0 }, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec v[2] = { { data, 4 }, { data + 6, 3 } }, w[2] = { { in, 2 }, { in + 10, 40 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	struct sockaddr_in name = { AF_INET, 0, { htonl(INADDR_LOOPBACK) }, { 0 } }, peer;
	struct mmsghdr many[3];
	struct sockaddr_un from;
	struct linger linger;
	socklen_t size;
	int s[2], u[2], l, t, a, flag = 1, i, fds[2];

	SAY(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &s[0], sizeof(int));
	SAY(sendmsg(s[0], &m, 0));
	m = (struct msghdr){ .msg_iov = w,
			     .msg_iovlen = 2,
			     .msg_control = control,
			     .msg_controllen = sizeof(control),
			     .msg_name = &from,
			     .msg_namelen = sizeof(from) };
	SAY(recvmsg(s[1], &m, 0));
	say("namelen", m.msg_namelen);
	say("controllen", m.msg_controllen);
	say("flags", m.msg_flags);
	say("data", sum(in, sizeof(in)));
	memcpy(&flag, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	SAY(write(flag, "abc", 3));
	SAY(close(flag));
	SAY(recv(s[1], in, 60, MSG_DONTWAIT | MSG_PEEK));
	SAY(recv(s[1], in, 3, MSG_WAITALL));
	SAY(recv(s[1], in, 60, MSG_DONTWAIT));
	SAY(ioctl(s[0], FIONBIO, &(int){ 1 }));
	SAY(read(s[0], in, 1));
	SAY(socketpair(AF_UNIX, SOCK_DGRAM, 0, u));
	memset(many, 0, sizeof(many));
	for (i = 0; i < 3; i++)
		many[i].msg_hdr = (struct msghdr){ .msg_iov = v, .msg_iovlen = 1 + (i & 1) };
	SAY(sendmmsg(u[0], many, 3, 0));
	say("lengths", many[0].msg_len * 100 + many[1].msg_len * 10 + many[2].msg_len);
	memset(in, 0, sizeof(in));
	for (i = 0; i < 3; i++)
		many[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = w, .msg_iovlen = 1 + (i & 1) } };
	SAY(recvmmsg(u[1], many, 3, 0, &(struct timespec){ 1, 0 }));
	say("lengths", many[0].msg_len * 100 + many[1].msg_len * 10 + many[2].msg_len);
	say("data", sum(in, sizeof(in)));
	SAY(recvmmsg(u[1], many, 3, MSG_DONTWAIT, NULL));
	SAY(l = socket(AF_INET, SOCK_STREAM, 0));
	SAY(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &flag, sizeof(flag)));
	SAY(bind(l, (struct sockaddr *)&name, sizeof(name)));
	SAY(listen(l, 5));
	size = sizeof(name);
	SAY(getsockname(l, (struct sockaddr *)&name, &size));
	say("size", size);
	SAY(t = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	SAY(connect(t, (struct sockaddr *)&name, sizeof(name)));
	size = 4;
	SAY(a = accept4(l, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC));
	say("size", size);
	say("family", peer.sin_family);
	size = sizeof(linger);
	SAY(getsockopt(a, SOL_SOCKET, SO_LINGER, &linger, &size));
	say("linger", linger.l_onoff * 100 + size);
	size = sizeof(flag);
	SAY(getsockopt(t, SOL_SOCKET, SO_ERROR, &flag, &size));
	say("error", flag);
	SAY(sendto(a, "hello", 5, MSG_NOSIGNAL, NULL, 0));
	SAY(recvfrom(t, in, sizeof(in), 0, NULL, NULL));
	SAY(shutdown(a, SHUT_RDWR));
	SAY(recv(t, in, 1, 0));
	SAY(pipe2(fds, O_NONBLOCK));
	SAY(fcntl(fds[1], F_SETPIPE_SZ, 8192));
	SAY(write(fds[1], control, 0));
	char *much = calloc(1, 6 << 20);
	SAY(write(fds[1], much, 6 << 20));
	SAY(read(fds[0], much, 6 << 20));
	SAY(read(fds[0], much, 6 << 20));
	free(much);
	for (i = 0; i < 2; i++) {
		close(s[i]);
		close(u[i]);
		close(fds[i]);
	}
	close(l);
	close(t);
	close(a);
}

static void waits(void)
{
	struct pollfd p[2];
	struct epoll_event e = { EPOLLIN, { .u64 = 0x123456789abcULL } }, got[4];
	struct itimerspec its = { { 0, 0 }, { 0, 2000000 } };
	struct timeval tv = { 0, 1000 };
	struct timespec ts = { 0, 1000000 };
	char buffer[512];
	uint64_t n = 5;
	fd_set set;
	int fds[2], ep, tf, ino;

	SAY(pipe(fds));
	p[0] = (struct pollfd){ fds[0], POLLIN, 0 };
	p[1] = (struct pollfd){ fds[1], POLLOUT, 0 };
	SAY(poll(p, 2, 10));
	say("revents", p[0].revents * 100 + p[1].revents);
	SAY(poll(p, 1, 1));
	SAY(poll(NULL, 0, 1));
	SAY(ppoll(p, 2, &ts, NULL));
	FD_ZERO(&set);
	FD_SET(fds[0], &set);
	SAY(select(fds[0] + 1, &set, NULL, NULL, &tv));
	say("left", tv.tv_sec * 1000000 + tv.tv_usec);
	FD_SET(fds[1], &set);
	SAY(select(fds[1] + 1, NULL, &set, NULL, NULL));
	SAY(FD_ISSET(fds[1], &set) != 0);
	SAY(pselect(0, NULL, NULL, NULL, &ts, NULL));
	SAY(ep = epoll_create1(0));
	SAY(epoll_ctl(ep, EPOLL_CTL_ADD, fds[0], &e));
	SAY(epoll_wait(ep, got, 4, 1));
	SAY(write(fds[1], "x", 1));
	SAY(epoll_wait(ep, got, 4, 1000));
	say("data", got[0].data.u64);
	SAY(epoll_pwait2(ep, got, 4, &ts, NULL));
	SAY(eventfd(3, EFD_NONBLOCK));
	SAY(write(eventfd(0, 0), &n, 8));
	SAY(tf = timerfd_create(CLOCK_MONOTONIC, 0));
	SAY(timerfd_settime(tf, 0, &its, NULL));
	SAY(read(tf, &n, 8));
	say("n", n);
	SAY(ino = inotify_init1(IN_NONBLOCK));
	SAY(inotify_add_watch(ino, ".", IN_CREATE));
	close(open("seen", O_CREAT | O_WRONLY, 0600));
	SAY(read(ino, buffer, sizeof(buffer)));
	unlink("seen");
	SAY(nanosleep(&ts, NULL));
	SAY(usleep(100));
	ts.tv_nsec = -1;
	SAY(nanosleep(&ts, NULL));
	SAY(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &(struct timespec){ 1, 0 }, NULL));
	SAY(nanosleep((void *)8, NULL));
	SAY(wait(NULL));
	SAY(waitid(P_ALL, 0, (siginfo_t *)buffer, WEXITED | WNOHANG));
}

static int handled;

static void handler(int signal)
{
	handled = signal;
}

static void identity(void)
{
	struct sigaction action = { .sa_handler = handler }, old;
	struct rlimit limit;
	struct utsname name;
	struct rusage usage;
	struct timespec ts;
	struct itimerval it = { { 0, 0 }, { 100, 0 } };
	struct tms tms;
	cpu_set_t cpus;
	sigset_t set, was;
	char comm[16], some[8];
	int ids[3], id;
	struct {
		long type;
		char text[20];
	} message = { 7, "message" };

	SAY(getuid());
	SAY(getgid());
	SAY(getresuid((uid_t *)ids, (uid_t *)ids + 1, (uid_t *)ids + 2));
	say("ids", ids[0] + ids[1] + ids[2]);
	SAY(getgroups(0, NULL) >= 0);
	SAY(syscall(SYS_getgroups, -1, &set));
	SAY(getpid() == gettid());
	SAY(getsid(0) > 0);
	SAY(umask(022));
	SAY(umask(022));
	SAY(uname(&name));
	puts(name.release);
	SAY(sigaction(SIGUSR1, &action, NULL));
	SAY(sigaction(SIGUSR1, NULL, &old));
	SAY(old.sa_handler == handler);
	SAY(sigaction(SIGKILL, &action, NULL));
	SAY(sigaction(SIGUSR2, &(struct sigaction){ .sa_handler = SIG_IGN }, &old));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	SAY(sigprocmask(SIG_BLOCK, &set, &was));
	SAY(sigismember(&was, SIGUSR1));
	SAY(kill(getpid(), SIGUSR1));
	SAY(sigpending(&set));
	memset(some, 'x', sizeof(some));
	SAY(syscall(SYS_rt_sigpending, some, 5));
	SAY(some[4] != 'x' && some[5] == 'x' && some[7] == 'x');
	SAY(syscall(SYS_rt_sigpending, NULL, 0));
	SAY(sigismember(&set, SIGUSR1));
	SAY(kill(getpid(), SIGUSR2));
	SAY(sigpending(&set));
	SAY(sigismember(&set, SIGUSR2));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	siginfo_t info;
	SAY(sigtimedwait(&set, &info, &(struct timespec){ 1, 0 }));
	say("code", info.si_code);
	SAY(sigtimedwait(&set, NULL, &(struct timespec){ 0, 1000 }));
	SAY(signalfd(-1, &set, SFD_NONBLOCK) > 0);
	SAY(sigprocmask(99, &set, NULL));
	/* ignored when it was sent: a handler installed later never sees it */
	action.sa_handler = handler;
	SAY(sigaction(SIGUSR2, &action, NULL));
	SAY(sigaction(SIGUSR2, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL));
	/* blocked by the program itself and ignored: kept, as natively */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	SAY(sigprocmask(SIG_BLOCK, &set, NULL));
	SAY(kill(getpid(), SIGCHLD));
	SAY(sigpending(&set));
	SAY(sigismember(&set, SIGCHLD));
	SAY(sigaction(SIGCHLD, &action, NULL));
	SAY(sigpending(&set));
	SAY(sigismember(&set, SIGCHLD));
	SAY(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = 200;
	SAY(setrlimit(RLIMIT_NOFILE, &limit));
	SAY(getrlimit(RLIMIT_NOFILE, &limit));
	say("limit", limit.rlim_cur);
	SAY(getpriority(PRIO_PROCESS, 0));
	SAY(setpriority(PRIO_PROCESS, 0, 1));
	SAY(getpriority(PRIO_PROCESS, 0));
	SAY(sched_getaffinity(0, sizeof(cpus), &cpus));
	SAY(sched_setaffinity(0, sizeof(cpus), &cpus));
	SAY(prctl(PR_SET_NAME, "renamed"));
	SAY(prctl(PR_GET_NAME, comm));
	puts(comm);
	SAY(prctl(PR_SET_PDEATHSIG, 0));
	SAY(prctl(PR_GET_PDEATHSIG, ids));
	SAY(setitimer(ITIMER_REAL, &it, NULL));
	SAY(getitimer(ITIMER_REAL, &it));
	SAY(it.it_value.tv_sec > 90);
	SAY(alarm(0) > 90);
	SAY(getrusage(RUSAGE_SELF, &usage));
	SAY(usage.ru_utime.tv_sec < 10);
	SAY(getrusage(RUSAGE_CHILDREN, &usage));
	SAY(times(&tms) > 0);
	SAY(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts));
	SAY(ts.tv_sec < 10 && (ts.tv_sec || ts.tv_nsec));
	SAY(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts));
	SAY(id = msgget(IPC_PRIVATE, 0600) >= 0 ? 0 : -1);
	id = msgget(IPC_PRIVATE, 0600);
	SAY(msgsnd(id, &message, 8, 0));
	memset(&message, 0, sizeof(message));
	SAY(msgrcv(id, &message, 20, 7, 0));
	puts(message.text);
	SAY(msgrcv(id, &message, 20, 7, IPC_NOWAIT));
	SAY(msgctl(id, IPC_RMID, NULL));
	id = semget(IPC_PRIVATE, 1, 0600);
	SAY(semop(id, &(struct sembuf){ 0, 1, 0 }, 1));
	SAY(semctl(id, 0, GETVAL));
	SAY(semctl(id, 0, IPC_RMID));
	SAY(memfd_create("m", 0) > 0);
	SAY(syscall(SYS_close_range, 3, 1000, 0));
	SAY(write(900, "x", 1));
	SAY(dup2(1, 900));
	SAY(close(900));
	say("handled", handled);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	files();
	sockets();
	waits();
	fflush(stdout);
	identity();
	fflush(stdout);
	return 7;
}
