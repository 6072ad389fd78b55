// SPDX-License-Identifier: GPL-2.0
/*
 * The agent's obeying half: entries of the blob, orders on the control socket.
 * Put into a process by mosix.native.agent, linked by agent.ld.  It runs in a
 * ghost beside the body that is about to leave or has just come, and in an
 * empty guest while it is filled.
 *
 * It must never touch a vector register (the host's are live), use memory
 * outside the blob except what an order names, or end: when its deputy dies
 * before the move is committed the host has to go on as if nothing had been.
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/resource.h>
#include <linux/signal.h>

#include "agent.h"

#define AF_SCM_RIGHTS 1
#define SOL_SOCKET_ 1
#define MSG_WAITALL_ 0x100
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000

#define RUNS_AT_ONCE 256
#define STACK_SIZE (32 << 10)
#define MAX_FDS 8
/* A table of descriptors is as large as its highest one: not a million entries
 * because somebody raised RLIMIT_NOFILE. */
#define HIGHEST_FD 4096
/* For a descriptor on which no byte comes; its own SO_RCVTIMEO has passed before. */
#define STALL_MS 10000

struct iovec_ {
	void *base;
	size_t size;
};

struct msghdr_ {
	void *name;
	int name_size;
	struct iovec_ *iov;
	size_t iov_count;
	void *control;
	size_t control_size;
	unsigned int flags;
};

struct fd_message {
	size_t size;
	int level;
	int type;
	int fd;
	int pad;
};

extern char mx_blob_start[], mx_blob_end[], mx_obey_entry[], mx_stack_top[];

/* The initial values make these part of the file, in front of the zero pages. */
__attribute__((section(".state"))) struct mx_agent_state mx_state = {
	.call_fd = -1,
	.control_fd = -1,
};
__attribute__((section(".state"))) struct mx_agent_saved mx_saved = { .rflags = 2 };

__attribute__((section(".bss.stack"), aligned(4096), used)) char mx_stack[STACK_SIZE];

static struct mx_call calls[MX_MAX_CALLS];
static int64_t results[MX_MAX_CALLS];
static struct mx_run runs[RUNS_AT_ONCE];
static struct iovec_ iov[RUNS_AT_ONCE];
static int32_t taken[MAX_FDS]; /* number + 1 of descriptors that MX_OP_FD took */

/*
 * Differences to mx_blob_start are link-time constants; an initialised C struct
 * of addresses would need relocating.  The entries find rsp set to stack_top or
 * to somewhere free below it.  mx_cure_jump(cure, saved, address, size) gives
 * the host its registers back except those that the stub at `cure` loads, then
 * jumps there; the stub begins with `syscall`: munmap of this very code.
 */
__asm__(".pushsection .header,\"a\"\n"
	".globl mx_header\n"
	"mx_header:\n"
	"	.quad 0x746e6761786f6d\n"
	"	.long 5\n"
	"	.long mx_blob_end - mx_header\n"
	"	.long mx_serve_entry - mx_header\n"
	"	.long mx_obey_entry - mx_header\n"
	"	.long mx_call_return - mx_header\n"
	"	.long mx_state - mx_header\n"
	"	.long mx_stack_top - mx_header\n"
	"	.long mx_saved - mx_header\n"
	"	.popsection\n"
	".pushsection .text,\"ax\"\n"
	".globl mx_serve_entry, mx_obey_entry\n"
	".hidden mx_serve_entry, mx_obey_entry\n"
	"mx_serve_entry:\n"
	"	xor %ebp, %ebp\n"
	"	and $-16, %rsp\n"
	"	cld\n"
	"	lea mx_state(%rip), %rdi\n"
	"	call serve\n"
	"mx_obey_entry:\n"
	"	xor %ebp, %ebp\n"
	"	and $-16, %rsp\n"
	"	cld\n"
	"	call mx_obey\n"
	"	ud2\n"
	"mx_cure_jump:\n"
	"	mov %rdi, %rcx\n" /* rcx, rdi, rsi, rax, r8-r11: the stub loads them */
	"	mov %rsi, %r8\n"
	"	mov %rdx, %rdi\n"
	"	mov %r10, %rsi\n"
	"	pushq 56(%r8)\n"
	"	popfq\n"
	"	mov 0(%r8), %rbx\n"
	"	mov 8(%r8), %rbp\n"
	"	mov 16(%r8), %rsp\n"
	"	mov 24(%r8), %r12\n"
	"	mov 32(%r8), %r13\n"
	"	mov 40(%r8), %r14\n"
	"	mov 48(%r8), %r15\n"
	"	mov $11, %eax\n" /* munmap */
	"	jmp *%rcx\n"
	"	.popsection\n");
_Static_assert(MX_AGENT_MAGIC == 0x746e6761786f6dULL && MX_ABI_VERSION == 5, "header above");
_Static_assert(offsetof(struct mx_agent_saved, rflags) == 56, "mx_cure_jump");
_Static_assert(__NR_munmap == 11, "mx_cure_jump");

void *memcpy(void *to, const void *from, size_t size)
{
	void *start = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
	return start;
}

void *memset(void *to, int value, size_t size)
{
	void *start = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
	return start;
}

/* The deputy is gone.  Before the commit the body is still whole: back to it.
 * Otherwise nobody can give this process a body any more. */
static _Noreturn void deputy_is_gone(void)
{
	int i;

	if (mx_state.cure) {
		for (i = 0; i < MAX_FDS; i++)
			if (taken[i])
				mx_syscall(__NR_close, taken[i] - 1, 0, 0, 0, 0, 0);
		mx_syscall(__NR_close, mx_state.control_fd, 0, 0, 0, 0, 0);
		register long size __asm__("r10") = mx_blob_end - mx_blob_start;

		__asm__ volatile("jmp mx_cure_jump"
				 :
				 : "D"(mx_state.cure), "S"(&mx_saved), "d"(mx_blob_start), "r"(size));
		__builtin_unreachable();
	}
	for (;;)
		mx_syscall(__NR_kill, mx_syscall(__NR_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
}

static void receive(void *to, size_t size)
{
	char *at = to;

	while (size) {
		long n = mx_syscall(__NR_recvfrom, mx_state.control_fd, (long)at, size, MSG_WAITALL_, 0, 0);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			deputy_is_gone();
		at += n;
		size -= n;
	}
}

static void answer(const void *from, size_t size)
{
	const char *at = from;

	while (size) {
		long n = mx_syscall(__NR_sendto, mx_state.control_fd, (long)at, size, MSG_NOSIGNAL_, 0, 0);
		if (n == -EINTR)
			continue;
		if (n < 0)
			deputy_is_gone();
		at += n;
		size -= n;
	}
}

static void answer_result(int64_t result)
{
	struct mx_done done = { .result = result };

	answer(&done, sizeof(done));
}

/* An order, and the descriptor that may ride on it (-1: none). */
static int receive_order(struct mx_order *order)
{
	struct fd_message control;
	struct iovec_ part = { order, sizeof(*order) };
	struct msghdr_ message = {
		.iov = &part,
		.iov_count = 1,
		.control = &control,
		.control_size = sizeof(control),
	};
	long n;

	do {
		n = mx_syscall(__NR_recvmsg, mx_state.control_fd, (long)&message, MSG_CMSG_CLOEXEC_ | MSG_WAITALL_, 0,
			       0, 0);
	} while (n == -EINTR);
	if (n <= 0)
		deputy_is_gone();
	if ((size_t)n < sizeof(*order))
		receive((char *)order + n, sizeof(*order) - n);
	if (message.control_size >= sizeof(size_t) + 3 * sizeof(int) && control.level == SOL_SOCKET_ &&
	    control.type == AF_SCM_RIGHTS)
		return control.fd;
	return -1;
}

static void do_calls(uint32_t count)
{
	struct mx_done done = { 0 };
	uint32_t i;

	if (count > MX_MAX_CALLS)
		deputy_is_gone(); /* our own deputy never does: the stream is garbage */
	receive(calls, count * sizeof(calls[0]));
	for (i = 0; i < count; i++) {
		const struct mx_call *call = &calls[i];
		long result = mx_syscall(call->nr, call->args[0], call->args[1], call->args[2], call->args[3],
					 call->args[4], call->args[5]);

		results[done.count++] = result;
		if (result < 0 && result >= -4095 && !(call->flags & MX_CALL_MAY_FAIL))
			break;
	}
	done.result = done.count;
	answer(&done, sizeof(done));
	answer(results, done.count * sizeof(results[0]));
}

static long receive_some(int fd, struct iovec_ *parts, size_t count)
{
	struct msghdr_ message = { .iov = parts, .iov_count = count };
	struct pollfd poll = { .fd = fd, .events = POLLIN };
	long n;

	for (;;) {
		n = mx_syscall(__NR_recvmsg, fd, (long)&message, MSG_WAITALL_, 0, 0, 0);
		if (n == -ENOTSOCK) /* an image in a file */
			n = mx_syscall(__NR_readv, fd, (long)parts, count, 0, 0, 0);
		if (n == -EAGAIN) { /* non-blocking, or nothing came in time */
			if (!mx_syscall(__NR_poll, (long)&poll, 1, STALL_MS, 0, 0, 0))
				return -ETIMEDOUT;
		} else if (n != -EINTR)
			return n ? n : -EPIPE;
	}
}

/* Bytes received or -errno; straight into place, many runs per system call. */
static int64_t receive_runs(int fd, uint32_t count)
{
	int64_t total = 0;
	size_t first = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		iov[i].base = (void *)runs[i].start;
		iov[i].size = runs[i].size;
	}
	while (first < count) {
		long n;

		if (!iov[first].size) {
			first++;
			continue;
		}
		n = receive_some(fd, iov + first, count - first);
		if (n < 0)
			return n;
		total += n;
		while (n) {
			size_t part = iov[first].size < (size_t)n ? iov[first].size : (size_t)n;

			iov[first].base = (char *)iov[first].base + part;
			iov[first].size -= part;
			n -= part;
			if (!iov[first].size)
				first++;
		}
	}
	return total;
}

static void do_fill(int fd, uint32_t count)
{
	int64_t total = 0;

	while (count) {
		uint32_t some = count < RUNS_AT_ONCE ? count : RUNS_AT_ONCE;

		/* After an error the rest of the order is still read: the next one
		 * begins behind it. */
		receive(runs, some * sizeof(runs[0]));
		count -= some;
		if (total >= 0) {
			int64_t n = receive_runs(fd, some);

			total = n < 0 ? n : total + n;
		}
	}
	answer_result(total);
}

static int64_t move_high(int fd)
{
	struct rlimit limit;
	long number = -EBADF, at;

	if (fd < 0)
		return number;
	mx_syscall(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit, 0, 0);
	at = limit.rlim_cur < HIGHEST_FD ? limit.rlim_cur : HIGHEST_FD;
	do {
		number = mx_syscall(__NR_fcntl, fd, F_DUPFD_CLOEXEC, --at, 0, 0, 0);
	} while (number < 0 && at > fd);
	if (number < 0)
		number = fd; /* nothing free above: it stays where it is */
	else
		mx_syscall(__NR_close, fd, 0, 0, 0, 0, 0);
	return number;
}

static void do_fd(int fd)
{
	int64_t number = move_high(fd);
	int i;

	for (i = 0; number >= 0 && i < MAX_FDS; i++) {
		if (!taken[i]) {
			taken[i] = number + 1;
			break;
		}
	}
	answer_result(number);
}

static _Noreturn void do_move(void)
{
	uint64_t base;

	receive(&base, sizeof(base));
	answer_result(0);
	__asm__ volatile("mov %0, %%rsp\n\tjmp *%1"
			 :
			 : "r"(mx_stack_top + (base - (uint64_t)mx_blob_start)),
			   "r"(mx_obey_entry + (base - (uint64_t)mx_blob_start)));
	__builtin_unreachable();
}

static void do_renew(int fd)
{
	int number = move_high(fd);

	if (mx_state.call_fd >= 0)
		mx_syscall(__NR_close, mx_state.call_fd, 0, 0, 0, 0, 0);
	mx_state.call_fd = number < 0 ? -1 : number;
	mx_state.first = 1;
	mx_state.renewals++;
	if (!mx_state.broken)
		return; /* the deputy has stopped us, and will say when to serve */
	mx_state.broken = 0;
	__asm__ volatile("lea mx_stack_top(%rip), %rsp\n\tjmp mx_serve_entry");
	__builtin_unreachable();
}

__attribute__((used)) _Noreturn void mx_obey(void)
{
	struct mx_order order;

	for (;;) {
		int fd = receive_order(&order);

		switch (order.op) {
		case MX_OP_CALLS:
			do_calls(order.count);
			break;
		case MX_OP_FILL:
			do_fill(order.fd, order.count);
			break;
		case MX_OP_FD:
			do_fd(fd);
			break;
		case MX_OP_RENEW:
			do_renew(fd);
			break;
		case MX_OP_MOVE:
			do_move();
		default:
			deputy_is_gone();
		}
	}
}
