// SPDX-License-Identifier: GPL-2.0
/* The redirector's loop; what it promises and its states are described in redirect.h. */
#include "redirect.h"
#include "failpoint.h"
#include "interface.h"
#include "own_proc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define SYNC_WAKE_UP 1UL

#define AUDIT_ARCH_X86_64_ 0xc000003e

#define ERESTARTSYS_ 512
#define ERESTARTNOINTR_ 513
#define ERESTARTNOHAND_ 514
#define ERESTART_RESTARTBLOCK_ 516

/* One request moves at most this many bytes of a read or write; longer ones are
 * sums.  Neither side then needs more memory than this for one call. */
#define CHUNK (4u << 20)
/* So much is received at once, and written into the guest, from the caches, while more comes. */
#define STEP (64u << 10)
#define EARLY (STEP / 2) /* so much of a reply that is not whole yet is worth a system call */
#define KEEP_BUFFER (1u << 20)
#define MAX_IOV 1024
/* Relocations per message: name, iov, control, base; one for the array. */
#define MAX_MESSAGES ((MX_MAX_RELOCS - 1) / 4)
#define MAX_SEGMENTS 128
#define MAX_CONTROL (64u << 10)
#define MAX_FD_SET (1 << 20)
#define HEAD (sizeof(struct mx_request) + MX_MAX_RELOCS * sizeof(struct mx_reloc))
#define NS 1000000000LL

enum state { IDLE, CALLING, WAITING, HELD };
enum held { HELD_HOME, HELD_CANCELLED, HELD_SLEEPING };
enum { CONTINUE_NO, CONTINUE_YES };
enum purpose { FOR_GUEST, FOR_MODE }; /* MODE: is that descriptor a regular file? */

/* Bytes of the area that go back to the guest; `parts` iovecs from `first` when scattered. */
struct segment {
	uint64_t address;
	uint32_t offset;
	uint32_t size;
	int16_t length_segment; /* its 32-bit length is at the start of this one; -1 */
	uint16_t message;	/* 1 + index of the message it belongs to */
	uint32_t first;
	uint32_t parts;
};

struct kept {
	int valid;
	int nr;
	uint64_t args[6];
	uint64_t ip;
	int64_t result;
};

struct internal {
	const struct mx_table *table;
	const struct mx_descriptor *descriptors;
	const struct mx_test *tests;
	uint32_t n_tests;

	volatile int stop;
	volatile int inject;
	pthread_mutex_t renewal;
	volatile int new_fd; /* to be used instead of call_fd; -1: none */
	volatile int tid;

	enum state state;
	enum held held;
	int cancel_wanted;
	struct seccomp_notif notif;
	struct kept undelivered;
	struct kept prime;
	int64_t prime_deadline;

	/* the call being made */
	const struct mx_descriptor *call;
	int cls;
	enum purpose purpose;
	int writes;  /* TRANSFER, iov: direction */
	int all;     /* a short read is not an end */
	int regular; /* -1 not known yet */
	uint64_t total, done, chunk;
	int again;     /* it has begun elsewhere, or before a signal */
	int overtaken; /* a signal waits behind it, but a transfer of a file goes on to its end */
	int64_t deadline;
	int nowait;

	/* CPU time as told last */
	uint64_t user_ns, system_ns;

	/* the sleep */
	clockid_t clock;
	struct timespec until;
	int64_t date; /* it ends at this date at home; 0: `until` is enough */
	int forever;
	uint64_t rem;

	/* request under construction; data begin at buffer + HEAD */
	char *buffer;
	size_t room;
	uint32_t used, data_size, out_offset, fixed_end;
	uint32_t arg_offset[6];
	struct mx_reloc relocs[MX_MAX_RELOCS];
	int n_relocs;
	struct iovec from[MAX_SEGMENTS];
	uint32_t from_at[MAX_SEGMENTS];
	int n_from;
	struct segment segments[MAX_SEGMENTS];
	int n_segments;
	struct segment var;
	int has_var;
	struct iovec guest_iov[MAX_IOV + 8];
	uint32_t n_guest_iov;
	struct iovec window[MAX_IOV + 8];
	struct mx_request *request;
	size_t sent, to_send;
	int resent; /* the agent may know it from another connection */

	/* reply */
	char *reply;
	size_t reply_room, received;
	size_t written; /* of the variable bytes, those that are in the guest already */
};

/* ---- waking the thread ---- */

/* mx_interruptible(&flag, nr, a, b, c, d): the system call, or -EINTR when flag is set.  The
 * handler below makes check and call one step.  Arguments move one register to the left twice. */
long mx_interruptible(volatile int *flag, long nr, long a, long b, long c, long d);
extern const char mx_interruptible_begin[], mx_interruptible_end[], mx_interruptible_abort[];
__asm__(".pushsection .text\n"
	".globl mx_interruptible\n"
	".hidden mx_interruptible\n"
	".hidden mx_interruptible_begin, mx_interruptible_end, mx_interruptible_abort\n"
	".globl mx_interruptible_begin, mx_interruptible_end, mx_interruptible_abort\n"
	".type mx_interruptible, @function\n"
	"mx_interruptible:\n"
	"	mov %rdi, %r11\n"
	"	mov %rsi, %rax\n"
	"	mov %rdx, %rdi\n"
	"	mov %rcx, %rsi\n"
	"	mov %r8, %rdx\n"
	"	mov %r9, %r10\n"
	"	xor %r8d, %r8d\n"
	"	xor %r9d, %r9d\n"
	"mx_interruptible_begin:\n"
	"	cmpl $0, (%r11)\n"
	"	jne mx_interruptible_abort\n"
	"	syscall\n"
	"mx_interruptible_end:\n"
	"	ret\n"
	"mx_interruptible_abort:\n"
	"	mov $-4, %rax\n"
	"	ret\n"
	"	.size mx_interruptible, .-mx_interruptible\n"
	"	.popsection\n");

static void wake(int signal, siginfo_t *info, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

	(void)signal;
	(void)info;
	if (*rip >= (greg_t)mx_interruptible_begin && *rip < (greg_t)mx_interruptible_end)
		*rip = (greg_t)mx_interruptible_abort;
}

static int install_wake(void)
{
	struct sigaction action = { .sa_sigaction = wake, .sa_flags = SA_SIGINFO };

	return sigaction(MX_WAKE_SIGNAL, &action, NULL);
}

void mx_redirect_stop(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int tid;

	in->stop = 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	tid = in->tid;
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, MX_WAKE_SIGNAL);
}

void mx_redirect_inject(struct mx_redirect *r, int on)
{
	((struct internal *)r->internal)->inject = on;
}

static int take_stop(struct internal *in)
{
	return __atomic_exchange_n(&in->stop, 0, __ATOMIC_SEQ_CST);
}

void mx_redirect_forget_stop(struct mx_redirect *r)
{
	take_stop(r->internal);
}

/* ---- another connection ---- */

void mx_redirect_renew(struct mx_redirect *r, int call_fd)
{
	struct internal *in = r->internal;

	pthread_mutex_lock(&in->renewal);
	/* Whoever waits on the old one finds it ended, and then the new one. */
	shutdown(r->call_fd, SHUT_RDWR);
	if (in->new_fd >= 0)
		close(in->new_fd);
	in->new_fd = call_fd;
	pthread_mutex_unlock(&in->renewal);
}

int mx_redirect_renewed(const struct mx_redirect *r)
{
	return ((struct internal *)r->internal)->new_fd >= 0;
}

static void take_new_connection(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int on = 1;

	pthread_mutex_lock(&in->renewal);
	/* The number is the owner's and stays. */
	dup3(in->new_fd, r->call_fd, O_CLOEXEC);
	close(in->new_fd);
	in->new_fd = -1;
	pthread_mutex_unlock(&in->renewal);
	setsockopt(r->call_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	in->resent |= in->sent > 0;
	in->sent = 0;
	in->received = 0;
}

/* ---- failpoints ---- */

static struct {
	volatile int point;
	int fault, value, hits;
} armed;

void mx_redirect_arm(int point, int fault, int value, int hits)
{
	armed.point = 0;
	armed.fault = fault;
	armed.value = value;
	armed.hits = hits;
	armed.point = point;
}

/* -errno, or 0 */
__attribute__((noinline, cold)) static int act(int call_fd)
{
	static const char said[] = "failpoint of the redirector\n";
	struct timespec t = { armed.value / 1000, armed.value % 1000 * 1000000L };

	if (--armed.hits > 0)
		return 0;
	armed.point = 0;
	if (write(2, said, sizeof(said) - 1) < 0)
		return 0;
	switch (armed.fault) {
	case MX_FAULT_KILL:
		kill(getpid(), SIGKILL);
		return 0;
	case MX_FAULT_CUT:
		shutdown(call_fd, SHUT_RDWR);
		return 0;
	case MX_FAULT_STALL:
		while (nanosleep(&t, &t))
			;
		return 0;
	default:
		return -armed.value;
	}
}

static inline int failpoint(int point, int call_fd)
{
#ifndef MX_NO_FAILPOINTS
	if (__builtin_expect(armed.point == point, 0))
		return act(call_fd);
#endif
	return 0;
}

static inline int is_armed(int point)
{
#ifndef MX_NO_FAILPOINTS
	return __builtin_expect(armed.point == point, 0);
#else
	return 0;
#endif
}

/* ---- small things ---- */

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

static int64_t guest_now(const struct mx_redirect *r)
{
	return now_ns(CLOCK_MONOTONIC) + r->monotonic_offset_ns;
}

/* Dates are this node's, not home's. */
static int date_is_nodes(const struct mx_redirect *r)
{
	return !r->clock || r->clock->direct & 1u << CLOCK_REALTIME;
}

static struct timespec timespec_of(int64_t ns)
{
	struct timespec t = { ns / NS, ns % NS };

	return t;
}

static int grow(char **buffer, size_t *room, size_t size)
{
	char *larger;

	if (size <= *room)
		return 0;
	size = (size + 65535) & ~(size_t)65535;
	larger = realloc(*buffer, size);
	if (!larger)
		return -ENOMEM;
	*buffer = larger;
	*room = size;
	return 0;
}

static void shrink(char **buffer, size_t *room)
{
	if (*room > KEEP_BUFFER) {
		free(*buffer);
		*buffer = NULL;
		*room = 0;
	}
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- the guest's memory ---- */

static int peek(const struct mx_redirect *r, void *to, uint64_t address, size_t size)
{
	struct iovec here = { to, size }, there = { (void *)address, size };

	if (!size)
		return 0;
	return process_vm_readv(r->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -EFAULT;
}

static int poke(const struct mx_redirect *r, uint64_t address, const void *from, size_t size)
{
	struct iovec here = { (void *)from, size }, there = { (void *)address, size };

	return process_vm_writev(r->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -EFAULT;
}

/* ---- building a request ---- */

static char *area(const struct internal *in, uint32_t offset)
{
	return in->buffer + HEAD + offset;
}

/* Room for `size` bytes in the area; a negative errno when it would be too large. */
static int64_t place(struct internal *in, uint64_t size)
{
	uint32_t at = (in->used + 7) & ~7u;

	if (size > MX_MAX_AREA || at + size > MX_MAX_AREA)
		return -ENOMEM;
	in->used = at + size;
	return at;
}

static int64_t place_data(struct internal *in, uint64_t size)
{
	int64_t at = place(in, size);

	if (at >= 0 && grow(&in->buffer, &in->room, HEAD + in->used + 8) < 0)
		return -ENOMEM;
	return at;
}

static int relocate(struct internal *in, uint32_t at, uint32_t to)
{
	if (in->n_relocs == MX_MAX_RELOCS)
		return -E2BIG;
	in->relocs[in->n_relocs++] = (struct mx_reloc){ at, to };
	return 0;
}

static int relocate_arg(struct internal *in, int arg, uint32_t to)
{
	in->arg_offset[arg] = to;
	return relocate(in, MX_RELOC_ARG | arg, to);
}

/* Guest bytes into the area; fetched by fetch(), all of them in one system call. */
static int64_t add_in(struct internal *in, uint64_t address, uint64_t size)
{
	int64_t at = place_data(in, size);

	if (at < 0 || !size)
		return at;
	if (in->n_from == MAX_SEGMENTS)
		return -E2BIG;
	in->from[in->n_from] = (struct iovec){ (void *)address, size };
	in->from_at[in->n_from++] = at;
	return at;
}

static int fetch(const struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct iovec here[MAX_SEGMENTS];
	size_t wanted = 0;
	int i;

	if (!in->n_from)
		return 0;
	for (i = 0; i < in->n_from; i++) {
		here[i] = (struct iovec){ area(in, in->from_at[i]), in->from[i].iov_len };
		wanted += in->from[i].iov_len;
	}
	i = in->n_from;
	in->n_from = 0;
	return process_vm_readv(r->pid, here, i, in->from, i, 0) == (ssize_t)wanted ? 0 : -EFAULT;
}

static int add_segment(struct internal *in, uint64_t address, uint32_t offset, uint32_t size, int length_segment,
		       int message)
{
	if (in->n_segments == MAX_SEGMENTS)
		return -E2BIG;
	in->segments[in->n_segments] = (struct segment){
		.address = address,
		.offset = offset,
		.size = size,
		.length_segment = length_segment,
		.message = message,
	};
	return in->n_segments++;
}

static int64_t add_string(const struct mx_redirect *r, uint64_t address, uint32_t longest)
{
	struct internal *in = r->internal;
	uint32_t size = 0;
	int64_t at = place(in, 0);

	for (;;) {
		uint32_t piece = 4096 - (address + size) % 4096;
		char *end;

		if (piece > longest - size)
			piece = longest - size;
		if (!piece)
			return -ENAMETOOLONG;
		if (grow(&in->buffer, &in->room, HEAD + at + size + piece + 8) < 0)
			return -ENOMEM;
		if (peek(r, area(in, at + size), address + size, piece))
			return -EFAULT;
		end = memchr(area(in, at + size), 0, piece);
		if (end) {
			in->used = end + 1 - area(in, 0);
			return at;
		}
		size += piece;
	}
}

static const char *skip_slashes(const char *p)
{
	for (;;) {
		if (*p == '/')
			p++;
		else if (p[0] == '.' && (p[1] == '/' || !p[1]))
			p++;
		else
			return p;
	}
}

static const char *after(const char *p, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(p, name, n) || (p[n] && p[n] != '/'))
		return NULL;
	return skip_slashes(p + n);
}

static int names_own_body(const struct mx_redirect *r, const char *path)
{
	char pid[16];
	const char *p, *q;

	if (path[0] != '/' || !(p = after(skip_slashes(path), "proc")))
		return 0;
	snprintf(pid, sizeof(pid), "%d", r->home_pid);
	if (!(q = after(p, "self")) && !(q = after(p, "thread-self")) && !(q = after(p, pid)))
		return 0;
	p = after(q, "task");
	if (p && (p = after(p, pid)))
		q = p;
	return mx_is_own_proc(q, strcspn(q, "/"));
}

/* Is the open that is being made the program's word to mosix?  Then r->asked is its name. */
static int asks(struct mx_redirect *r, int nr, const uint64_t *args, const char *path)
{
	const char *name;

	if (!r->interface || (nr != SYS_open && nr != SYS_openat) ||
	    !mx_interface_flags(args[nr == SYS_openat ? 2 : 1]))
		return 0;
	name = mx_interface_name(path);
	if (name)
		strcpy(r->asked, name);
	return !!name;
}

static uint64_t length_of(const struct mx_shape *shape, const uint64_t *args)
{
	uint64_t n;

	if (shape->length_arg == MX_NO_ARG)
		return shape->size;
	n = args[shape->length_arg];
	if (shape->unit > 1)
		n = (uint32_t)n; /* counts are ints */
	if (n > SSIZE_MAX / 2)
		return UINT64_MAX;
	return shape->size + n * (shape->unit ? shape->unit : 1);
}

static void begin_request(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int i;

	in->used = in->data_size = in->out_offset = in->fixed_end = 0;
	in->n_relocs = in->n_from = in->n_segments = in->has_var = 0;
	in->request = NULL;
	for (i = 0; i < 6; i++)
		in->arg_offset[i] = UINT32_MAX;
}

/* The area is laid out: in, updated, written, and last what the result counts. */
static int seal(struct mx_redirect *r, int nr, const uint64_t *args, uint32_t out_var, uint16_t out_unit, int fd_mask,
		int flags)
{
	struct internal *in = r->internal;
	struct mx_request *q;
	size_t head = sizeof(*q) + in->n_relocs * sizeof(struct mx_reloc);
	int error = fetch(r);

	if (error)
		return error;
	if (grow(&in->buffer, &in->room, HEAD + in->data_size + 8) < 0)
		return -ENOMEM;
	q = (struct mx_request *)(in->buffer + HEAD - head);
	memcpy(q + 1, in->relocs, in->n_relocs * sizeof(struct mx_reloc));
	*q = (struct mx_request){
		.size = in->n_relocs * sizeof(struct mx_reloc) + in->data_size,
		.nr = nr,
		.flags = flags | (in->again || in->done || in->purpose == FOR_MODE ? MX_REQ_AGAIN : 0),
		.id = ++r->id,
		.signals = r->signals,
		.data_size = in->data_size,
		.area_size = (in->used + 7) & ~7u,
		.out_offset = in->out_offset,
		.out_fixed = in->fixed_end - in->out_offset,
		.out_var = out_var,
		.out_unit = out_unit,
		.n_relocs = in->n_relocs,
		.fd_mask = fd_mask,
	};
	memcpy(q->args, args, sizeof(q->args));
	in->request = q;
	in->sent = 0;
	in->resent = 0;
	in->received = 0;
	in->written = 0;
	in->to_send = head + in->data_size;
	return 0;
}

static void begin_out(struct internal *in)
{
	in->out_offset = in->fixed_end = (in->used + 7) & ~7u;
}

static void end_data(struct internal *in)
{
	in->data_size = in->used;
}

/* ---- relative timeouts ---- */

static int64_t timeout_ns(int kind, uint64_t arg, const void *memory)
{
	int64_t pair[2];

	if (kind == MX_TIMEOUT_MILLISECONDS)
		return (int32_t)arg < 0 ? -1 : (int32_t)arg * 1000000LL;
	memcpy(pair, memory, sizeof(pair));
	if (kind == MX_TIMEOUT_TIMEVAL)
		pair[1] *= 1000;
	if (pair[0] < 0 || pair[1] < 0 || pair[0] > INT64_MAX / NS / 4)
		return -1; /* the ghost's kernel says EINVAL, or it is for ever */
	return pair[0] * NS + pair[1];
}

static void set_timeout(int kind, uint64_t *arg, void *memory, int64_t left)
{
	int64_t pair[2];

	if (kind == MX_TIMEOUT_MILLISECONDS) {
		*arg = (left + 999999) / 1000000;
		return;
	}
	pair[0] = left / NS;
	pair[1] = kind == MX_TIMEOUT_TIMEVAL ? left % NS / 1000 : left % NS;
	memcpy(memory, pair, sizeof(pair));
}

/* A new timeout becomes a deadline; one that was interrupted by a move gets what is left. */
static void apply_deadline(struct mx_redirect *r, uint64_t *args)
{
	struct internal *in = r->internal;
	const struct mx_descriptor *d = in->call;
	void *memory = NULL;
	int64_t left;

	if (d->timeout == MX_TIMEOUT_NONE)
		return;
	if (d->timeout != MX_TIMEOUT_MILLISECONDS) {
		if (in->arg_offset[d->timeout_arg] == UINT32_MAX)
			return;
		memory = area(in, in->arg_offset[d->timeout_arg]);
	}
	if (in->deadline) {
		left = in->deadline - guest_now(r);
		set_timeout(d->timeout, &args[d->timeout_arg], memory, left > 0 ? left : 0);
		return;
	}
	left = timeout_ns(d->timeout, args[d->timeout_arg], memory);
	if (left > 0)
		in->deadline = guest_now(r) + left;
}

/* ---- calls described by shapes ---- */

static int add_updates(struct mx_redirect *r, const uint64_t *args, int i, uint64_t size)
{
	struct internal *in = r->internal;
	int64_t at = add_in(in, args[i], size);
	int error;

	if (at < 0)
		return at;
	error = add_segment(in, args[i], at, size, -1, 0);
	if (error < 0)
		return error;
	return relocate_arg(in, i, at);
}

static int find_segment(const struct internal *in, uint64_t address)
{
	int i;

	for (i = 0; i < in->n_segments; i++)
		if (in->segments[i].address == address)
			return i;
	return -1;
}

/* A buffer whose capacity stands in an updated word that was fetched already. */
static int add_length_at(struct mx_redirect *r, const uint64_t *args, int i, const struct mx_shape *shape)
{
	struct internal *in = r->internal;
	int word = find_segment(in, args[shape->length_arg]);
	int32_t capacity;
	int64_t at;
	int error;

	if (word < 0)
		return 0; /* no length: the ghost's kernel sees a buffer at NULL */
	memcpy(&capacity, area(in, in->segments[word].offset), 4);
	if (capacity < 0)
		return -EINVAL;
	if (capacity > (int32_t)MAX_CONTROL) {
		capacity = MAX_CONTROL;
		memcpy(area(in, in->segments[word].offset), &capacity, 4);
	}
	at = place(in, capacity);
	if (at < 0)
		return at;
	error = add_segment(in, args[i], at, capacity, word, 0);
	if (error < 0)
		return error;
	return relocate_arg(in, i, at);
}

static int build_shapes(struct mx_redirect *r, int nr, uint64_t *args, const struct mx_descriptor *d)
{
	struct internal *in = r->internal;
	uint64_t original[6], size;
	uint32_t out_var = 0;
	uint16_t out_unit = 0;
	int fd_mask = 0, error, i;
	int64_t at;

	memcpy(original, args, sizeof(original));
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (shape->kind == MX_ARG_FD)
			fd_mask |= 1 << i;
		if (shape->kind < MX_ARG_PATH || shape->kind > MX_ARG_IN || !original[i])
			continue;
		if (shape->kind == MX_ARG_IN)
			at = add_in(in, original[i], length_of(shape, original));
		else
			at = add_string(r, original[i], shape->size);
		if (at == -ENAMETOOLONG && shape->kind == MX_ARG_STRING)
			at = -EINVAL;
		if (at < 0)
			return at;
		if (shape->kind == MX_ARG_OPEN_PATH && names_own_body(r, area(in, at)))
			return MX_EV_HOME;
		if (shape->kind == MX_ARG_OPEN_PATH && asks(r, nr, original, area(in, at)))
			return MX_EV_ASKS;
		error = relocate_arg(in, i, at);
		if (error)
			return error;
	}
	begin_out(in);
	for (i = 0; i < d->n_args; i++) {
		if (d->args[i].kind != MX_ARG_INOUT || !original[i])
			continue;
		error = add_updates(r, original, i, length_of(&d->args[i], original));
		if (error)
			return error;
	}
	error = fetch(r);
	if (error)
		return error;
	end_data(in);
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (!original[i])
			continue;
		if (shape->kind == MX_ARG_OUT) {
			size = length_of(shape, original);
			at = place(in, size);
			error = at < 0 ? (int)at : add_segment(in, original[i], at, size, -1, 0);
			if (error >= 0)
				error = relocate_arg(in, i, at);
		} else if (shape->kind == MX_ARG_OUT_LENGTH_AT) {
			error = add_length_at(r, original, i, shape);
		} else {
			continue;
		}
		if (error < 0)
			return error;
	}
	in->fixed_end = in->used > in->out_offset ? (in->used + 7) & ~7u : in->out_offset;
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (shape->kind != MX_ARG_OUT_RESULT || !original[i])
			continue;
		size = min64(length_of(shape, original), CHUNK);
		if (shape->length_arg != MX_NO_ARG && original[shape->length_arg] > CHUNK)
			args[shape->length_arg] = (CHUNK - shape->size) / shape->unit;
		in->used = in->fixed_end;
		at = place(in, size);
		if (at < 0)
			return at;
		in->has_var = 1;
		in->var = (struct segment){ .address = original[i], .offset = at, .size = size, .length_segment = -1 };
		in->fixed_end += shape->size;
		out_var = size - shape->size;
		out_unit = shape->unit;
		error = relocate_arg(in, i, at);
		if (error)
			return error;
	}
	apply_deadline(r, args);
	return seal(r, nr, args, out_var, out_unit, fd_mask, 0);
}

/* ---- scattered buffers ---- */

static int read_iov(struct mx_redirect *r, uint64_t address, uint64_t count, uint64_t *total)
{
	struct internal *in = r->internal;
	uint64_t i;

	*total = 0;
	if (count > MAX_IOV)
		return -EINVAL;
	if (in->n_guest_iov + count > sizeof(in->guest_iov) / sizeof(in->guest_iov[0]))
		return -EMSGSIZE;
	if (peek(r, &in->guest_iov[in->n_guest_iov], address, count * sizeof(struct iovec)))
		return -EFAULT;
	for (i = 0; i < count; i++) {
		size_t size = in->guest_iov[in->n_guest_iov + i].iov_len;

		if (size > SSIZE_MAX || *total + size > SSIZE_MAX)
			return -EINVAL;
		*total += size;
	}
	in->n_guest_iov += count;
	return 0;
}

/* The part [skip, skip + size) of guest iovecs first..first+count, into in->window. */
static uint32_t cut_iov(struct internal *in, uint32_t first, uint32_t count, uint64_t skip, uint64_t size)
{
	uint32_t n = 0, i;

	for (i = first; i < first + count && size; i++) {
		struct iovec part = in->guest_iov[i];

		if (skip >= part.iov_len) {
			skip -= part.iov_len;
			continue;
		}
		part.iov_base = (char *)part.iov_base + skip;
		part.iov_len = min64(part.iov_len - skip, size);
		skip = 0;
		size -= part.iov_len;
		in->window[n++] = part;
	}
	return n;
}

static int gather(struct mx_redirect *r, uint32_t at, uint32_t first, uint32_t count, uint64_t skip, uint64_t size)
{
	struct internal *in = r->internal;
	uint32_t n = cut_iov(in, first, count, skip, size);
	struct iovec here = { area(in, at), size };

	if (!size)
		return 0;
	return process_vm_readv(r->pid, &here, 1, in->window, n, 0) == (ssize_t)size ? 0 : -EFAULT;
}

static int scatter(struct mx_redirect *r, const char *from, uint32_t first, uint32_t count, uint64_t skip,
		   uint64_t size)
{
	struct internal *in = r->internal;
	uint32_t n = cut_iov(in, first, count, skip, size);
	struct iovec here = { (void *)from, size };

	if (!size)
		return 0;
	return process_vm_writev(r->pid, &here, 1, in->window, n, 0) == (ssize_t)size ? 0 : -EFAULT;
}

/* readv, preadv, preadv2 and the writing ones: one buffer there, scattered here. */
static int build_vector(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const uint64_t *original = r->args;
	uint64_t args[6] = { original[0], 0, 0, 0, 0, 0 };
	int second = r->nr == SYS_preadv2 || r->nr == SYS_pwritev2;
	int at_position = second || r->nr == SYS_preadv || r->nr == SYS_pwritev;
	uint64_t iov[2];
	int64_t iov_at = 0, at;
	int nr, error;

	in->n_guest_iov = 0;
	error = read_iov(r, original[1], original[2], &in->total);
	if (error)
		return error;
	in->chunk = min64(in->total - in->done, CHUNK);
	if (second)
		nr = r->nr;
	else if (at_position)
		nr = in->writes ? SYS_pwrite64 : SYS_pread64;
	else
		nr = in->writes ? SYS_write : SYS_read;
	if (second)
		iov_at = place_data(in, sizeof(iov));
	if (in->writes) {
		at = place_data(in, in->chunk);
		if (at < 0)
			return at;
		error = gather(r, at, 0, in->n_guest_iov, in->done, in->chunk);
		if (error)
			return error;
		end_data(in);
		begin_out(in);
	} else {
		end_data(in);
		begin_out(in);
		in->used = in->out_offset;
		at = place(in, in->chunk);
		if (at < 0)
			return at;
		in->has_var = 1;
		in->var = (struct segment){
			.offset = at, .size = in->chunk, .parts = in->n_guest_iov, .length_segment = -1
		};
	}
	if (second) {
		iov[0] = 0;
		iov[1] = in->chunk;
		memcpy(area(in, iov_at), iov, sizeof(iov));
		args[2] = 1;
		error = relocate_arg(in, 1, iov_at);
		if (!error)
			error = relocate(in, iov_at, at);
		args[5] = original[5];
	} else {
		args[2] = in->chunk;
		error = relocate_arg(in, 1, at);
	}
	if (error)
		return error;
	if (at_position) {
		args[3] = original[3];
		if (args[3] != UINT64_MAX)
			args[3] += in->done;
	}
	return seal(r, nr, args, in->writes ? 0 : in->chunk, !in->writes, 1, 0);
}

/* ---- messages on sockets ---- */

struct message {
	uint64_t name;
	uint32_t name_size, pad;
	uint64_t iov, n_iov;
	uint64_t control, control_size;
	uint32_t flags, pad2;
	uint32_t size, pad3; /* only in arrays */
};
#define MESSAGE_SIZE 56

static int build_send(struct mx_redirect *r, int many)
{
	struct internal *in = r->internal;
	uint64_t args[6], total, count = 1;
	struct message messages[MAX_MESSAGES];
	uint32_t first[MAX_MESSAGES + 1];
	size_t step = many ? sizeof(struct message) : MESSAGE_SIZE;
	int64_t head, at, iov_at;
	uint32_t i, skipped;
	int error;

	memcpy(args, r->args, sizeof(args));
	memset(messages, 0, sizeof(messages));
	if (many) {
		if ((uint32_t)args[2] > MAX_MESSAGES)
			args[2] = MAX_MESSAGES; /* fewer may always be sent than was asked */
		count = (uint32_t)args[2];
	}
	if (peek(r, messages, args[1], count * step))
		return -EFAULT;
	in->n_guest_iov = 0;
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];

		first[i] = in->n_guest_iov;
		error = read_iov(r, m->iov, m->n_iov, &total);
		if (error && i && many) {
			args[2] = count = i; /* the call will fail at that one next time */
			break;
		}
		if (error)
			return error;
		if (m->name_size > INT_MAX || m->control_size > MAX_CONTROL)
			return m->name_size > INT_MAX ? -EINVAL : -ENOBUFS;
		if (m->name_size > 128)
			m->name_size = 128;
		if (!many) {
			in->total = total;
			in->chunk = min64(total - in->done, CHUNK);
		}
	}
	first[i] = in->n_guest_iov;
	/* The data first, the array last: the array comes back with its counts. */
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];
		uint32_t k;

		skipped = many ? 0 : in->done;
		for (total = 0, k = first[i]; k < first[i + 1]; k++)
			total += in->guest_iov[k].iov_len;
		if (!many)
			total = in->chunk;
		if (many && total > CHUNK / 2)
			return -EMSGSIZE;
		if (in->done)
			m->control = m->control_size = 0; /* went with the first part */
		at = place_data(in, total);
		if (at < 0)
			return at;
		error = gather(r, at, first[i], first[i + 1] - first[i], skipped, total);
		if (error)
			return error;
		iov_at = place_data(in, 16);
		if (iov_at < 0)
			return iov_at;
		memcpy(area(in, iov_at), &(uint64_t[2]){ 0, total }, 16);
		error = relocate(in, iov_at, at);
		if (error)
			return error;
		m->iov = iov_at;
		m->n_iov = 1;
		if (m->name) {
			at = add_in(in, m->name, m->name_size);
			if (at < 0)
				return at;
			m->name = at + 1;
		}
		if (m->control) {
			at = add_in(in, m->control, m->control_size);
			if (at < 0)
				return at;
			m->control = at + 1;
		}
	}
	error = fetch(r);
	if (error)
		return error;
	begin_out(in);
	head = place_data(in, count * step);
	if (head < 0)
		return head;
	for (i = 0; i < count; i++) {
		struct message m = messages[i];
		uint32_t base = head + i * step;

		error = relocate(in, base + 16, m.iov);
		if (!error && m.name)
			error = relocate(in, base, m.name - 1);
		if (!error && m.control)
			error = relocate(in, base + 32, m.control - 1);
		if (error)
			return error;
		memcpy(area(in, base), &m, step);
		if (many) {
			error = add_segment(in, args[1] + i * step + MESSAGE_SIZE, base + MESSAGE_SIZE, 4, -1, i + 1);
			if (error < 0)
				return error;
		}
	}
	end_data(in);
	in->fixed_end = many ? in->used : in->out_offset;
	error = relocate_arg(in, 1, head);
	if (error)
		return error;
	return seal(r, r->nr, args, 0, 0, 1, 0);
}

static int build_receive(struct mx_redirect *r, int many)
{
	struct internal *in = r->internal;
	uint64_t args[6], total, count = 1, sum = 0;
	struct message messages[MAX_MESSAGES];
	uint64_t totals[MAX_MESSAGES];
	uint32_t first[MAX_MESSAGES + 1];
	size_t step = many ? sizeof(struct message) : MESSAGE_SIZE;
	int64_t head, at, iov_at[MAX_MESSAGES];
	uint32_t i;
	int error;

	memcpy(args, r->args, sizeof(args));
	memset(messages, 0, sizeof(messages));
	if (many) {
		if ((uint32_t)args[2] > MAX_MESSAGES)
			args[2] = MAX_MESSAGES;
		count = (uint32_t)args[2];
	}
	if (peek(r, messages, args[1], count * step))
		return -EFAULT;
	in->n_guest_iov = 0;
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];

		first[i] = in->n_guest_iov;
		error = read_iov(r, m->iov, m->n_iov, &total);
		if ((error || sum + total > MX_MAX_AREA / 4) && i) {
			args[2] = count = i;
			break;
		}
		if (error)
			return error;
		if (m->name_size > INT_MAX)
			return -EINVAL;
		if (m->name_size > 128)
			m->name_size = 128;
		if (m->control_size > MAX_CONTROL)
			m->control_size = MAX_CONTROL;
		if (!many) {
			in->total = total;
			in->chunk = total = min64(total - in->done, CHUNK);
		}
		totals[i] = total;
		sum += total;
	}
	first[i] = in->n_guest_iov;
	for (i = 0; i < count; i++) {
		iov_at[i] = place_data(in, 16);
		if (iov_at[i] < 0)
			return iov_at[i];
		memcpy(area(in, iov_at[i]), &(uint64_t[2]){ 0, totals[i] }, 16);
	}
	begin_out(in);
	head = place_data(in, count * step);
	if (head < 0)
		return head;
	for (i = 0; i < count; i++) {
		uint32_t base = head + i * step;

		error = relocate(in, base + 16, iov_at[i]);
		if (error)
			return error;
		memcpy(area(in, base), &messages[i], step);
	}
	if (many && args[4]) { /* the timeout is updated */
		error = add_updates(r, args, 4, 16);
		if (!error)
			error = fetch(r);
		if (error)
			return error;
	}
	end_data(in);
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];
		uint32_t base = head + i * step;
		uint64_t address = args[1] + i * step;
		int name_word, control_word, size_word = -1;

		name_word = add_segment(in, address + 8, base + 8, 4, -1, i + 1);
		control_word = add_segment(in, address + 40, base + 40, 8, -1, i + 1);
		if (name_word < 0 || control_word < 0 || add_segment(in, address + 48, base + 48, 4, -1, i + 1) < 0)
			return -E2BIG;
		if (many) {
			size_word = add_segment(in, address + 56, base + 56, 4, -1, i + 1);
			if (size_word < 0)
				return -E2BIG;
		}
		if (m->name) {
			at = place(in, m->name_size);
			if (at < 0 || relocate(in, base, at) ||
			    add_segment(in, m->name, at, m->name_size, name_word, i + 1) < 0)
				return -E2BIG;
		}
		if (m->control) {
			at = place(in, m->control_size);
			if (at < 0 || relocate(in, base + 32, at) ||
			    add_segment(in, m->control, at, m->control_size, control_word, i + 1) < 0)
				return -E2BIG;
		}
		if (!many)
			continue;
		at = place(in, totals[i]);
		error = at < 0 ? -E2BIG : relocate(in, iov_at[i], at);
		if (!error)
			error = add_segment(in, 0, at, totals[i], size_word, i + 1);
		if (error < 0)
			return error;
		in->segments[error].first = first[i];
		in->segments[error].parts = first[i + 1] - first[i];
	}
	in->fixed_end = (in->used + 7) & ~7u;
	if (!many) {
		in->used = in->fixed_end;
		at = place(in, in->chunk);
		if (at < 0)
			return at;
		error = relocate(in, iov_at[0], at);
		if (error)
			return error;
		in->has_var = 1;
		in->var = (struct segment){
			.offset = at, .size = in->chunk, .parts = in->n_guest_iov, .length_segment = -1
		};
	}
	error = relocate_arg(in, 1, head);
	if (error)
		return error;
	apply_deadline(r, args);
	return seal(r, r->nr, args, many ? 0 : in->chunk, !many, 1, 0);
}

/* ---- select ---- */

static int build_select(struct mx_redirect *r, int pselect)
{
	struct internal *in = r->internal;
	uint64_t args[6];
	uint64_t mask[2];
	int32_t n = r->args[0];
	uint64_t size;
	int i, error;

	memcpy(args, r->args, sizeof(args));
	if (n < 0)
		return -EINVAL;
	if (n > MAX_FD_SET)
		n = MAX_FD_SET;
	if (pselect && args[5]) {
		if (peek(r, mask, args[5], sizeof(mask)))
			return -EFAULT;
		if (mask[0])
			return MX_EV_HOME;
		args[5] = 0;
	}
	size = (n + 63) / 64 * 8;
	begin_out(in);
	for (i = 1; i < 5; i++) {
		if (!args[i])
			continue;
		error = add_updates(r, args, i, i < 4 ? size : 16);
		if (error)
			return error;
	}
	error = fetch(r);
	if (error)
		return error;
	end_data(in);
	in->fixed_end = (in->used + 7) & ~7u;
	apply_deadline(r, args);
	/* The time left is written also when it fails. */
	return seal(r, r->nr, args, 0, 0, 0, MX_REQ_OUT_ON_ERROR);
}

/* ---- one buffer of any size ---- */

static int build_transfer(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6];

	memcpy(args, r->args, sizeof(args));
	in->total = args[2];
	if (in->total > SSIZE_MAX)
		return -EINVAL; /* not what the kernel would make of it, but never a success */
	in->chunk = min64(in->total - in->done, CHUNK);
	args[1] += in->done;
	args[2] = in->chunk;
	if (r->nr == SYS_pread64 || r->nr == SYS_pwrite64)
		args[3] += in->done;
	if (!args[1] && args[2])
		return -EFAULT;
	return build_shapes(r, r->nr, args, in->call);
}

static int build(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6];

	begin_request(r);
	switch (in->call->special) {
	case MX_SPECIAL_READV:
	case MX_SPECIAL_WRITEV:
		return build_vector(r);
	case MX_SPECIAL_TRANSFER:
		return build_transfer(r);
	case MX_SPECIAL_SENDMSG:
	case MX_SPECIAL_SENDMMSG:
		return build_send(r, in->call->special == MX_SPECIAL_SENDMMSG);
	case MX_SPECIAL_RECVMSG:
	case MX_SPECIAL_RECVMMSG:
		return build_receive(r, in->call->special == MX_SPECIAL_RECVMMSG);
	case MX_SPECIAL_SELECT:
	case MX_SPECIAL_PSELECT:
		return build_select(r, in->call->special == MX_SPECIAL_PSELECT);
	default:
		memcpy(args, r->args, sizeof(args));
		return build_shapes(r, r->nr, args, in->call);
	}
}

/* Is the descriptor a regular file?  Only then has a read of many pieces no end before the
 * file's: a pipe or a terminal gives what it has. */
static int build_mode(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6] = { r->args[0], 0, 0, 0, 0, 0 };
	int64_t at;
	int error;

	in->purpose = FOR_MODE;
	begin_request(r);
	begin_out(in);
	at = place(in, sizeof(struct stat));
	in->fixed_end = (in->used + 7) & ~7u;
	error = relocate_arg(in, 1, at);
	if (!error)
		error = seal(r, SYS_fstat, args, 0, 0, 1, 0);
	if (error)
		in->purpose = FOR_GUEST;
	return error;
}

/* ---- answering ---- */

static int send_answer(struct mx_redirect *r, int64_t result, int go_on)
{
	struct internal *in = r->internal;
	struct seccomp_notif_resp resp = { .id = in->notif.id };

	in->state = IDLE;
	if (go_on)
		resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	else if (result < 0 && result > -4096)
		resp.error = result;
	else
		resp.val = result;
	while (ioctl(r->listener, SECCOMP_IOCTL_NOTIF_SEND, &resp) < 0) {
		if (errno == EINTR)
			continue;
		if (errno == ENOENT && !go_on && !(result <= -ERESTARTSYS_ && result > -4096)) {
			in->undelivered = (struct kept){ 1, r->nr, { 0 }, r->ip, result };
			memcpy(in->undelivered.args, r->args, sizeof(r->args));
		}
		return -errno;
	}
	return 0;
}

static int is_same(const struct kept *kept, const struct mx_redirect *r)
{
	return kept->valid && kept->nr == r->nr && !memcmp(kept->args, r->args, sizeof(r->args));
}

int mx_redirect_take_undelivered(struct mx_redirect *r, int64_t *result)
{
	struct internal *in = r->internal;
	int valid = in->undelivered.valid;

	*result = in->undelivered.result;
	in->undelivered.valid = 0;
	return valid;
}

void mx_redirect_prime(struct mx_redirect *r, int nr, const uint64_t *args, int64_t done, int64_t deadline_ns)
{
	struct internal *in = r->internal;

	in->prime = (struct kept){ .valid = 1, .nr = nr, .result = done };
	memcpy(in->prime.args, args, sizeof(in->prime.args));
	in->prime_deadline = deadline_ns;
}

/* Limits and priority also hold where the body is, as far as this process may set them. */
static void mirror(const struct mx_redirect *r)
{
	const struct internal *in = r->internal;
	struct rlimit limit;

	if (in->call->special == MX_SPECIAL_SETPRIORITY) {
		setpriority(PRIO_PROCESS, r->pid, (int)r->args[2]);
		return;
	}
	if (!peek(r, &limit, r->args[r->nr == SYS_prlimit64 ? 2 : 1], sizeof(limit)))
		syscall(SYS_prlimit64, r->pid, r->args[r->nr == SYS_prlimit64], &limit, NULL);
}

static int finish_call(struct mx_redirect *r, int64_t result)
{
	const struct internal *in = r->internal;

	if (result >= 0 && in->cls == MX_BOTH) {
		if (in->call->special == MX_SPECIAL_NONE)
			return send_answer(r, result, CONTINUE_YES);
		mirror(r);
	}
	return send_answer(r, result, CONTINUE_NO);
}

static int end_sleep(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct timespec rem;
	int64_t left;

	if (in->call->special == MX_SPECIAL_PAUSE)
		return send_answer(r, -ERESTARTNOHAND_, CONTINUE_NO);
	if (!in->deadline) /* absolute: may be restarted as it is */
		return send_answer(r, -ERESTARTNOHAND_, CONTINUE_NO);
	left = in->deadline - guest_now(r);
	rem = timespec_of(left > 0 ? left : 0);
	if (in->rem && poke(r, in->rem, &rem, sizeof(rem)))
		return send_answer(r, -EFAULT, CONTINUE_NO);
	return send_answer(r, -EINTR, CONTINUE_NO);
}

int mx_redirect_finish(struct mx_redirect *r)
{
	struct internal *in = r->internal;

	if (in->state != HELD || in->held == HELD_HOME)
		return -EINVAL;
	if (in->held == HELD_SLEEPING)
		return end_sleep(r);
	if (r->completed)
		return finish_call(r, r->result);
	if (r->done)
		return finish_call(r, r->done);
	if (r->result == -ERESTART_RESTARTBLOCK_)
		return send_answer(r, -EINTR, CONTINUE_NO);
	return send_answer(r, r->result, CONTINUE_NO);
}

int mx_redirect_answer(struct mx_redirect *r, int64_t result)
{
	struct internal *in = r->internal;

	if (in->state != HELD)
		return -EINVAL;
	return send_answer(r, result, CONTINUE_NO);
}

/* ---- replies ---- */

static uint64_t expected_size(const struct mx_request *q, int64_t result)
{
	uint64_t more;

	if (result < 0)
		return q->flags & MX_REQ_OUT_ON_ERROR ? q->out_fixed : 0;
	more = min64(result, MX_MAX_AREA) * q->out_unit;
	return q->out_fixed + min64(more, q->out_var);
}

static int write_segment(struct mx_redirect *r, const struct segment *s, const char *out, int64_t result)
{
	struct internal *in = r->internal;
	uint64_t size = s->size;
	const char *from = out + (s->offset - in->out_offset);
	uint32_t word;

	if (s->message && result >= 0 && in->call->special != MX_SPECIAL_RECVMSG && s->message > result)
		return 0; /* that message was not reached */
	if (s->length_segment >= 0) {
		memcpy(&word, out + (in->segments[s->length_segment].offset - in->out_offset), 4);
		size = min64(size, word);
	}
	if (s->parts)
		return scatter(r, from, s->first, s->parts, 0, size);
	return size ? poke(r, s->address, from, size) : 0;
}

/* The bytes that came back, into the guest; mostly one buffer, so one call for most. */
static int write_back(struct mx_redirect *r, const struct mx_reply *reply)
{
	struct internal *in = r->internal;
	const char *out = (const char *)(reply + 1);
	uint64_t size = reply->size;
	struct iovec here[MAX_SEGMENTS + 1], there[MAX_SEGMENTS + 1];
	size_t total = 0;
	int i, n = 0, error;

	if (!size)
		return 0;
	for (i = 0; i < in->n_segments; i++) {
		const struct segment *s = &in->segments[i];

		if (s->length_segment >= 0 || s->message || s->parts) {
			error = write_segment(r, s, out, reply->result);
			if (error)
				return error;
			continue;
		}
		here[n] = (struct iovec){ (char *)out + (s->offset - in->out_offset), s->size };
		there[n++] = (struct iovec){ (void *)s->address, s->size };
		total += s->size;
	}
	if (in->has_var && size > in->var.offset - in->out_offset) {
		const char *from = out + (in->var.offset - in->out_offset);

		size -= in->var.offset - in->out_offset;
		if (in->var.parts) {
			error = scatter(r, from, in->var.first, in->var.parts, in->done, size);
			if (error)
				return error;
		} else {
			size -= in->written;
			here[n] = (struct iovec){ (void *)(from + in->written), size };
			there[n++] = (struct iovec){ (void *)(in->var.address + in->written), size };
			total += size;
		}
	}
	if (!total)
		return 0;
	return process_vm_writev(r->pid, here, n, there, n, 0) == (ssize_t)total ? 0 : -EFAULT;
}

/* Puts what has come of a long read into the guest while the rest is on its way: a kernel fills the
 * buffer of a read little by little too.  What fails here fails again in write_back(). */
static void write_early(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const struct mx_reply *reply = (const struct mx_reply *)in->reply;
	size_t begin, size;

	if (in->purpose != FOR_GUEST || !in->has_var || in->var.parts || reply->result <= 0 || reply->flags)
		return;
	begin = sizeof(*reply) + in->var.offset - in->out_offset + in->written;
	if (in->received < begin + EARLY)
		return;
	size = in->received - begin;
	if (!poke(r, in->var.address + in->written, in->reply + begin, size))
		in->written += size;
}

static int hold(struct mx_redirect *r, enum held why, int event)
{
	struct internal *in = r->internal;

	in->state = HELD;
	in->held = why;
	return event;
}

static int answered(struct mx_redirect *r, int64_t result)
{
	struct internal *in = r->internal;

	finish_call(r, result);
	shrink(&in->buffer, &in->room);
	shrink(&in->reply, &in->reply_room);
	r->nr = -1;
	if (in->cancel_wanted) {
		in->cancel_wanted = 0;
		return MX_EV_STOP;
	}
	return 0;
}

static int cancelled(struct mx_redirect *r, int64_t result, int completed)
{
	struct internal *in = r->internal;

	in->cancel_wanted = 0;
	r->result = result;
	r->done = in->done;
	r->completed = completed;
	r->deadline_ns = in->deadline;
	r->owed = in->reply_room ? ((const struct mx_reply *)in->reply)->signals : 0;
	return hold(r, HELD_CANCELLED, MX_EV_CANCELLED);
}

static int is_pieces(const struct internal *in)
{
	switch (in->call->special) {
	case MX_SPECIAL_TRANSFER:
	case MX_SPECIAL_READV:
	case MX_SPECIAL_WRITEV:
	case MX_SPECIAL_SENDMSG:
	case MX_SPECIAL_RECVMSG:
		return 1;
	}
	return 0;
}

/* Never waits for long, so that a stop can wait for it: what a read of a file has begun is ended. */
static int is_swift(const struct internal *in)
{
	return in->purpose == FOR_MODE || in->regular == 1;
}

static int next_piece(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int error = build(r);

	in->state = CALLING;
	/* What was moved was moved: an error now is told at the next call. */
	return error ? answered(r, in->done) : 0;
}

/* Of the body here; a negative errno when the guest is gone. */
static int64_t cpu_total(const struct mx_redirect *r)
{
	struct timespec t;

	/* The CPU clock of a process: clock_getcpuclockid(3). */
	if (clock_gettime(((clockid_t)~r->pid << 3) | 2, &t))
		return -errno;
	return t.tv_sec * NS + t.tv_nsec - r->before_ns;
}

/* CPU time of the guest here and of its body elsewhere, in ns: the exact sum, divided as the
 * ticks in /proc say.  Neither part ever runs back (cputime_adjust() in kernel/sched/cputime.c). */
static int cpu_used(struct mx_redirect *r, uint64_t *user, uint64_t *system, uint64_t faults[2])
{
	struct internal *in = r->internal;
	char path[40], text[1024], *p;
	unsigned long minor, major, utime, stime;
	int64_t total;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", r->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	p = strrchr(text, ')');
	if (!p ||
	    sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %lu %*u %lu %*u %lu %lu", &minor, &major, &utime, &stime) != 4)
		return -1;
	total = cpu_total(r);
	if (total < 0)
		return -1;
	*user = utime + stime ? (unsigned __int128)total * utime / (utime + stime) : (uint64_t)total;
	*user += r->carried_user_ns;
	total += r->carried_user_ns + r->carried_system_ns;
	if (*user < in->user_ns)
		*user = in->user_ns;
	if (*user > (uint64_t)total - in->system_ns)
		*user = total - in->system_ns;
	*system = total - *user;
	in->user_ns = *user;
	in->system_ns = *system;
	faults[0] = minor;
	faults[1] = major;
	return 0;
}

int mx_redirect_cpu(struct mx_redirect *r, uint64_t *used)
{
	uint64_t faults[2];

	return cpu_used(r, &used[0], &used[1], faults);
}

static void correct_times(struct mx_redirect *r)
{
	uint64_t ticks[2], faults[2];

	if (!r->args[0] || cpu_used(r, &ticks[0], &ticks[1], faults))
		return;
	ticks[0] /= NS / 100;
	ticks[1] /= NS / 100;
	poke(r, r->args[0], ticks, sizeof(ticks));
}

/* A whole reply is there.  0: go on; else the event. */
static int take_reply(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const struct mx_reply *reply = (const struct mx_reply *)in->reply;
	int64_t result = reply->result;
	int was_cancelled = reply->flags & MX_REP_CANCELLED || reply->signals > r->signals;
	int error, whole;

	if (in->purpose == FOR_MODE) {
		struct stat st = { 0 };

		if (!result)
			memcpy(&st, reply + 1, sizeof(st));
		in->regular = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode);
		in->purpose = FOR_GUEST;
		if (in->regular)
			return next_piece(r);
		if (in->overtaken || was_cancelled)
			return cancelled(r, in->done, !in->writes);
		if (in->cancel_wanted && in->writes)
			return cancelled(r, -ERESTARTSYS_, 0);
		return answered(r, in->done);
	}
	if (reply->flags & MX_REP_GO_HOME) {
		in->cancel_wanted = 0;
		if (in->done)
			return answered(r, in->done);
		r->reason = in->call->proc_reason ? in->call->proc_reason : MX_REASON_MEMORY;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	was_cancelled |= in->overtaken;
	error = write_back(r, reply);
	if (error && result >= 0)
		result = error;
	if (!is_pieces(in)) {
		if (in->call->special == MX_SPECIAL_TIMES && result >= 0)
			correct_times(r);
		if (was_cancelled)
			return cancelled(r, result, result > -ERESTARTSYS_ && result != -EINTR);
		if (result == -EMFILE) {
			/* Nothing was done; at home, where the agent has no descriptors of
			 * its own in the way, the call may well succeed. */
			r->reason = MX_REASON_DESCRIPTORS;
			return hold(r, HELD_HOME, MX_EV_HOME);
		}
		return answered(r, result);
	}
	if (result < 0) {
		if (was_cancelled)
			return cancelled(r, result, !in->done && result > -ERESTARTSYS_ && result != -EINTR);
		return answered(r, in->done ? (int64_t)in->done : result);
	}
	whole = result >= (int64_t)in->chunk;
	in->done += result;
	if (whole && in->done < in->total && in->chunk) {
		/* A signal waits or a move: natively it would end the call here, but for a file. */
		if (in->regular == 1 && was_cancelled) {
			in->overtaken = 1;
			return next_piece(r);
		}
		if ((was_cancelled || (in->cancel_wanted && in->writes)) && in->regular < 0 &&
		    in->call->special != MX_SPECIAL_SENDMSG && in->call->special != MX_SPECIAL_RECVMSG &&
		    r->nr != SYS_sendto && r->nr != SYS_recvfrom && !build_mode(r)) {
			in->overtaken = was_cancelled;
			return 0;
		}
		if (was_cancelled)
			return cancelled(r, in->done, !in->writes && !in->all);
		if (in->cancel_wanted && (in->writes || in->all))
			return cancelled(r, -ERESTARTSYS_, 0);
		if (in->writes || in->all || in->regular == 1)
			return next_piece(r);
		if (in->regular == 0 || in->call->special == MX_SPECIAL_RECVMSG || r->nr == SYS_recvfrom ||
		    build_mode(r))
			return answered(r, in->done);
		return 0;
	}
	if (!whole && result && in->done < in->total && (in->writes || in->all)) {
		if (was_cancelled)
			return cancelled(r, in->done, 0);
		if (in->cancel_wanted)
			return cancelled(r, -ERESTARTSYS_, 0);
	}
	/* recvmsg with MSG_TRUNC may return more than fits. */
	if (was_cancelled)
		return cancelled(r, in->done, 1);
	return answered(r, in->done);
}

static int broken(struct mx_redirect *r, int error)
{
	r->error = error;
	return hold(r, HELD_HOME, MX_EV_LINK);
}

/* The connection ended in the middle of a call, which goes on with the next one. */
static int cut(struct mx_redirect *r, int error)
{
	struct internal *in = r->internal;

	if (in->new_fd >= 0)
		return 0;
	r->error = error;
	return MX_EV_LINK;
}

/* One step of input or output on the call socket; 0: try again, else as the system call. */
static long step(struct mx_redirect *r, long nr, char *at, size_t size)
{
	struct internal *in = r->internal;
	struct pollfd p = { r->call_fd, nr == SYS_recvfrom ? POLLIN : POLLOUT, 0 };
	static volatile int never;
	volatile int *stop = is_swift(in) ? &never : &in->stop;
	int flags = nr == SYS_sendto ? MSG_NOSIGNAL : 0;
	long n = mx_interruptible(stop, nr, r->call_fd, (long)at, size, flags);

	if (n == -EAGAIN) { /* somebody made it non-blocking */
		n = mx_interruptible(stop, SYS_poll, (long)&p, 1, -1, 0);
		return n == -EINTR ? n : 0;
	}
	return n ? n : -EPIPE;
}

static int cancel_wanted(struct internal *in)
{
	if (is_swift(in) || !take_stop(in))
		return 0;
	in->cancel_wanted = 1;
	return MX_EV_CANCEL_WANTED;
}

/* Sends what is left of the request and waits for the reply.  Interrupted before the first byte
 * left, the call is as if it had not been made yet. */
static int call_agent(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct mx_counter *counter = &r->counters[r->nr];
	struct mx_reply *reply;
	size_t wanted, most;
	long n;

	if (__builtin_expect(in->new_fd >= 0, 0))
		take_new_connection(r);
	if (!in->sent && !in->resent && !is_swift(in) && take_stop(in)) {
		/* The agent never saw it, and would not know what to cancel. */
		r->id--;
		return cancelled(r, -ERESTARTNOINTR_, 0);
	}
	if (in->sent < in->to_send) {
		most = in->to_send - in->sent;
		if (!in->sent && failpoint(MX_FP_REQUEST, r->call_fd))
			return cut(r, ECONNRESET);
		if (is_armed(MX_FP_HALF_SENT)) {
			if (in->sent && failpoint(MX_FP_HALF_SENT, r->call_fd))
				return cut(r, ECONNRESET);
			most = (most + 1) / 2;
		}
		n = step(r, SYS_sendto, (char *)in->request + in->sent, most);
		if (n == -EINTR)
			return in->sent || in->resent ? cancel_wanted(in) : 0;
		if (n < 0)
			return cut(r, -n);
		in->sent += n;
		counter->sent += n;
		if (in->sent < in->to_send)
			return 0;
		if (failpoint(MX_FP_SENT, r->call_fd))
			return cut(r, ECONNRESET);
	}
	most = sizeof(*reply) + in->request->out_fixed + in->request->out_var;
	if (grow(&in->reply, &in->reply_room, most) < 0)
		return broken(r, ENOMEM);
	if (is_armed(MX_FP_HALF_REPLY)) {
		if (in->received && failpoint(MX_FP_HALF_REPLY, r->call_fd))
			return cut(r, ECONNRESET);
		if (!in->received)
			most = sizeof(*reply) / 2;
	}
	n = step(r, SYS_recvfrom, in->reply + in->received, min64(most - in->received, STEP));
	if (n == -EINTR)
		return cancel_wanted(in);
	if (n < 0)
		return cut(r, -n);
	in->received += n;
	counter->received += n;
	if (in->received < sizeof(*reply))
		return 0;
	reply = (struct mx_reply *)in->reply;
	wanted = sizeof(*reply) + reply->size;
	if (reply->id != in->request->id || in->received > wanted ||
	    reply->size != expected_size(in->request, reply->result))
		return broken(r, EPROTO);
	if (in->received < wanted) {
		write_early(r);
		return 0;
	}
	if (failpoint(MX_FP_REPLY, r->call_fd))
		return cut(r, ECONNRESET);
	return take_reply(r);
}

/* ---- sleeping ---- */

static int sleep_on(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct timespec until = in->until;
	struct timespec long_time = { 1 << 30, 0 };
	long n;

	if (in->forever)
		until = long_time;
	if (in->date) {
		int64_t left = in->date - mx_clock_date(r->clock, r->monotonic_offset_ns);

		if (left <= 0)
			return send_answer(r, 0, CONTINUE_NO), 0;
		/* Not in one piece: home's clock may be set, or our estimate of it be bettered. */
		until = timespec_of(now_ns(CLOCK_MONOTONIC) + (left < NS ? left : NS));
	}
	n = mx_interruptible(&in->stop, SYS_clock_nanosleep, in->clock, in->forever ? 0 : TIMER_ABSTIME, (long)&until,
			     0);
	if (n == -EINTR) {
		if (!take_stop(in))
			return 0;
		r->result = in->forever ? -ERESTARTNOHAND_ : -EINTR;
		r->done = 0;
		r->completed = 0;
		r->deadline_ns = in->deadline;
		return hold(r, HELD_SLEEPING, MX_EV_SLEEPING);
	}
	if (in->forever || in->date)
		return 0;
	send_answer(r, n, CONTINUE_NO);
	return 0;
}

static int begin_sleep(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t request = r->args[0];
	struct timespec t;
	int absolute = 0;

	in->state = WAITING;
	in->forever = in->call->special == MX_SPECIAL_PAUSE;
	in->clock = CLOCK_MONOTONIC;
	in->date = 0;
	if (in->forever)
		return 0;
	in->rem = r->args[1];
	if (in->call->special == MX_SPECIAL_CLOCK_NANOSLEEP) {
		in->clock = (int32_t)r->args[0];
		absolute = r->args[1] & TIMER_ABSTIME;
		request = r->args[2];
		in->rem = absolute ? 0 : r->args[3];
	}
	if (peek(r, &t, request, sizeof(t)))
		return send_answer(r, -EFAULT, CONTINUE_NO), 0;
	if (t.tv_sec < 0 || t.tv_nsec < 0 || t.tv_nsec >= NS)
		return send_answer(r, -EINVAL, CONTINUE_NO), 0;
	if (t.tv_sec > INT64_MAX / NS / 4)
		t.tv_sec = INT64_MAX / NS / 4;
	if (!absolute) {
		int64_t wait = t.tv_sec * NS + t.tv_nsec;

		/* Whatever the clock, a relative sleep is one on the monotonic clock. */
		in->clock = CLOCK_MONOTONIC;
		if (!in->deadline)
			in->deadline = guest_now(r) + wait;
		wait = in->deadline - r->monotonic_offset_ns;
		in->until = timespec_of(wait > 0 ? wait : 0);
		return 0;
	}
	if (in->clock == CLOCK_MONOTONIC || in->clock == CLOCK_BOOTTIME) {
		int64_t when = t.tv_sec * NS + t.tv_nsec;

		when -= in->clock == CLOCK_MONOTONIC ? r->monotonic_offset_ns : r->boottime_offset_ns;
		t = timespec_of(when > 0 ? when : 0);
	} else if (!date_is_nodes(r)) {
		in->date = t.tv_sec * NS + t.tv_nsec;
		in->date += !in->date;
		in->clock = CLOCK_MONOTONIC;
	}
	in->until = t;
	return 0;
}

/* ---- answered here ---- */

static int begin_call(struct mx_redirect *r);

/* time(2), gettimeofday(2), or clock_gettime(2) of a clock with a date. */
static int answer_date(struct mx_redirect *r)
{
	struct timespec t;
	struct timeval tv;
	time_t seconds;

	if (date_is_nodes(r))
		return send_answer(r, 0, CONTINUE_YES), 0;
	/* How far TAI is ahead only home's kernel knows. */
	if (r->nr == SYS_clock_gettime && (int32_t)r->args[0] == CLOCK_TAI)
		return begin_call(r);
	t = timespec_of(mx_clock_date(r->clock, r->monotonic_offset_ns));
	if (r->nr == SYS_clock_gettime)
		return send_answer(r, poke(r, r->args[1], &t, sizeof(t)), CONTINUE_NO), 0;
	if (r->nr == SYS_gettimeofday) {
		tv.tv_sec = t.tv_sec;
		tv.tv_usec = t.tv_nsec / 1000;
		if (!r->args[0])
			return send_answer(r, 0, CONTINUE_NO), 0;
		return send_answer(r, poke(r, r->args[0], &tv, sizeof(tv)), CONTINUE_NO), 0;
	}
	seconds = t.tv_sec;
	if (r->args[0] && poke(r, r->args[0], &seconds, sizeof(seconds)))
		return send_answer(r, -EFAULT, CONTINUE_NO), 0;
	return send_answer(r, seconds, CONTINUE_NO), 0;
}

static int has_date(int32_t clock)
{
	return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_REALTIME_ALARM ||
	       clock == CLOCK_TAI;
}

static int answer_here(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct timespec t;
	struct rusage usage = { 0 };
	uint64_t user, system, faults[2];
	int64_t ns;

	if (in->call->special == MX_SPECIAL_DATE ||
	    (in->call->special == MX_SPECIAL_CPU_CLOCK && has_date((int32_t)r->args[0])))
		return answer_date(r);
	if (in->call->special == MX_SPECIAL_CPU_CLOCK) {
		ns = cpu_total(r);
		if (ns < 0)
			return send_answer(r, ns, CONTINUE_NO), 0;
		t = timespec_of(ns + r->carried_user_ns + r->carried_system_ns);
		return send_answer(r, poke(r, r->args[1], &t, sizeof(t)), CONTINUE_NO), 0;
	}
	if (cpu_used(r, &user, &system, faults))
		return send_answer(r, 0, CONTINUE_YES), 0;
	usage.ru_utime.tv_sec = user / NS;
	usage.ru_utime.tv_usec = user % NS / 1000;
	usage.ru_stime.tv_sec = system / NS;
	usage.ru_stime.tv_usec = system % NS / 1000;
	usage.ru_minflt = faults[0];
	usage.ru_majflt = faults[1];
	return send_answer(r, poke(r, r->args[1], &usage, sizeof(usage)), CONTINUE_NO), 0;
}

/* ---- a notification ---- */

static int holds(const struct mx_redirect *r, const struct mx_test *t)
{
	uint64_t wanted = t->flags & MX_TEST_HOME_PID ? (uint32_t)r->home_pid : t->value;

	return ((r->args[t->arg] & t->mask) == wanted) != !!(t->flags & MX_TEST_DIFFERS);
}

static int classify(struct mx_redirect *r, const struct mx_descriptor *d)
{
	const struct internal *in = r->internal;
	int i = 0, all;

	while (i < d->n_tests) {
		const struct mx_test *t = &in->tests[d->first_test + i];

		for (all = 1;; t++, i++) {
			all &= holds(r, t);
			if (!(t->flags & MX_TEST_AND))
				break;
		}
		i++;
		if (all) {
			r->reason = t->reason;
			return t->cls;
		}
	}
	r->reason = d->reason;
	return d->cls;
}

/* Requests of these families are structs without pointers; the number tells their size. */
static int ioctl_is_plain(uint32_t request)
{
	uint32_t size = request >> 16 & 0x3fff, direction = request >> 30;
	uint32_t type = request >> 8 & 0xff;

	if (!size || !direction || size > 4096)
		return 0;
	return type == 'T' || type == 'f' || type == 'X' || type == 'E' || type == 0x12;
}

static const struct mx_descriptor *variant_of(struct mx_redirect *r, const struct mx_descriptor *d, int count)
{
	static __thread struct mx_descriptor guessed;
	uint32_t key = r->args[d->key_arg];
	int low = 1, high = count - 1;

	while (low <= high) {
		int middle = (low + high) / 2;

		if (d[middle].key == key)
			return &d[middle];
		if (d[middle].key < key)
			low = middle + 1;
		else
			high = middle - 1;
	}
	if (d->n_args)
		return d;
	if (d->special != MX_SPECIAL_IOCTL || !ioctl_is_plain(key))
		return NULL;
	guessed = *d;
	guessed.n_args = 3;
	guessed.args[0] = (struct mx_shape){ .kind = MX_ARG_FD };
	guessed.args[1] = (struct mx_shape){ .kind = MX_ARG_VALUE };
	guessed.args[2] = (struct mx_shape){
		.kind = key >> 30 == 1 ? MX_ARG_IN : MX_ARG_INOUT,
		.size = key >> 16 & 0x3fff,
		.length_arg = MX_NO_ARG,
	};
	return &guessed;
}

static int begin_call(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int error;

	in->purpose = FOR_GUEST;
	in->regular = -1;
	in->writes = in->call->special == MX_SPECIAL_WRITEV || in->call->special == MX_SPECIAL_SENDMSG ||
		     (in->call->special == MX_SPECIAL_TRANSFER && in->call->args[1].kind == MX_ARG_IN);
	in->all = (r->nr == SYS_recvfrom && r->args[3] & MSG_WAITALL) ||
		  (r->nr == SYS_recvmsg && r->args[2] & MSG_WAITALL);
	r->counters[r->nr].calls++;
	r->total_calls++;
	error = build(r);
	if (error == MX_EV_HOME) {
		r->reason = in->call->proc_reason;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	if (error == MX_EV_ASKS)
		return hold(r, HELD_HOME, MX_EV_ASKS);
	if (error) {
		/* An unreadable byte behind readable ones ends a write, as natively. */
		return answered(r, in->done ? (int64_t)in->done : error);
	}
	in->state = CALLING;
	return 0;
}

static int begin(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const struct mx_descriptor *d;
	int cls, count;

	r->nr = in->notif.data.nr;
	memcpy(r->args, in->notif.data.args, sizeof(r->args));
	r->ip = in->notif.data.instruction_pointer;
	r->done = r->result = r->deadline_ns = r->completed = 0;
	in->done = in->total = in->chunk = 0;
	in->again = in->overtaken = 0;
	in->deadline = 0;
	if (in->inject)
		return send_answer(r, 0, CONTINUE_YES), 0;
	if (in->notif.data.arch != AUDIT_ARCH_X86_64_ || r->nr < 0 || r->nr >= MX_TABLE_CALLS ||
	    !in->table->calls[r->nr].count) {
		r->reason = MX_REASON_UNKNOWN;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	d = &in->descriptors[in->table->calls[r->nr].first];
	count = in->table->calls[r->nr].count;
	cls = classify(r, d);
	if (cls != MX_AT_HOME && d->key_arg != MX_NO_ARG) {
		d = variant_of(r, d, count);
		if (!d)
			cls = MX_AT_HOME;
	}
	in->call = d;
	in->cls = cls;
	if (is_same(&in->undelivered, r) && in->undelivered.ip == r->ip) {
		in->undelivered.valid = 0;
		send_answer(r, in->undelivered.result, CONTINUE_NO);
		return 0;
	}
	if (is_same(&in->prime, r)) {
		in->prime.valid = 0;
		in->again = 1;
		in->done = in->prime.result;
		in->deadline = in->prime_deadline;
	}
	switch (cls) {
	case MX_HOME:
	case MX_BOTH:
		return begin_call(r);
	case MX_WAIT:
		return begin_sleep(r);
	case MX_HERE:
		return answer_here(r);
	case MX_LOCAL:
		return send_answer(r, 0, CONTINUE_YES), 0;
	default:
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
}

static int receive(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct pollfd hup = { r->listener, 0, 0 };
	long n;

	memset(&in->notif, 0, sizeof(in->notif));
	n = mx_interruptible(&in->stop, SYS_ioctl, r->listener, SECCOMP_IOCTL_NOTIF_RECV, (long)&in->notif, 0);
	if (!n)
		return begin(r);
	if (n == -EINTR)
		return take_stop(in) ? MX_EV_STOP : 0;
	if (n == -ENOENT) {
		/* It vanished before it was taken, or nobody is left to notify. */
		if (poll(&hup, 1, 0) != 1 || !(hup.revents & POLLHUP))
			return 0;
	}
	r->error = -n;
	return MX_EV_GONE;
}

static int serve(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int event;

	if (in->state == HELD) {
		if (in->held != HELD_SLEEPING)
			return MX_EV_MISUSE;
		in->state = WAITING;
	}
	do {
		if (in->state == CALLING)
			event = call_agent(r);
		else if (in->state == WAITING)
			event = sleep_on(r);
		else
			event = receive(r);
	} while (!event);
	return event;
}

int mx_redirect_run(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	sigset_t signals;
	int event;

	sigemptyset(&signals);
	sigaddset(&signals, MX_WAKE_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
	in->tid = gettid();
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	event = serve(r);
	in->tid = 0;
	return event;
}

/* ---- life ---- */

static int is_sound(const struct mx_table *table, size_t size)
{
	int i;

	if (size < sizeof(*table) || table->magic != MX_TABLE_MAGIC || table->version != MX_ABI_VERSION)
		return 0;
	if (size != sizeof(*table) + table->n_descriptors * sizeof(struct mx_descriptor) +
			    table->n_tests * sizeof(struct mx_test))
		return 0;
	for (i = 0; i < MX_TABLE_CALLS; i++)
		if (table->calls[i].first + table->calls[i].count > table->n_descriptors)
			return 0;
	return 1;
}

struct mx_redirect *mx_redirect_new(int listener, int call_fd, int pid, int home_pid, const void *table, size_t size)
{
	struct mx_redirect *r;
	struct internal *in;
	struct mx_table *copy;
	int on = 1;

	if (!is_sound(table, size)) {
		errno = EINVAL;
		return NULL;
	}
	r = calloc(1, sizeof(*r));
	in = calloc(1, sizeof(*in));
	copy = malloc(size);
	if (r)
		r->counters = calloc(MX_TABLE_CALLS, sizeof(*r->counters));
	if (!r || !in || !copy || !r->counters || install_wake()) {
		if (r)
			free(r->counters);
		free(r);
		free(in);
		free(copy);
		return NULL;
	}
	memcpy(copy, table, size);
	in->table = copy;
	in->descriptors = (const struct mx_descriptor *)(copy + 1);
	in->tests = (const struct mx_test *)(in->descriptors + copy->n_descriptors);
	in->n_tests = copy->n_tests;
	pthread_mutex_init(&in->renewal, NULL);
	in->new_fd = -1;
	r->internal = in;
	r->listener = listener;
	r->call_fd = call_fd;
	r->pid = pid;
	r->home_pid = home_pid;
	r->nr = -1;
	/* The flags are the argument itself, not behind a pointer. */
	r->synchronous = !ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
	setsockopt(call_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return r;
}

void mx_redirect_free(struct mx_redirect *r)
{
	struct internal *in;

	if (!r)
		return;
	in = r->internal;
	if (in->new_fd >= 0)
		close(in->new_fd);
	pthread_mutex_destroy(&in->renewal);
	free((void *)in->table);
	free(in->buffer);
	free(in->reply);
	free(in);
	free(r->counters);
	free(r);
}
