// SPDX-License-Identifier: GPL-2.0
/*
 * The verdict on the system calls of migratable tasks.  mosix.ko runs verdict() at the entry of every
 * hooked call of every task and does what it says; the tracepoints keep the map of tasks: children
 * inherit, exec keeps, exit cleans up.  Loaded by mosix.kernel.intercept with bcc.  PIDs are those of
 * the initial namespace.  Whoever is not in the map is left alone, so a failure here is counted and
 * never widens what is intercepted.
 */
#include "intercept.h"
#include "mosix_uapi.h"

#define ENOSYS 38

BPF_HASH(tasks, u32, struct mx_task, MX_TASKS);
BPF_ARRAY(actions, u8, MX_POLICIES *MX_CALLS);
BPF_HASH(local_fds, struct mx_fd, u8, MX_LOCAL_FDS);
BPF_HASH(special_names, struct mx_name, u8, MX_NAMES);
BPF_PERCPU_ARRAY(counts, u64, MX_COUNTS);

static void count(u32 which)
{
	u64 *value = counts.lookup(&which);

	if (value)
		*value += 1;
}

static bool is_local(u64 fd)
{
	struct mx_fd key = {};

	key.tgid = bpf_get_current_pid_tgid() >> 32;
	key.fd = fd;
	return local_fds.lookup(&key) != NULL;
}

/* Whether `path`, in the task's memory, names a special file below /proc/self. */
static bool is_own_proc(u64 path)
{
	const char prefix[12] = "/proc/self/";
	char start[12] = {};
	struct mx_name key = {};

	if (bpf_probe_read_user(start, 11, (void *)path)) {
		/* Shorter than a page's rest, or not in memory just now. */
		if (bpf_probe_read_user_str(start, sizeof(start), (void *)path) < 0) {
			count(MX_COUNT_PATH_FAILED);
			return true;
		}
	}
#pragma unroll
	for (int i = 0; i < 11; i++) {
		if (start[i] != prefix[i])
			return false;
	}
	if (bpf_probe_read_user_str(key.name, sizeof(key.name), (void *)(path + 11)) < 0) {
		count(MX_COUNT_PATH_FAILED);
		return true;
	}
	return special_names.lookup(&key) != NULL;
}

int verdict(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tid = bpf_get_current_pid_tgid(), index, nr = ctx->args[1];
	struct mx_task *task = tasks.lookup(&tid);
	u8 *action;

	if (!task)
		return MOSIX_NATIVE;
	index = task->policy * MX_CALLS + nr;
	action = nr < MX_CALLS ? actions.lookup(&index) : NULL;
	if (!action)
		return MOSIX_NATIVE;
	switch (*action) {
	case MX_ACT_REDIRECT:
		break;
	case MX_ACT_BY_FD:
		if (is_local(ctx->args[2]))
			goto native;
		break;
	case MX_ACT_OWN_PROC:
		if (!is_own_proc(ctx->args[2]))
			goto native;
		break;
	case MX_ACT_OWN_PROC_AT:
		if (!is_own_proc(ctx->args[3]))
			goto native;
		break;
	case MX_ACT_DENY:
		count(MX_COUNT_DENIED);
		return MOSIX_VERDICT(MOSIX_DENY, 0, ENOSYS);
	case MX_ACT_KILL:
		count(MX_COUNT_KILLED);
		return MOSIX_KILL;
	default:
		goto native;
	}
	count(MX_COUNT_REDIRECTED);
	return MOSIX_VERDICT(MOSIX_REDIRECT, task->orphan, task->owner);
native:
	count(MX_COUNT_NATIVE);
	return MOSIX_NATIVE;
}

static void inherit(u32 from, u32 to)
{
	struct mx_task *task = tasks.lookup(&from);
	struct mx_task copy;

	if (!task)
		return;
	copy = *task;
	count(tasks.update(&to, &copy) ? MX_COUNT_MAP_FAILED : MX_COUNT_INHERITED);
}

TRACEPOINT_PROBE(sched, sched_process_fork)
{
	inherit(args->parent_pid, args->child_pid);
	return 0;
}

/* A thread that execs becomes its process's leader. */
TRACEPOINT_PROBE(sched, sched_process_exec)
{
	u32 old = args->old_pid;

	if (args->pid != args->old_pid) {
		inherit(args->old_pid, args->pid);
		tasks.delete(&old);
	}
	return 0;
}

TRACEPOINT_PROBE(sched, sched_process_exit)
{
	u32 tid = args->pid;

	if (tasks.lookup(&tid)) {
		tasks.delete(&tid);
		count(MX_COUNT_ENDED);
	}
	return 0;
}
