// SPDX-License-Identifier: GPL-2.0
/* Speaks with the agent, over another connection when one was lost, and writes what came back into the guest. */
#include "redirect_internal.h"

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
	in->ahead = in->ahead_left = 0;
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
	case MX_FAULT_HALF_OPEN:
		setsockopt(call_fd, SOL_SOCKET, SO_BINDTODEVICE, MX_NOWHERE, sizeof(MX_NOWHERE));
		/* fall through */
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
	if (MX_FAILPOINTS && __builtin_expect(armed.point == point, 0))
		return act(call_fd);
	return 0;
}

static inline int is_armed(int point)
{
	return MX_FAILPOINTS && __builtin_expect(armed.point == point, 0);
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

int hold(struct mx_redirect *r, enum held why, int event)
{
	struct internal *in = r->internal;

	in->state = HELD;
	in->held = why;
	return event;
}

int answered(struct mx_redirect *r, int64_t result)
{
	struct internal *in = r->internal;

	finish_call(r, result);
	shrink(&in->buffer, &in->room);
	if (!in->ahead)
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
int64_t cpu_total(const struct mx_redirect *r)
{
	struct timespec t;

	/* The CPU clock of a process: clock_getcpuclockid(3). */
	if (clock_gettime(((clockid_t)~r->pid << 3) | 2, &t))
		return -errno;
	return t.tv_sec * NS + t.tv_nsec - r->before_ns;
}

/* CPU time of the guest here and of its body elsewhere, in ns: the exact sum, divided as the
 * ticks in /proc say.  Neither part ever runs back (cputime_adjust() in kernel/sched/cputime.c). */
int cpu_used(struct mx_redirect *r, uint64_t *user, uint64_t *system, uint64_t faults[2])
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

/* What has come is what the next read may return.  It stays where the bytes of the reply will be looked for. */
static int take_ahead(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const struct mx_reply *reply = (const struct mx_reply *)in->reply;
	size_t size = reply->size, more = in->received - sizeof(*reply), part = min64(more, size);

	if (!size || size > MX_AHEAD_MAX)
		return broken(r, EPROTO);
	if (grow(&in->reply, &in->reply_room, sizeof(*reply) + size) < 0)
		return broken(r, ENOMEM);
	in->ahead = size;
	in->ahead_left = size - part;
	in->received = more - part;
	if (in->received) { /* more was asked for than was sent ahead, so that is something else */
		memmove(in->reply, in->reply + sizeof(*reply) + size, in->received);
		in->ahead = 0;
	}
	return 0;
}

/* The beginning of a reply is there; as much of it as there is. */
static int look_at_reply(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct mx_reply *reply = (struct mx_reply *)in->reply;
	uint64_t expected, wanted;
	int event;

	while (reply->flags & MX_REP_AHEAD) {
		event = take_ahead(r);
		if (event || in->received < sizeof(*reply))
			return event;
		reply = (struct mx_reply *)in->reply;
	}
	expected = expected_size(in->request, reply->result);
	if (reply->flags & MX_REP_SAME) {
		if (reply->size || in->ahead != expected || in->received != sizeof(*reply))
			return broken(r, EPROTO);
		reply->flags &= ~MX_REP_SAME;
		reply->size = in->ahead;
		in->received += in->ahead;
	}
	if (in->request->out_fixed || in->request->out_var)
		in->ahead = 0;
	wanted = sizeof(*reply) + reply->size;
	if (reply->id != in->request->id || in->received > wanted || reply->size != expected)
		return broken(r, EPROTO);
	if (in->received < wanted) {
		write_early(r);
		return 0;
	}
	if (failpoint(MX_FP_REPLY, r->call_fd))
		return cut(r, ECONNRESET);
	return take_reply(r);
}

/* Sends what is left of the request and waits for the reply.  Interrupted before the first byte
 * left, the call is as if it had not been made yet. */
int call_agent(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct mx_counter *counter = &r->counters[r->nr];
	const size_t head = sizeof(struct mx_reply);
	size_t most;
	char *to;
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
		r->total_bytes += n;
		if (in->sent < in->to_send)
			return 0;
		if (failpoint(MX_FP_SENT, r->call_fd))
			return cut(r, ECONNRESET);
	}
	most = head + in->request->out_fixed + in->request->out_var;
	if (grow(&in->reply, &in->reply_room, most) < 0)
		return broken(r, ENOMEM);
	if (in->ahead_left) {
		to = in->reply + head + in->ahead - in->ahead_left;
		most = in->ahead_left;
	} else {
		to = in->reply + in->received;
		most = min64((in->ahead ? head : most) - in->received, STEP);
		if (is_armed(MX_FP_HALF_REPLY)) {
			if (in->received && failpoint(MX_FP_HALF_REPLY, r->call_fd))
				return cut(r, ECONNRESET);
			if (!in->received)
				most = head / 2;
		}
	}
	n = step(r, SYS_recvfrom, to, most);
	if (n == -EINTR)
		return cancel_wanted(in);
	if (n < 0)
		return cut(r, -n);
	counter->received += n;
	r->total_bytes += n;
	if (in->ahead_left) {
		in->ahead_left -= n;
		return 0;
	}
	in->received += n;
	return in->received < head ? 0 : look_at_reply(r);
}
