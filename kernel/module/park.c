// SPDX-License-Identifier: GPL-2.0
/*
 * Parked tasks.  A task whose call is redirected waits here, in place of the call, until the owner
 * has answered.  At most once: a call that nobody has read yet vanishes when a signal comes, and is
 * made again afterwards; one that was read waits for its answer whatever comes but SIGKILL.  That a
 * signal is waiting is told to the owner (MOSIX_CANCEL), who may then answer earlier.
 *
 * A struct mosix_call lies on the stack of its task.  Under owner->lock it is in the owner's list;
 * its task takes it out, nobody else.
 */
#include <linux/completion.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "mosix.h"

enum state { CALL_QUEUED, CALL_READ, CALL_ANSWERED, CALL_ORPHANED, CALL_INTERRUPTED, CALL_KILLED };

struct mosix_call {
	struct list_head node;
	struct completion done;
	struct task_struct *task;
	const struct pt_regs *regs;
	enum state state;
	bool cancel_wanted;
	bool cancel_told;
	u64 id;
	struct mosix_reply reply;
};

atomic64_t mosix_counts[MOSIX_COUNTS];

static bool is_restart(s64 result)
{
	return result == -ERESTARTSYS || result == -ERESTARTNOINTR || result == -ERESTARTNOHAND;
}

/* Queues the call and waits until its state says how it ended; it is in no list then. */
static void wait_for_answer(struct mosix_owner *owner, struct mosix_call *call)
{
	spin_lock(&owner->lock);
	if (owner->dead) {
		call->state = CALL_ORPHANED;
		spin_unlock(&owner->lock);
		return;
	}
	call->id = ++owner->next_id;
	list_add_tail(&call->node, &owner->calls);
	spin_unlock(&owner->lock);
	mosix_count(MOSIX_COUNT_REDIRECTED);
	mosix_count(MOSIX_COUNT_PARKED);
	/* We are about to sleep: no need to look for another CPU. */
	wake_up_interruptible_sync_poll(&owner->readers, EPOLLIN | EPOLLRDNORM);
	if (wait_for_completion_interruptible(&call->done)) {
		bool read;

		spin_lock(&owner->lock);
		read = call->state == CALL_READ;
		if (read)
			call->cancel_wanted = true;
		else if (call->state == CALL_QUEUED)
			call->state = fatal_signal_pending(current) ? CALL_KILLED : CALL_INTERRUPTED;
		spin_unlock(&owner->lock);
		if (read) {
			wake_up_interruptible(&owner->readers);
			/* Fails only when killed, which the state tells. */
			if (wait_for_completion_killable(&call->done))
				pr_debug("mosix: task %d killed while parked\n", task_pid_nr(current));
		}
	}
	spin_lock(&owner->lock);
	list_del(&call->node);
	if (call->state == CALL_READ)
		call->state = CALL_KILLED;
	spin_unlock(&owner->lock);
	atomic64_dec(&mosix_counts[MOSIX_COUNT_PARKED]);
}

static enum mosix_end as_orphan(u32 verdict, long *result)
{
	mosix_count(MOSIX_COUNT_ORPHANED);
	switch (MOSIX_VERDICT_ORPHAN(verdict)) {
	case MOSIX_ORPHAN_NATIVE:
		return MOSIX_END_NATIVE;
	case MOSIX_ORPHAN_KILL:
		send_sig(SIGKILL, current, 1);
		*result = -EINTR;
		return MOSIX_END_RESULT;
	default:
		*result = -EIO;
		return MOSIX_END_RESULT;
	}
}

static enum mosix_end as_answered(const struct mosix_reply *reply, long *result)
{
	if (reply->flags & MOSIX_RUN_NATIVELY) {
		mosix_count(MOSIX_COUNT_RAN_NATIVELY);
		return MOSIX_END_NATIVE;
	}
	mosix_count(MOSIX_COUNT_ANSWERED);
	*result = reply->result;
	/*
	 * A restart code must not reach user space.  Without a signal to take, the way out does not look
	 * at it, so it is made to: finding none it makes the call again.
	 */
	if (is_restart(reply->result))
		set_tsk_thread_flag(current, TIF_SIGPENDING);
	return MOSIX_END_RESULT;
}

/*
 * In the context of the task, in place of its call.  MOSIX_END_NATIVE: make the call after all, else
 * *result is what it returns.
 */
enum mosix_end mosix_park(struct pt_regs *regs, u32 verdict, long *result)
{
	struct mosix_call call = { .task = current, .regs = regs, .state = CALL_QUEUED };
	struct mosix_owner *owner = mosix_owner_get(MOSIX_VERDICT_VALUE(verdict));

	if (!owner)
		return as_orphan(verdict, result);
	init_completion(&call.done);
	wait_for_answer(owner, &call);
	mosix_owner_put(owner);
	switch (call.state) {
	case CALL_ANSWERED:
		return as_answered(&call.reply, result);
	case CALL_ORPHANED:
		return as_orphan(verdict, result);
	case CALL_INTERRUPTED:
		/* As if the signal had come just before the call. */
		mosix_count(MOSIX_COUNT_INTERRUPTED);
		*result = -ERESTARTNOINTR;
		return MOSIX_END_RESULT;
	default:
		mosix_count(MOSIX_COUNT_KILLED);
		*result = -EINTR;
		return MOSIX_END_RESULT;
	}
}

static struct mosix_call *find_unread(struct mosix_owner *owner)
{
	struct mosix_call *call;

	lockdep_assert_held(&owner->lock);
	list_for_each_entry(call, &owner->calls, node)
	{
		if (call->state == CALL_QUEUED)
			return call;
		if (call->state == CALL_READ && call->cancel_wanted && !call->cancel_told)
			return call;
	}
	return NULL;
}

static struct mosix_call *find(struct mosix_owner *owner, u64 id)
{
	struct mosix_call *call;

	lockdep_assert_held(&owner->lock);
	list_for_each_entry(call, &owner->calls, node)
	{
		if (call->id == id)
			return call;
	}
	return NULL;
}

bool mosix_park_readable(struct mosix_owner *owner)
{
	bool readable;

	spin_lock(&owner->lock);
	readable = find_unread(owner);
	spin_unlock(&owner->lock);
	return readable;
}

static void fill(struct mosix_request *request, const struct mosix_call *call)
{
	const struct pt_regs *regs = call->regs;
	struct pid_namespace *ns = task_active_pid_ns(current);

	*request = (struct mosix_request){
		.id = call->id,
		.kind = call->state == CALL_QUEUED ? MOSIX_CALL : MOSIX_CANCEL,
		.nr = regs->orig_ax,
		.tid = task_pid_nr_ns(call->task, ns),
		.tgid = task_tgid_nr_ns(call->task, ns),
		.args = { regs->di, regs->si, regs->dx, regs->r10, regs->r8, regs->r9 },
		.ip = regs->ip,
		.sp = regs->sp,
	};
}

/* False when there is nothing to be read. */
bool mosix_park_next(struct mosix_owner *owner, struct mosix_request *request)
{
	struct mosix_call *call;

	spin_lock(&owner->lock);
	call = find_unread(owner);
	if (call) {
		fill(request, call);
		if (call->state == CALL_QUEUED)
			call->state = CALL_READ;
		else
			call->cancel_told = true;
	}
	spin_unlock(&owner->lock);
	return call;
}

/* The reader's memory could not be written: it is as if it had not been read. */
void mosix_park_unread(struct mosix_owner *owner, const struct mosix_request *request)
{
	struct mosix_call *call;

	spin_lock(&owner->lock);
	call = find(owner, request->id);
	if (call && call->state == CALL_READ) {
		if (request->kind == MOSIX_CANCEL) {
			call->cancel_told = false;
		} else if (call->cancel_wanted) {
			/* It no longer waits for being read, but for an answer: "nothing was done". */
			call->reply.result = -ERESTARTNOINTR;
			call->state = CALL_ANSWERED;
			complete(&call->done);
		} else {
			call->state = CALL_QUEUED;
		}
	}
	spin_unlock(&owner->lock);
}

int mosix_park_answer(struct mosix_owner *owner, const struct mosix_reply *reply)
{
	struct mosix_call *call;
	int error = -ENOENT;

	if (reply->zero || reply->flags & ~MOSIX_RUN_NATIVELY)
		return -EINVAL;
	if (reply->flags & MOSIX_RUN_NATIVELY && reply->result)
		return -EINVAL;
	/* Of the kernel's own codes those for a call made again; there is no restart block of ours. */
	if (reply->result < -MAX_ERRNO ||
	    (reply->result <= -ERESTARTSYS && reply->result > -EBADHANDLE && !is_restart(reply->result)))
		return -EINVAL;
	spin_lock(&owner->lock);
	call = find(owner, reply->id);
	if (call && call->state == CALL_READ) {
		call->reply = *reply;
		call->state = CALL_ANSWERED;
		complete(&call->done);
		error = 0;
	}
	spin_unlock(&owner->lock);
	return error;
}

/* Whether the task of a call that was read still waits for its answer. */
bool mosix_park_waits(struct mosix_owner *owner, u64 id)
{
	struct mosix_call *call;
	bool waits;

	spin_lock(&owner->lock);
	call = find(owner, id);
	waits = call && call->state == CALL_READ;
	spin_unlock(&owner->lock);
	return waits;
}

void mosix_park_orphan_all(struct mosix_owner *owner)
{
	struct mosix_call *call;

	spin_lock(&owner->lock);
	owner->dead = true;
	list_for_each_entry(call, &owner->calls, node)
	{
		if (call->state == CALL_QUEUED || call->state == CALL_READ) {
			call->state = CALL_ORPHANED;
			complete(&call->done);
		}
	}
	spin_unlock(&owner->lock);
}
