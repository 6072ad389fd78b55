// SPDX-License-Identifier: GPL-2.0
/* What is promised here is described in cputime.h. */
#include "cputime.h"
#include "abi.h"
#include "parked.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
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
/* So many of a process are remembered: further up nobody in a job waits for it. */
#define MAX_ANCESTORS 8

enum { USER, SYSTEM };

/* Of a process, or of its first thread. */
struct account {
	int64_t away[2]; /* used on all nodes minus what home's kernel says; may be negative */
	int64_t told[2];
};

/* A process that has used CPU time on other nodes, or an ancestor of one. */
struct mx_cputime {
	struct mx_cputime *next;
	int pid;
	int pidfd; /* -1: there was no descriptor */
	int parent;
	int is_told; /* of itself: its body is here, or was here when it ended */
	struct account process, thread;
	/* of the children that it has waited for: what home's kernel does not know */
	int64_t children[2], told_children[2];
	long rss, rss_of_children; /* highest, KB */
};

/* What home's kernel says. */
struct counted {
	int64_t ns;
	unsigned long ticks[2], of_children[2];
	unsigned long minor, major, minor_of_children, major_of_children;
	int parent;
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
	if (!p || sscanf(p + 2, "%*c %d %*d %*d %*d %*d %*u %lu %lu %lu %lu %lu %lu %lu %lu", &c->parent, &c->minor,
			 &c->minor_of_children, &c->major, &c->major_of_children, &c->ticks[USER], &c->ticks[SYSTEM],
			 &c->of_children[USER], &c->of_children[SYSTEM]) != 9)
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

/* Somebody has waited for it, or nobody had to. */
static int is_gone(const struct mx_cputime *one)
{
	return has_ended(one) && syscall(SYS_pidfd_send_signal, one->pidfd, 0, NULL, 0) < 0 && errno == ESRCH;
}

static struct mx_cputime *find(struct mx_cputime *all, int pid)
{
	while (all && all->pid != pid)
		all = all->next;
	return all;
}

static void remove_at(struct mx_cputime **at)
{
	struct mx_cputime *one = *at;

	*at = one->next;
	if (one->pidfd >= 0)
		close(one->pidfd);
	free(one);
}

/* The number behind a name at the beginning of a line; 0: there is none. */
static unsigned long number(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

/* Its kernel counts nothing for who does not want to know when its children end. */
static int ignores_children(int pid)
{
	char text[TEXT], *at;

	if (read_text(pid, 0, "status", text) || !(at = strstr(text, "\nSigIgn:")))
		return 0;
	return strtoull(at + 8, NULL, 16) >> (SIGCHLD - 1) & 1;
}

/* What the kernel does when a child is waited for. */
static void credit(struct mx_cputime *all, const struct mx_cputime *child)
{
	struct mx_cputime *parent = find(all, child->parent);
	long rss = child->rss > child->rss_of_children ? child->rss : child->rss_of_children;
	int i;

	if (!parent || ignores_children(parent->pid))
		return;
	for (i = USER; i <= SYSTEM; i++)
		parent->children[i] += child->children[i] + child->process.away[i];
	if (rss > parent->rss_of_children)
		parent->rss_of_children = rss;
}

/* Who is gone counts for its parent: first those whose own children are not still to be counted. */
static void settle(struct mx_cputime **all)
{
	struct mx_cputime **at, *child;
	int settled;

	do {
		settled = 0;
		for (at = all; *at;) {
			for (child = *all; child && !(child->parent == (*at)->pid && is_gone(child));
			     child = child->next)
				;
			if (child || !is_gone(*at)) {
				at = &(*at)->next;
				continue;
			}
			credit(*all, *at);
			remove_at(at);
			settled = 1;
		}
	} while (settled);
}

void mx_cputime_remove(struct mx_cputime **all, int pid)
{
	struct mx_cputime *one = find(*all, pid);
	struct counted c;

	if (one && !has_ended(one))
		one->is_told = 0;
	else if (one && !count(pid, 0, &c))
		one->parent = c.parent; /* it may have got another one */
	settle(all);
}

/* Its record, and those of its ancestors; NULL: there is none, nor memory for one. */
static struct mx_cputime *record_of(struct mx_cputime **all, int pid, int depth)
{
	struct mx_cputime *one = find(*all, pid);
	struct counted c;

	if (one || count(pid, 0, &c))
		return one;
	one = calloc(1, sizeof(*one));
	if (!one)
		return NULL;
	one->pid = pid;
	one->pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (one->pidfd < 0 && depth) { /* nobody could tell whether it still is the same */
		free(one);
		return NULL;
	}
	one->parent = c.parent;
	one->next = *all;
	*all = one;
	if (c.parent > 1 && depth < MAX_ANCESTORS)
		record_of(all, c.parent, depth + 1);
	return one;
}

int mx_cputime_add(struct mx_cputime **all, int pid, int64_t user_ns, int64_t system_ns)
{
	const int64_t used[2] = { user_ns, system_ns };
	struct counted process, thread;
	struct mx_cputime *one;
	char text[TEXT];
	int error = count(pid, 0, &process);

	if (!error)
		error = count(pid, 1, &thread);
	settle(all);
	if (error)
		return error;
	one = record_of(all, pid, 0);
	if (!one)
		return -ENOMEM;
	/* Away both clocks are the process's: its body has one thread. */
	begin(&one->process, &process, used);
	begin(&one->thread, &thread, used);
	one->is_told = 1;
	if (!read_text(pid, 0, "status", text))
		one->rss = number(text, "\nVmHWM:");
	return 0;
}

int mx_cputime_used(struct mx_cputime *all, int pid, int64_t *used)
{
	struct mx_cputime *one = find(all, pid);
	struct counted c;
	int error;

	if (!one || !one->is_told || has_ended(one))
		return -ENOENT;
	error = count(pid, 0, &c);
	if (!error)
		memcpy(used, tell(&one->process, &c), sizeof(one->process.told));
	return error;
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

/* Of the children that it has waited for; they never run back. */
static const int64_t *tell_children(struct mx_cputime *one, const struct counted *c)
{
	int i;

	for (i = USER; i <= SYSTEM; i++) {
		int64_t ns = c->of_children[i] * TICK_NS + one->children[i];

		if (ns > one->told_children[i])
			one->told_children[i] = ns;
	}
	return one->told_children;
}

static int tell_times(struct mx_cputime *one, int listener, const struct seccomp_notif *n, int64_t *result)
{
	struct counted c;
	struct tms t;
	const int64_t *told, *children;

	/* Without a buffer only the time since boot is asked for. */
	if (!n->data.args[0] || count(one->pid, 0, &c))
		return 0;
	told = one->is_told ? tell(&one->process, &c)
			    : (int64_t[]){ c.ticks[USER] * TICK_NS, c.ticks[SYSTEM] * TICK_NS };
	children = tell_children(one, &c);
	t = (struct tms){ told[USER] / TICK_NS, told[SYSTEM] / TICK_NS, children[USER] / TICK_NS,
			  children[SYSTEM] / TICK_NS };
	*result = syscall(SYS_times, NULL);
	return poke(listener, n, n->data.args[0], &t, sizeof(t));
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

/* What of the rest its kernel alone knows is left out: 0. */
static int tell_rusage_of_children(struct mx_cputime *one, int listener, const struct seccomp_notif *n)
{
	struct rusage usage = { 0 };
	struct counted c;
	const int64_t *told;

	if (count(one->pid, 0, &c))
		return 0;
	told = tell_children(one, &c);
	usage.ru_utime = timeval_of(told[USER]);
	usage.ru_stime = timeval_of(told[SYSTEM]);
	usage.ru_minflt = c.minor_of_children;
	usage.ru_majflt = c.major_of_children;
	usage.ru_maxrss = one->rss_of_children;
	return poke(listener, n, n->data.args[1], &usage, sizeof(usage));
}

int mx_cputime_answer(struct mx_cputime **all, int listener, const struct seccomp_notif *n, int64_t *result)
{
	long nr = n->data.nr;
	struct mx_cputime *one;

	if (nr != SYS_clock_gettime && nr != SYS_times && nr != SYS_getrusage)
		return 0;
	*result = 0;
	if (nr == SYS_times && !n->data.args[0] && n->data.args[1] == MX_LAST_TIMES)
		return !mx_cputime_add(all, n->pid, n->data.args[2], n->data.args[3]);
	if (!*all)
		return 0;
	settle(all);
	one = of_thread(*all, n->pid);
	if (!one)
		return 0;
	if (nr == SYS_times)
		return tell_times(one, listener, n, result);
	if (nr == SYS_getrusage && (int32_t)n->data.args[0] == RUSAGE_CHILDREN)
		return one->children[USER] + one->children[SYSTEM] > 0 && tell_rusage_of_children(one, listener, n);
	if (!one->is_told)
		return 0;
	if (nr == SYS_clock_gettime)
		return tell_clock(one, listener, n);
	return tell_rusage(one, listener, n);
}
