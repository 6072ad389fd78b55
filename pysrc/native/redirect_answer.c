// SPDX-License-Identifier: GPL-2.0
/* Answers notifications, and makes the calls that need no agent: sleeping, what the redirector knows itself. */
#include "redirect_internal.h"

/* ---- answering ---- */

/* The reply to a parked call, if it has not gone out yet. */
int send_reply(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct mosix_reply reply = in->exchange.reply;

	in->exchange.reply.id = 0;
	return reply.id ? mx_parked_answer(r->listener, reply) : 0;
}

int send_answer(struct mx_redirect *r, int64_t result, int go_on)
{
	struct internal *in = r->internal;
	struct seccomp_notif_resp resp = { .id = in->notif.id };

	in->state = IDLE;
	if (r->device) {
		in->exchange.reply = mx_parked_reply(in->notif.id, result, go_on);
		return in->serving ? 0 : send_reply(r);
	}
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

int is_same(const struct kept *kept, const struct mx_redirect *r)
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

int finish_call(struct mx_redirect *r, int64_t result)
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

/* ---- sleeping ---- */

int sleep_on(struct mx_redirect *r)
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

int begin_sleep(struct mx_redirect *r)
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

int answer_here(struct mx_redirect *r)
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
