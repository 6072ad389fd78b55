// SPDX-License-Identifier: GPL-2.0
/* Makes any program a guest before its main(): preloaded, or linked into a static one.
 * MX_FILTER names a file of struct sock_filter, MX_SOCKET a descriptor that takes the listener,
 * MX_FLAGS the flags of seccomp(2).  The first thread gets the filter; a second one, that has
 * none, sends the listener away.  Without a listener it stops, for whoever takes its calls otherwise. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static sem_t installed;
static int listener, sock;

static void *send_listener(void *unused)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { "l", 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

	while (sem_wait(&installed))
		;
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &listener, sizeof(int));
	sendmsg(sock, &message, 0);
	close(sock);
	close(listener);
	return unused;
}

__attribute__((constructor)) static void become_guest(void)
{
	static struct sock_filter code[4096];
	struct sock_fprog program = { .filter = code };
	const char *path = getenv("MX_FILTER");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	pthread_t thread;

	if (fd < 0)
		return;
	program.len = read(fd, code, sizeof(code)) / sizeof(code[0]);
	close(fd);
	sock = atoi(getenv("MX_SOCKET"));
	long flags = atol(getenv("MX_FLAGS"));
	unsetenv("MX_FILTER");
	unsetenv("MX_SOCKET");
	unsetenv("MX_FLAGS");
	unsetenv("LD_PRELOAD");
	sem_init(&installed, 0, 0);
	if (!(flags & SECCOMP_FILTER_FLAG_NEW_LISTENER)) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) || raise(SIGSTOP))
			abort();
		return;
	}
	if (pthread_create(&thread, NULL, send_listener, NULL))
		abort();
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		abort();
	listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	if (listener < 0)
		abort();
	sem_post(&installed);
	pthread_join(thread, NULL);
}
