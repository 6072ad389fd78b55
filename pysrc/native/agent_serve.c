// SPDX-License-Identifier: GPL-2.0
/*
 * The agent's serving half: executes the calls that a guest's redirector sends
 * (abi.h, "call socket") in the ghost, one at a time, until the socket ends.
 * Entered by mosix.native.agent through the blob; with -DMX_HOSTED it is an
 * ordinary C file, which the tests link into a process of their own.
 *
 * It must never let the program reach the agent's own descriptors, never trust
 * a size, and keep nothing that belongs to a call when it waits for the next:
 * whoever stops it with current_id == 0 may take its memory away.
 */
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/resource.h>
#include <linux/signal.h>
#include <linux/stat.h>

#include "agent.h"
#include "failpoint.h"
#include "own_proc.h"

#define MSG_NOSIGNAL_ 0x4000
#define NR_CLOSE_RANGE 436
#define NR_EPOLL_PWAIT2 441
#define SIGSET_SIZE 8
#define HIGHEST_FD 4096
#define NOBODYS_FD 0x7fffffff /* above every limit: what the program sees of our own numbers */
#define NR_OPENAT2 437
#define PROC_MAGIC 0x9fa0
#define ERESTARTNOINTR_ 513
#define SOL_SOCKET_ 1
#define SO_BINDTODEVICE_ 25
#define MSG_DONTWAIT_ 0x40
#define O_DIRECT_ 040000
#define RWF_NOWAIT_ 8
#define TMPFS 0x01021994

/* One request with its relocations and up to a megabyte of area; only what was
 * touched takes memory.  Larger calls map what they need and give it back. */
#define SCRATCH_SIZE ((1u << 20) + 4096 + AHEAD_SIZE)
/* What is sent ahead lies at the end of it, behind its header. */
#define AHEAD_SIZE (4096u + MX_AHEAD_MAX)
/* So many reads of one size show that a file is read to its end, and each of so many bytes costs
 * more than a second look at the file. */
#define AHEAD_AFTER 3
#define AHEAD_LEAST (32u << 10)

struct kernel_sigaction {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

long mx_redirected(long nr, const uint64_t *args);

/* The one `syscall` whose next instruction the deputy knows. */
__asm__(".pushsection .text,\"ax\"\n"
	".globl mx_redirected, mx_call_return\n"
	".hidden mx_redirected, mx_call_return\n"
	"mx_redirected:\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %r11\n"
	"	mov 0(%r11), %rdi\n"
	"	mov 8(%r11), %rsi\n"
	"	mov 16(%r11), %rdx\n"
	"	mov 24(%r11), %r10\n"
	"	mov 32(%r11), %r8\n"
	"	mov 40(%r11), %r9\n"
	"	syscall\n"
	"mx_call_return:\n"
	"	ret\n"
	"	.popsection\n");

static uint64_t bit(long signal)
{
	return 1ULL << (signal - 1);
}

static int is_ours(const struct mx_agent_state *state, long fd)
{
	return (int32_t)fd >= 0 && ((int32_t)fd == state->call_fd || (int32_t)fd == state->control_fd);
}

static void set_ghost_mask(const struct mx_agent_state *state)
{
	uint64_t mask = state->guest_mask | state->ignored;

	mx_syscall(__NR_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, SIGSET_SIZE, 0, 0);
}

static int ignores(int signal, uint64_t handler)
{
	if (handler == (uint64_t)SIG_IGN)
		return 1;
	return handler == (uint64_t)SIG_DFL &&
	       (signal == SIGCHLD || signal == SIGCONT || signal == SIGURG || signal == SIGWINCH);
}

/*
 * A signal that the guest ignores is blocked in the ghost and so stays pending,
 * where natively it would have been dropped.  Setting the ignoring disposition
 * once more drops it: before anything else is installed.  What the guest blocks
 * itself is pending natively too and stays.
 */
static long do_sigaction(struct mx_agent_state *state, const uint64_t *args)
{
	const struct kernel_sigaction *action = (const struct kernel_sigaction *)args[1];
	struct kernel_sigaction old;
	long signal = (int32_t)args[0];
	long result;

	if (signal < 1 || signal > 64 || args[3] != SIGSET_SIZE)
		return -EINVAL;
	if (action && state->ignored & bit(signal) && !(state->guest_mask & bit(signal))) {
		mx_syscall(__NR_rt_sigaction, signal, 0, (long)&old, SIGSET_SIZE, 0, 0);
		mx_syscall(__NR_rt_sigaction, signal, (long)&old, 0, SIGSET_SIZE, 0, 0);
	}
	result = mx_redirected(__NR_rt_sigaction, args);
	if (result || !action)
		return result;
	if (ignores(signal, action->handler))
		state->ignored |= bit(signal);
	else
		state->ignored &= ~bit(signal);
	set_ghost_mask(state);
	return result;
}

static int signal_is_due(const struct mx_agent_state *state, const struct mx_request *request)
{
	return state->signals > request->signals;
}

/* Natively the guest's handler would have run before this call was made. */
static long send_back(struct mx_agent_state *state)
{
	state->cancelled = 1;
	return -ERESTARTNOINTR_;
}

/* A signal that was taken while the old mask held must not find the new one in the guest. */
static long do_sigprocmask(struct mx_agent_state *state, const struct mx_request *request)
{
	const uint64_t *args = request->args;
	const uint64_t *set = (const uint64_t *)args[1];
	uint64_t *old = (uint64_t *)args[2];
	uint64_t before = state->guest_mask, mask = before;

	if (args[3] != SIGSET_SIZE)
		return -EINVAL;
	if (set) {
		switch ((int32_t)args[0]) {
		case SIG_BLOCK:
			mask |= *set;
			break;
		case SIG_UNBLOCK:
			mask &= ~*set;
			break;
		case SIG_SETMASK:
			mask = *set;
			break;
		default:
			return -EINVAL;
		}
	}
	if (old)
		*old = before;
	if (set) {
		state->guest_mask = mask & ~(bit(SIGKILL) | bit(SIGSTOP));
		set_ghost_mask(state);
		if (signal_is_due(state, request)) {
			state->guest_mask = before;
			set_ghost_mask(state);
			return send_back(state);
		}
	}
	return 0;
}

static long do_sigpending(struct mx_agent_state *state, const uint64_t *args)
{
	long result = mx_redirected(__NR_rt_sigpending, args);
	uint64_t i;

	/* Natively nothing that is not blocked is ever seen pending. */
	for (i = 0; !result && i < args[1]; i++)
		((uint8_t *)args[0])[i] &= state->guest_mask >> 8 * i;
	return result;
}

/* A temporary mask must block what the guest ignores: the tracer would be told.  A signal that it
 * lets through cannot be taken by the guest, whose kernel has no such mask: see
 * mosix.deputy.process. */
static void prepare_mask(struct mx_agent_state *state, long nr, const uint64_t *args)
{
	uint64_t *mask = 0;

	switch (nr) {
	case __NR_ppoll:
		mask = (uint64_t *)args[3];
		break;
	case __NR_epoll_pwait:
	case NR_EPOLL_PWAIT2:
		mask = (uint64_t *)args[4];
		break;
	case __NR_rt_sigsuspend:
		mask = (uint64_t *)args[0];
		break;
	case __NR_pselect6:
		if (args[5])
			mask = *(uint64_t **)args[5];
		break;
	}
	if (!mask)
		return;
	*mask |= state->ignored;
	state->masked = 1;
}

/* The program wants our number: another one, as high as is free. */
static int renumber(struct mx_agent_state *state, int fd)
{
	struct rlimit limit = { 0 };
	long number, at;

	mx_syscall(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit, 0, 0);
	at = limit.rlim_cur < HIGHEST_FD ? limit.rlim_cur : HIGHEST_FD;
	do {
		if (at <= 0)
			return -EMFILE;
		number = mx_syscall(__NR_fcntl, fd, F_DUPFD_CLOEXEC, --at, 0, 0, 0);
	} while (number < 0);
	mx_syscall(__NR_close, fd, 0, 0, 0, 0, 0);
	if (state->call_fd == fd)
		state->call_fd = number;
	else
		state->control_fd = number;
	return 0;
}

static long do_close_range(const struct mx_agent_state *state, const uint64_t *args)
{
	uint64_t first = (uint32_t)args[0], last = (uint32_t)args[1];
	uint64_t flags = (uint32_t)args[2];
	int64_t low = state->call_fd, high = state->control_fd;
	int i;

	if (low > high) {
		low = state->control_fd;
		high = state->call_fd;
	}
	if (first > last)
		return mx_redirected(NR_CLOSE_RANGE, args);
	for (i = 0; i < 3; i++) {
		int64_t stop = i == 0 ? low : i == 1 ? high : -1;
		uint64_t part[6] = { first, last, flags, 0, 0, 0 };
		long result;

		if (i < 2) {
			if (stop < 0 || (uint64_t)stop < first || (uint64_t)stop > last)
				continue;
			part[1] = stop - 1;
		}
		if (part[0] <= part[1] && part[1] <= UINT32_MAX) {
			result = mx_redirected(NR_CLOSE_RANGE, part);
			if (result)
				return result;
		}
		if (i < 2)
			first = stop + 1;
	}
	return 0;
}

static char *number_into(char *end, long number)
{
	do
		*--end = '0' + number % 10;
	while (number /= 10);
	return end;
}

/* Is the open file one of /proc that describes this process itself?  A relative path, a
 * descriptor or a link may have led there. */
static int is_own_proc(long fd)
{
	uint64_t fs[16];
	char link[40] = "/proc/self/fd/", path[128], digits[24], *end = digits + sizeof(digits), *pid;
	long size, name, above, i;

	if (mx_syscall(__NR_fstatfs, fd, (long)fs, 0, 0, 0, 0) || fs[0] != PROC_MAGIC)
		return 0;
	*--end = 0;
	pid = number_into(end, fd);
	for (i = 0; pid[i]; i++)
		link[14 + i] = pid[i];
	size = mx_syscall(__NR_readlink, (long)link, (long)path, sizeof(path), 0, 0, 0);
	if (size <= 0 || size >= (long)sizeof(path))
		return 0;
	for (name = size; name > 0 && path[name - 1] != '/'; name--)
		;
	if (name < 2 || !mx_is_own_proc(path + name, size - name))
		return 0;
	for (above = name - 1; above > 0 && path[above - 1] != '/'; above--)
		;
	pid = number_into(end, mx_syscall(__NR_getpid, 0, 0, 0, 0, 0, 0));
	for (i = 0; pid[i] && above + i < name - 1 && path[above + i] == pid[i]; i++)
		;
	return !pid[i] && above + i == name - 1;
}

/* What an open has returned; a file that only home can show is closed again. */
static long opened(struct mx_agent_state *state, long fd)
{
	if (fd < 0 || !is_own_proc(fd))
		return fd;
	mx_syscall(__NR_close, fd, 0, 0, 0, 0, 0);
	state->go_home = 1;
	return -ERESTARTNOINTR_;
}

static long execute(struct mx_agent_state *state, struct mx_request *request)
{
	uint64_t *args = request->args;
	long result;
	int i;

	if (!(request->flags & MX_REQ_AGAIN) && signal_is_due(state, request))
		return send_back(state);
	for (i = 0; i < 6; i++)
		if (request->fd_mask & (1 << i) && is_ours(state, args[i]))
			args[i] = NOBODYS_FD;
	switch (request->nr) {
	case __NR_rt_sigaction:
		return do_sigaction(state, args);
	case __NR_rt_sigprocmask:
		return do_sigprocmask(state, request);
	case __NR_rt_sigpending:
		return do_sigpending(state, args);
	case NR_CLOSE_RANGE:
		return do_close_range(state, args);
	case __NR_dup2:
	case __NR_dup3:
		if (is_ours(state, args[1])) {
			result = renumber(state, args[1]);
			if (result)
				return result;
		}
		break;
	case __NR_fcntl:
		if (((int32_t)args[1] == F_DUPFD || (int32_t)args[1] == F_DUPFD_CLOEXEC) && is_ours(state, args[2])) {
			result = renumber(state, args[2]);
			if (result)
				return result;
		}
		break;
	case __NR_exit:
	case __NR_exit_group:
		mx_syscall(__NR_times, 0, MX_LAST_TIMES, args[1], args[2], 0, 0);
		break;
	case __NR_open:
	case __NR_openat:
	case NR_OPENAT2:
		return opened(state, mx_redirected(request->nr, args));
	default:
		prepare_mask(state, request->nr, args);
	}
	result = mx_redirected(request->nr, args);
	state->masked = 0;
	return result;
}

static uint64_t room_of(const struct mx_agent_state *state)
{
	return state->area_size - AHEAD_SIZE;
}

static long map(uint64_t size)
{
	return mx_syscall(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int send_all(const struct mx_agent_state *state, const char *from, uint64_t size)
{
	while (size) {
		long n = mx_syscall(__NR_sendto, state->call_fd, (long)from, size, MSG_NOSIGNAL_, 0, 0);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return -1;
		from += n;
		size -= n;
	}
	return 0;
}

static int receive_until(const struct mx_agent_state *state, char *to, uint64_t *have, uint64_t wanted, uint64_t room)
{
	while (*have < wanted) {
		long n = mx_syscall(__NR_recvfrom, state->call_fd, (long)(to + *have), room - *have, 0, 0, 0);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return -1;
		*have += n;
	}
	return 0;
}

__attribute__((noinline, cold)) static int act(struct mx_agent_state *state)
{
	if (--state->fault_hits)
		return 0;
	state->failpoint = 0;
	switch (state->fault) {
	case MX_FAULT_KILL:
		mx_syscall(__NR_kill, mx_syscall(__NR_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
		return 0;
	case MX_FAULT_HALF_OPEN:
		mx_syscall(__NR_setsockopt, state->call_fd, SOL_SOCKET_, SO_BINDTODEVICE_, (long)MX_NOWHERE,
			   sizeof(MX_NOWHERE), 0);
		/* fall through */
	case MX_FAULT_CUT:
		mx_syscall(__NR_shutdown, state->call_fd, 2, 0, 0, 0, 0);
		return 0;
	case MX_FAULT_STALL:
		mx_syscall(__NR_poll, 0, 0, state->fault_value, 0, 0, 0);
		return 0;
	default:
		return -1;
	}
}

static inline int is_armed(const struct mx_agent_state *state, uint32_t point)
{
	return MX_FAILPOINTS && __builtin_expect(state->failpoint == point, 0);
}

static inline int failpoint(struct mx_agent_state *state, uint32_t point)
{
	return is_armed(state, point) ? act(state) : 0;
}

static int is_sound(const struct mx_request *request)
{
	uint64_t relocs = request->n_relocs * sizeof(struct mx_reloc);
	uint64_t out = (uint64_t)request->out_offset + request->out_fixed + request->out_var;

	return request->n_relocs <= MX_MAX_RELOCS && request->area_size <= MX_MAX_AREA &&
	       request->data_size <= request->area_size && out <= request->area_size &&
	       request->size == relocs + request->data_size;
}

static int relocate(struct mx_request *request, const struct mx_reloc *relocs, char *area)
{
	int i;

	for (i = 0; i < request->n_relocs; i++) {
		uint64_t target = (uint64_t)area + relocs[i].to;
		uint32_t at = relocs[i].at;

		if (relocs[i].to > request->area_size)
			return -1;
		if (at & MX_RELOC_ARG) {
			if ((at & ~MX_RELOC_ARG) >= 6)
				return -1;
			request->args[at & ~MX_RELOC_ARG] = target;
		} else {
			if (at % 8 || (uint64_t)at + 8 > request->area_size)
				return -1;
			*(uint64_t *)(area + at) = target;
		}
	}
	return 0;
}

/*
 * The first request of a connection.  1: it is a new one, and *request its header; 0: the one
 * executed last, whose reply was lost and is sent again; -1: neither, or the socket ended.
 */
static int first_request(struct mx_agent_state *state, struct mx_request *request)
{
	char rest[1024];
	uint64_t have = 0, left;

	if (receive_until(state, (char *)request, &have, sizeof(*request), sizeof(*request)))
		return -1;
	state->first = 0;
	state->ahead_size = state->ahead_left = 0;
	if (request->id == state->last_id + 1)
		return 1;
	if (request->id != state->last_id || !state->reply)
		return -1;
	for (left = request->size; left; left -= have) {
		have = 0;
		if (receive_until(state, rest, &have, left < sizeof(rest) ? left : sizeof(rest), sizeof(rest)))
			return -1;
	}
	return send_all(state, (char *)state->reply, state->reply_size);
}

/* The reply may have to be sent again; it must not take more memory than it needs. */
static void keep_reply(struct mx_agent_state *state, char *buffer, uint64_t room, struct mx_reply *reply)
{
	uint64_t size = sizeof(*reply) + reply->size;

	state->last_id = reply->id;
	state->reply_size = size;
	if (buffer != (char *)state->area && size > room_of(state)) {
		state->kept = (uint64_t)buffer;
		state->kept_size = room;
	} else if (buffer != (char *)state->area) {
		memcpy((char *)state->area, reply, size);
		mx_syscall(__NR_munmap, (long)buffer, room, 0, 0, 0, 0);
		reply = (struct mx_reply *)state->area;
	}
	state->reply = (uint64_t)reply;
}

static void forget_reply(struct mx_agent_state *state)
{
	state->reply = 0;
	if (state->kept) {
		mx_syscall(__NR_munmap, state->kept, state->kept_size, 0, 0, 0, 0);
		state->kept = 0;
	}
}

static uint64_t out_size(const struct mx_request *request, int64_t result)
{
	uint64_t more;

	if (result < 0)
		return request->flags & MX_REQ_OUT_ON_ERROR ? request->out_fixed : 0;
	/* No call returns a larger count than fits; an address (brk) has no unit. */
	more = (uint64_t)result > MX_MAX_AREA ? MX_MAX_AREA : (uint64_t)result;
	more *= request->out_unit;
	return request->out_fixed + (more < request->out_var ? more : request->out_var);
}

/* ---- reading ahead: abi.h ---- */

/* The redirector then needs the memory in which it keeps what was sent ahead. */
static int returns_bytes(const struct mx_request *request)
{
	return request->out_fixed || request->out_var;
}

/* It is on its way when the reply goes out. */
static int send_rest_ahead(struct mx_agent_state *state)
{
	uint64_t left = state->ahead_left;

	if (__builtin_expect(!left, 1))
		return 0;
	state->ahead_left = 0;
	return send_all(state, (char *)state->area + state->area_size - left, left);
}

static int is_equal(const char *a, const char *b, uint64_t size)
{
	typedef uint64_t __attribute__((aligned(1), may_alias)) word;
	uint64_t i = 0;

	for (; i + 32 <= size; i += 32) {
		const word *x = (const word *)(a + i), *y = (const word *)(b + i);

		if ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]))
			return 0;
	}
	for (; i < size; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* Has the redirector got these bytes, and nothing else, for this request? */
static int was_sent_ahead(const struct mx_agent_state *state, const struct mx_request *request,
			  const struct mx_reply *reply)
{
	return state->ahead_size && request->out_var == state->ahead_size && reply->size == state->ahead_size &&
	       !request->out_fixed &&
	       is_equal((char *)(reply + 1), (char *)state->area + state->area_size - reply->size, reply->size);
}

/* What a read at this position would return now, if that is at hand: nobody waits for it.  At the end of the buffer. */
static char *look_ahead(const struct mx_agent_state *state, long fd, long at, uint64_t size)
{
	char *to = (char *)state->area + state->area_size - size;
	struct {
		char *base;
		uint64_t size;
	} part = { to, size };
	struct stat file;
	uint64_t fs[16];
	long n;

	if (mx_syscall(__NR_fstat, fd, (long)&file, 0, 0, 0, 0) || !S_ISREG(file.st_mode) ||
	    mx_syscall(__NR_fcntl, fd, F_GETFL, 0, 0, 0, 0) & O_DIRECT_)
		return 0;
	/* Files of /proc and /sys, which may mind being read, have no such size. */
	if (file.st_size < at || file.st_size - at < (long)size)
		return 0;
	n = mx_syscall(__NR_preadv2, fd, (long)&part, 1, at, 0, RWF_NOWAIT_);
	if (n == -EOPNOTSUPP && !mx_syscall(__NR_fstatfs, fd, (long)fs, 0, 0, 0, 0) && fs[0] == TMPFS)
		n = mx_syscall(__NR_preadv2, fd, (long)&part, 1, at, 0, 0);
	return n == (long)size ? to : 0;
}

/* Is this one of reads of one size, each of which begins where the last one ended? */
static int reads_on(struct mx_agent_state *state, const struct mx_request *request, uint64_t size)
{
	int32_t fd = request->args[0];
	long end;

	if (request->nr != __NR_read || size != request->args[2] || size != request->out_var || size < AHEAD_LEAST ||
	    size > MX_AHEAD_MAX) {
		state->reads = 0;
		return 0;
	}
	end = mx_syscall(__NR_lseek, fd, 0, 1 /* SEEK_CUR */, 0, 0, 0);
	if (state->reads_fd != fd || state->reads_size != size || state->reads_end + (long)size != end)
		state->reads = 0;
	state->reads_fd = fd;
	state->reads_size = size;
	state->reads_end = end;
	if (end < 0 || ++state->reads < AHEAD_AFTER)
		return 0;
	state->reads = AHEAD_AFTER;
	return 1;
}

/* The request has been replied to, with `size` bytes.  Never waits. */
static void read_ahead(struct mx_agent_state *state, const struct mx_request *request, uint64_t size)
{
	struct mx_reply *ahead;
	uint64_t whole = sizeof(*ahead) + size;
	char *data;
	long n;

	if (!returns_bytes(request) || !reads_on(state, request, size))
		return;
	data = look_ahead(state, state->reads_fd, state->reads_end, size);
	if (!data)
		return;
	ahead = (struct mx_reply *)data - 1;
	*ahead = (struct mx_reply){ .size = size, .flags = MX_REP_AHEAD, .id = request->id, .result = size };
	state->ahead_left = MX_AHEAD_UNKNOWN;
	n = mx_syscall(__NR_sendto, state->call_fd, (long)ahead, whole, MSG_NOSIGNAL_ | MSG_DONTWAIT_, 0, 0);
	state->ahead_size = n > 0 ? size : 0;
	state->ahead_left = n > 0 ? whole - n : 0;
}

/* Memory for a request that does not fit into the area; 0: none, and the guest goes home with it. */
static char *larger(struct mx_agent_state *state, const struct mx_request *request, uint64_t *room, uint64_t have)
{
	long result = map(*room);
	struct mx_reply reply = { .flags = MX_REP_GO_HOME, .id = request->id, .signals = state->signals };
	uint64_t left, some;

	if (result >= 0 || result < -4095) {
		memcpy((char *)result, (char *)state->area, have);
		return (char *)result;
	}
	/* It is read all the same: behind it comes the next one. */
	for (left = sizeof(*request) + request->size - have; left; left -= some) {
		uint64_t most = left < room_of(state) ? left : room_of(state);

		some = 0;
		if (receive_until(state, (char *)state->area, &some, most, most))
			return 0;
	}
	state->ahead_size = 0;
	reply.result = -ERESTARTNOINTR_;
	memcpy((char *)state->area, &reply, sizeof(reply));
	keep_reply(state, (char *)state->area, 0, (struct mx_reply *)state->area);
	if (!send_rest_ahead(state))
		send_all(state, (char *)&reply, sizeof(reply));
	return 0;
}

/* What goes over the wire in one piece, unless a test wants it in two. */
static int send_reply(struct mx_agent_state *state, int same)
{
	struct mx_reply only = *(struct mx_reply *)state->reply;
	const char *reply = (char *)state->reply;
	uint64_t size = state->reply_size, sent = 0;

	if (failpoint(state, MX_FP_EXECUTED) || send_rest_ahead(state))
		return -1;
	if (same) { /* what is kept is whole: another connection may ask for it */
		only.flags |= MX_REP_SAME;
		only.size = 0;
		reply = (char *)&only;
		size = sizeof(only);
	}
	if (is_armed(state, MX_FP_HALF_REPLY)) {
		sent = sizeof(struct mx_reply) / 2;
		send_all(state, reply, sent);
		if (failpoint(state, MX_FP_HALF_REPLY))
			return -1;
	}
	return send_all(state, reply + sent, size - sent);
}

/* One request; -1 when the socket ended or what came was not a request. */
static int serve_one(struct mx_agent_state *state)
{
	char *buffer = (char *)state->area;
	uint64_t room = room_of(state);
	uint64_t have = 0, wanted, needed, size;
	struct mx_request request;
	struct mx_reply *reply;
	char *area;
	long result;
	int same;

	if (__builtin_expect(state->first, 0)) {
		result = first_request(state, &request);
		if (result <= 0)
			return result;
		*(struct mx_request *)buffer = request;
		have = sizeof(request);
	}
	if (receive_until(state, buffer, &have, sizeof(request), room))
		return -1;
	request = *(struct mx_request *)buffer;
	if (!is_sound(&request))
		return -1;
	forget_reply(state);
	state->cancelled = 0;
	state->go_home = 0;
	wanted = sizeof(request) + request.size;
	needed = sizeof(request) + request.n_relocs * sizeof(struct mx_reloc) + request.area_size;
	if (have > wanted)
		return -1;
	if (needed > room) {
		room = (needed + 4095) & ~4095ULL;
		buffer = larger(state, &request, &room, have);
		if (!buffer)
			return state->reply ? 0 : -1;
	}
	area = buffer + needed - request.area_size;
	if (receive_until(state, buffer, &have, wanted, wanted) ||
	    relocate(&request, (struct mx_reloc *)(buffer + sizeof(request)), area) ||
	    failpoint(state, MX_FP_REQUEST)) {
		if (buffer != (char *)state->area)
			mx_syscall(__NR_munmap, (long)buffer, room, 0, 0, 0, 0);
		return -1;
	}
	/* Only a whole request can be cancelled: another one of its number may come. */
	state->current_id = request.id;
	result = execute(state, &request);
	/* The reply's header goes over what is no longer needed, right in
	 * front of the bytes that go back: one send without a copy. */
	reply = (struct mx_reply *)(area + request.out_offset) - 1;
	reply->size = out_size(&request, result);
	reply->flags = (state->cancelled ? MX_REP_CANCELLED : 0) | (state->go_home ? MX_REP_GO_HOME : 0);
	reply->id = request.id;
	reply->result = result;
	reply->signals = state->signals;
	state->calls++;
	same = was_sent_ahead(state, &request, reply);
	if (returns_bytes(&request)) {
		if (state->ahead_size && !same)
			state->reads = 0;
		state->ahead_size = 0;
	}
	size = reply->size;
	keep_reply(state, buffer, room, reply);
	result = send_reply(state, same);
	state->current_id = 0;
	if (!result)
		read_ahead(state, &request, size);
	return result;
}

void serve(struct mx_agent_state *state)
{
	if (!state->area) {
		long address = map(SCRATCH_SIZE);

		if (address >= 0 || address < -4095) {
			state->area = address;
			state->area_size = SCRATCH_SIZE;
			state->ahead_size = 0;
		}
	}
	while (state->area && state->ahead_left != MX_AHEAD_UNKNOWN && !serve_one(state))
		;
	/* Whatever ended it: the redirector must not wait for a reply on this connection. */
	state->current_id = 0;
	state->first = 1;
	state->ahead_left = 0;
	if (state->call_fd >= 0) {
		mx_syscall(__NR_shutdown, state->call_fd, 2, 0, 0, 0, 0);
		mx_syscall(__NR_close, state->call_fd, 0, 0, 0, 0, 0);
	}
	state->call_fd = -1;
	state->broken = 1;
}
