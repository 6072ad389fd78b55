// SPDX-License-Identifier: GPL-2.0
/* What is promised here is described in listener.h. */
#include "listener.h"
#include "cputime.h"
#include "interface.h"
#include "parked.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define SYNC_WAKE_UP 1UL

#define MAX_ASKED 256
#define PAGE 4096ul
#define STACK_BYTES (64u << 10)

/* Shared with the survivor, who trusts nothing in it but that these may be ids. */
struct memory {
	struct seccomp_notif received;
	volatile uint64_t asked[MAX_ASKED];
};

_Static_assert(sizeof(struct memory) <= MX_LISTENER_MEMORY, "too many questions");

enum state { FREE, NEW, TAKEN };

struct mx_listener {
	int fd;
	int device; /* `fd` is /dev/mosix */
	int event;
	int restarting;
	struct memory *memory;
	pthread_mutex_t lock; /* of all below, and of memory->asked */
	enum state states[MAX_ASKED];
	struct mx_asked asked[MAX_ASKED];
	struct mx_cputime *cputime;
};

static int send_back(int fd, uint64_t id, int64_t result, int go_on)
{
	struct seccomp_notif_resp response = { .id = id };

	if (go_on)
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	else if (result < 0)
		response.error = result;
	else
		response.val = result;
	while (ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int answer(struct mx_listener *l, uint64_t id, int64_t result, int go_on)
{
	if (l->device)
		return mx_parked_answer(l->fd, mx_parked_reply(id, result, go_on));
	return send_back(l->fd, id, result, go_on);
}

/* As `receive`.  Signals of the callers wait for the answer, as behind a listener. */
static int receive_parked(int device, struct seccomp_notif *into)
{
	struct mosix_request request;

	if (read(device, &request, sizeof(request)) < 0)
		return errno == EINTR ? 0 : -errno;
	*into = mx_parked_notif(&request);
	return request.kind == MOSIX_CALL;
}

/* 1: there is a notification; 0: look again; else -errno. */
static int receive(int fd, struct seccomp_notif *into)
{
	struct pollfd hup = { fd, 0, 0 };

	/* The kernel wants it zeroed.  What was in it has been answered, or stands in the table. */
	memset(into, 0, sizeof(*into));
	if (!ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, into))
		return 1;
	if (errno == EINTR)
		return 0;
	if (errno == ENOENT && !(poll(&hup, 1, 0) == 1 && hup.revents & POLLHUP))
		return 0; /* it vanished before it was taken */
	return -errno;
}

/* The start of a path, which may end right before memory that is not there. */
static const char *peek_name(int tid, uint64_t address, char *path, size_t size)
{
	size_t first = PAGE - address % PAGE;
	struct iovec here = { path, size - 1 }, there[2] = { { (void *)address, size - 1 }, { 0 } };
	ssize_t n;

	if (first < size - 1) {
		there[0].iov_len = first;
		there[1] = (struct iovec){ (void *)(address + first), size - 1 - first };
	}
	n = process_vm_readv(tid, &here, 1, there, 2, 0);
	if (n <= 0)
		return NULL;
	path[n] = 0;
	return mx_interface_name(path);
}

static int is_question(const struct seccomp_notif *n, struct mx_asked *asked)
{
	char path[sizeof(MX_INTERFACE_DIRECTORY) + MX_INTERFACE_NAME];
	int first = n->data.nr == SYS_openat;
	const char *name;

	if (!first && n->data.nr != SYS_open)
		return 0;
	if (!mx_interface_flags(n->data.args[first + 1]))
		return 0;
	name = peek_name(n->pid, n->data.args[first], path, sizeof(path));
	if (!name)
		return 0;
	*asked = (struct mx_asked){
		.id = n->id,
		.tid = n->pid,
		.flags = n->data.args[first + 1],
		.value = n->data.args[first + 2],
	};
	strcpy(asked->name, name);
	return 1;
}

static int keep(struct mx_listener *l, const struct mx_asked *asked)
{
	uint64_t one = 1;
	int i, again;

	pthread_mutex_lock(&l->lock);
	again = asked->tid == l->restarting;
	for (i = 0; !again && i < MAX_ASKED; i++) {
		if (l->states[i] != FREE)
			continue;
		l->asked[i] = *asked;
		l->states[i] = NEW;
		l->memory->asked[i] = asked->id;
		break;
	}
	pthread_mutex_unlock(&l->lock);
	if (again)
		return answer(l, asked->id, -MX_ERESTARTNOINTR, 0);
	if (i == MAX_ASKED)
		return answer(l, asked->id, -EAGAIN, 0);
	while (write(l->event, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	return 0;
}

static int knows(struct mx_listener *l, const struct seccomp_notif *n, int64_t *result)
{
	int known;

	pthread_mutex_lock(&l->lock);
	known = mx_cputime_answer(&l->cputime, l->fd, n, result);
	pthread_mutex_unlock(&l->lock);
	return known;
}

static void *serve(void *listener)
{
	struct mx_listener *l = listener;
	struct seccomp_notif *n = &l->memory->received;
	struct mx_asked asked;
	int64_t result;

	for (;;) {
		int got = l->device ? receive_parked(l->fd, n) : receive(l->fd, n);

		if (got < 0)
			return NULL;
		if (!got)
			continue;
		if (is_question(n, &asked))
			keep(l, &asked);
		else if (knows(l, n, &result))
			answer(l, n->id, result, 0);
		else
			answer(l, n->id, 0, 1);
	}
}

int mx_listener_take(struct mx_listener *l, struct mx_asked *asked)
{
	int i;

	pthread_mutex_lock(&l->lock);
	for (i = 0; i < MAX_ASKED && l->states[i] != NEW; i++)
		;
	if (i < MAX_ASKED) {
		l->states[i] = TAKEN;
		*asked = l->asked[i];
	}
	pthread_mutex_unlock(&l->lock);
	return i < MAX_ASKED;
}

/* The place in the table stays until the answer is given: whoever survives us knows it. */
static int end(struct mx_listener *l, uint64_t id, int64_t result, int go_on)
{
	int i, error = -ENOENT;

	pthread_mutex_lock(&l->lock);
	for (i = 0; i < MAX_ASKED; i++) {
		if (l->states[i] == FREE || l->asked[i].id != id)
			continue;
		error = answer(l, id, result, go_on);
		l->states[i] = FREE;
		l->memory->asked[i] = 0;
		break;
	}
	pthread_mutex_unlock(&l->lock);
	return error;
}

int mx_listener_answer(struct mx_listener *l, uint64_t id, int64_t result)
{
	return end(l, id, result, 0);
}

int mx_listener_go_on(struct mx_listener *l, uint64_t id)
{
	return end(l, id, 0, 1);
}

void mx_listener_restart(struct mx_listener *l, int tid)
{
	int i;

	pthread_mutex_lock(&l->lock);
	l->restarting = tid;
	for (i = 0; tid && i < MAX_ASKED; i++) {
		if (l->states[i] == FREE || l->asked[i].tid != tid)
			continue;
		answer(l, l->asked[i].id, -MX_ERESTARTNOINTR, 0);
		l->states[i] = FREE;
		l->memory->asked[i] = 0;
	}
	pthread_mutex_unlock(&l->lock);
}

int mx_listener_came_home(struct mx_listener *l, int pid, int64_t user_ns, int64_t system_ns)
{
	int error;

	pthread_mutex_lock(&l->lock);
	error = mx_cputime_add(&l->cputime, pid, user_ns, system_ns);
	pthread_mutex_unlock(&l->lock);
	return error;
}

void mx_listener_not_here(struct mx_listener *l, int pid)
{
	pthread_mutex_lock(&l->lock);
	mx_cputime_remove(&l->cputime, pid);
	pthread_mutex_unlock(&l->lock);
}

int mx_listener_cpu_time(struct mx_listener *l, int pid, int64_t *used)
{
	int error;

	pthread_mutex_lock(&l->lock);
	error = mx_cputime_used(l->cputime, pid, used);
	pthread_mutex_unlock(&l->lock);
	return error;
}

const char *mx_listener_special(int i)
{
	static const char *const names[] = { MX_INTERFACE_NAMES };

	return i >= 0 && i < (int)(sizeof(names) / sizeof(names[0])) ? names[i] : NULL;
}

/* Waits until whoever served before has ended. */
static struct memory *map_locked(int memory)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	while (fcntl(memory, F_SETLKW, &lock) < 0)
		if (errno != EINTR)
			return MAP_FAILED;
	return mmap(NULL, MX_LISTENER_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
}

static struct memory *own_memory(void)
{
	return mmap(NULL, MX_LISTENER_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

struct mx_listener *mx_listener_start(int listener, int memory, int event)
{
	struct mx_listener *l = calloc(1, sizeof(*l));
	sigset_t all, before;
	pthread_attr_t small;
	pthread_t thread;
	int error;

	if (!l)
		return NULL;
	l->fd = listener;
	l->device = memory < 0;
	l->event = event;
	l->memory = l->device ? own_memory() : map_locked(memory);
	if (l->memory == MAP_FAILED) {
		free(l);
		return NULL;
	}
	pthread_mutex_init(&l->lock, NULL);
	/* The flags are the argument itself, not behind a pointer.  Linux 6.6; else slower. */
	if (!l->device)
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
	/* Signals are for the thread that handles them; there may be thousands of deputies. */
	sigfillset(&all);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_BYTES);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, &small, serve, l);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&small);
	if (error) {
		munmap(l->memory, MX_LISTENER_MEMORY);
		free(l);
		errno = error;
		return NULL;
	}
	return l;
}

int mx_listener_survive(int listener, int memory)
{
	struct memory *m = map_locked(memory);
	int i, got;

	if (m == MAP_FAILED)
		return -errno;
	if (m->received.id)
		send_back(listener, m->received.id, 0, 1);
	for (i = 0; i < MAX_ASKED; i++)
		if (m->asked[i])
			send_back(listener, m->asked[i], 0, 1);
	do {
		got = receive(listener, &m->received);
		if (got > 0)
			send_back(listener, m->received.id, 0, 1);
	} while (got >= 0);
	munmap(m, MX_LISTENER_MEMORY);
	return got == -ENOENT ? 0 : got;
}
