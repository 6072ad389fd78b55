// SPDX-License-Identifier: GPL-2.0
/* What is promised here is described in cputime.h. */
#include "cputime.h"
#include "parked.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define TICK_NS (NS / 100) /* USER_HZ */
#define SECTOR_SHIFT 9
/* Enough for all of /proc that is read here, but for thousands of groups. */
#define TEXT 8192

enum { USER, SYSTEM };

/* Of a process, or of its first thread. */
struct account {
	int64_t away[2]; /* used on all nodes minus what home's kernel says; may be negative */
	int64_t told[2];
};

struct mx_cputime {
	struct mx_cputime *next;
	int pid;
	int pidfd; /* -1: there was no descriptor; only tells a reused number */
	struct account process, thread;
};

/* What home's kernel says. */
struct counted {
	int64_t ns;
	unsigned long ticks[2], of_children[2];
	unsigned long minor, major;
};

static int read_text(int pid, int thread, const char *name, char text[TEXT])
{
	char path[64];
	ssize_t n;
	int fd;

	if (thread)
		snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, pid, name);
	else
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, TEXT - 1);
	close(fd);
	if (n <= 0)
		return -ESRCH;
	text[n] = 0;
	return 0;
}

/* ns of a process, or of its first thread: exactly, since that is not running. */
static int64_t clock_of(int pid, int thread)
{
	char text[TEXT];
	struct timespec t;
	long long ns;

	/* clock_getcpuclockid(3).  The clock of a thread can be read only in its own process.  Where the kernel does not
	 * count in schedstat the process's is all there is. */
	if (thread && !read_text(pid, 1, "schedstat", text) && sscanf(text, "%lld", &ns) == 1 && ns)
		return ns;
	if (clock_gettime(((clockid_t)~pid << 3) | 2, &t))
		return -errno;
	return t.tv_sec * NS + t.tv_nsec;
}

static int count(int pid, int thread, struct counted *c)
{
	char text[TEXT], *p;
	int error = read_text(pid, thread, "stat", text);

	if (error)
		return error;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %lu %*u %lu %*u %lu %lu %lu %lu", &c->minor, &c->major,
			 &c->ticks[USER], &c->ticks[SYSTEM], &c->of_children[USER], &c->of_children[SYSTEM]) != 6)
		return -EINVAL;
	c->ns = clock_of(pid, thread);
	return c->ns < 0 ? c->ns : 0;
}

static int64_t user_part(const struct counted *c)
{
	unsigned long ticks = c->ticks[USER] + c->ticks[SYSTEM];

	return ticks ? (int64_t)((unsigned __int128)c->ns * c->ticks[USER] / ticks) : c->ns;
}

static void begin(struct account *a, const struct counted *c, const int64_t used[2])
{
	int64_t user = user_part(c);

	a->away[USER] = used[USER] - user;
	a->away[SYSTEM] = used[SYSTEM] - (c->ns - user);
	memcpy(a->told, used, sizeof(a->told));
}

/* The exact sum, divided as the ticks say; neither part ever runs back, as cputime_adjust() in
 * kernel/sched/cputime.c has it. */
static const int64_t *tell(struct account *a, const struct counted *c)
{
	int64_t total = c->ns + a->away[USER] + a->away[SYSTEM];
	int64_t user = user_part(c) + a->away[USER];

	if (total < a->told[USER] + a->told[SYSTEM])
		return a->told;
	if (user > total - a->told[SYSTEM])
		user = total - a->told[SYSTEM];
	if (user < a->told[USER])
		user = a->told[USER];
	a->told[USER] = user;
	a->told[SYSTEM] = total - user;
	return a->told;
}

static int has_ended(const struct mx_cputime *one)
{
	struct pollfd p = { one->pidfd, POLLIN, 0 };

	return poll(&p, 1, 0) == 1;
}

static void remove_at(struct mx_cputime **at)
{
	struct mx_cputime *one = *at;

	*at = one->next;
	if (one->pidfd >= 0)
		close(one->pidfd);
	free(one);
}

void mx_cputime_remove(struct mx_cputime **all, int pid)
{
	while (*all)
		if ((*all)->pid == pid || has_ended(*all))
			remove_at(all);
		else
			all = &(*all)->next;
}

int mx_cputime_add(struct mx_cputime **all, int pid, int64_t user_ns, int64_t system_ns)
{
	const int64_t used[2] = { user_ns, system_ns };
	struct counted process, thread;
	struct mx_cputime *one;
	int error = count(pid, 0, &process);

	if (!error)
		error = count(pid, 1, &thread);
	mx_cputime_remove(all, pid);
	if (error)
		return error;
	one = malloc(sizeof(*one));
	if (!one)
		return -ENOMEM;
	one->pid = pid;
	one->pidfd = syscall(SYS_pidfd_open, pid, 0);
	/* Away both clocks are the process's: its body has one thread. */
	begin(&one->process, &process, used);
	begin(&one->thread, &thread, used);
	one->next = *all;
	*all = one;
	return 0;
}

int mx_cputime_used(struct mx_cputime *all, int pid, int64_t *used)
{
	struct counted c;
	int error;

	for (; all; all = all->next) {
		if (all->pid != pid || has_ended(all))
			continue;
		error = count(pid, 0, &c);
		if (!error)
			memcpy(used, tell(&all->process, &c), sizeof(all->process.told));
		return error;
	}
	return -ENOENT;
}

/* ---- answers ---- */

/* Of the process that thread `tid` belongs to; NULL: home's kernel knows all. */
static struct mx_cputime *of_thread(struct mx_cputime *all, int tid)
{
	/* Signal 0 is sent to nobody; only a wrong process is ESRCH. */
	for (; all; all = all->next)
		if ((all->pid == tid || !syscall(SYS_tgkill, all->pid, tid, 0) || errno == EPERM) && !has_ended(all))
			return all;
	return NULL;
}

static int still_waits(int listener, const struct seccomp_notif *n)
{
	uint64_t id = n->id;

	if (!ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id))
		return 1;
	return errno == ENOTTY && !ioctl(listener, MOSIX_IOC_WAITS, &id);
}

/* Written into a caller who is still the one that asked, and waits. */
static int poke(int listener, const struct seccomp_notif *n, uint64_t address, void *data, size_t size)
{
	struct iovec here = { data, size }, there = { (void *)address, size };

	return still_waits(listener, n) && process_vm_writev(n->pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

static int tell_clock(struct mx_cputime *one, int listener, const struct seccomp_notif *n)
{
	int thread = (int32_t)n->data.args[0] == CLOCK_THREAD_CPUTIME_ID;
	const struct account *a;
	struct timespec t;
	int64_t ns;

	/* The first thread was away, and has the PID. */
	if (thread && (int)n->pid != one->pid)
		return 0;
	ns = clock_of(one->pid, thread);
	if (ns < 0)
		return 0;
	a = thread ? &one->thread : &one->process;
	ns += a->away[USER] + a->away[SYSTEM];
	t = (struct timespec){ ns / NS, ns % NS };
	return poke(listener, n, n->data.args[1], &t, sizeof(t));
}

static int tell_times(struct mx_cputime *one, int listener, const struct seccomp_notif *n, int64_t *result)
{
	struct counted c;
	struct tms t;
	const int64_t *told;

	/* Without a buffer only the time since boot is asked for. */
	if (!n->data.args[0] || count(one->pid, 0, &c))
		return 0;
	told = tell(&one->process, &c);
	t = (struct tms){ told[USER] / TICK_NS, told[SYSTEM] / TICK_NS, c.of_children[USER], c.of_children[SYSTEM] };
	*result = syscall(SYS_times, NULL);
	return poke(listener, n, n->data.args[0], &t, sizeof(t));
}

/* The number behind a name at the beginning of a line; 0: there is none. */
static unsigned long number(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

static struct timeval timeval_of(int64_t ns)
{
	return (struct timeval){ ns / NS, ns % NS / 1000 };
}

static int tell_rusage(struct mx_cputime *one, int listener, const struct seccomp_notif *n)
{
	int thread = (int32_t)n->data.args[0] == RUSAGE_THREAD;
	struct rusage usage = { 0 };
	struct counted c;
	char text[TEXT];
	const int64_t *told;

	if ((thread && (int)n->pid != one->pid) || count(one->pid, thread, &c))
		return 0;
	told = tell(thread ? &one->thread : &one->process, &c);
	usage.ru_utime = timeval_of(told[USER]);
	usage.ru_stime = timeval_of(told[SYSTEM]);
	usage.ru_minflt = c.minor;
	usage.ru_majflt = c.major;
	if (!read_text(one->pid, thread, "status", text)) {
		usage.ru_maxrss = number(text, "\nVmHWM:");
		usage.ru_nvcsw = number(text, "\nvoluntary_ctxt_switches:");
		usage.ru_nivcsw = number(text, "\nnonvoluntary_ctxt_switches:");
	}
	if (!read_text(one->pid, thread, "io", text)) {
		usage.ru_inblock = number(text, "\nread_bytes:") >> SECTOR_SHIFT;
		usage.ru_oublock = number(text, "\nwrite_bytes:") >> SECTOR_SHIFT;
	}
	return poke(listener, n, n->data.args[1], &usage, sizeof(usage));
}

int mx_cputime_answer(struct mx_cputime *all, int listener, const struct seccomp_notif *n, int64_t *result)
{
	long nr = n->data.nr;
	struct mx_cputime *one;

	if (!all || (nr != SYS_clock_gettime && nr != SYS_times && nr != SYS_getrusage))
		return 0;
	one = of_thread(all, n->pid);
	if (!one)
		return 0;
	*result = 0;
	if (nr == SYS_clock_gettime)
		return tell_clock(one, listener, n);
	if (nr == SYS_times)
		return tell_times(one, listener, n, result);
	return tell_rusage(one, listener, n);
}
