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

/* How special files are opened: O_RDONLY, O_WRONLY | O_CREAT, O_RDWR | O_CREAT (native/interface.h). */
#define IS_SPECIAL_OPEN(flags) ((u32)(flags) == 0 || (u32)(flags) == 0101 || (u32)(flags) == 0102)

/* "/proc/se" as a number */
#define PROC_SE 0x65732f636f72702fULL

BPF_HASH(tasks, u32, struct mx_task, MX_TASKS);
BPF_ARRAY(actions, struct mx_action, MX_POLICIES *MX_CALLS);
BPF_ARRAY(tests, struct mx_test, MX_TESTS);
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
	u64 first;

	/* Most are told by their first eight bytes, which are compared at once. */
	if (!bpf_probe_read_user(&first, sizeof(first), (void *)path) && first != PROC_SE)
		return false;
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

/* What the first rule says whose tests all hold. */
static u8 by_tests(const struct mx_action *action, const u64 *args)
{
	bool all = true;

	for (u32 i = 0; i < MX_MAX_TESTS; i++) {
		u32 index = action->first + i;
		struct mx_test *test;

		if (i >= action->n_tests)
			break;
		test = tests.lookup(&index);
		if (!test)
			break;
		if (((args[test->argument & 7] & test->mask) == test->value) == !!(test->flags & MX_TEST_DIFFERS))
			all = false;
		if (test->flags & MX_TEST_AND)
			continue;
		if (all)
			return test->action;
		all = true;
	}
	return action->otherwise;
}

int verdict(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tid = bpf_get_current_pid_tgid(), index, nr = ctx->args[1];
	struct mx_task *task = tasks.lookup(&tid);
	struct mx_action *entry;
	u8 action;

	if (!task)
		return MOSIX_NATIVE;
	if (!task->started)
		task->started = ctx->args[8];
	if (task->started != ctx->args[8]) {
		tasks.delete(&tid);
		count(MX_COUNT_STALE);
		return MOSIX_NATIVE;
	}
	index = task->policy * MX_CALLS + nr;
	entry = nr < MX_CALLS ? actions.lookup(&index) : NULL;
	if (!entry)
		return MOSIX_NATIVE;
	action = entry->action;
	if (action == MX_ACT_TESTS) {
		u64 args[8] = { ctx->args[2], ctx->args[3], ctx->args[4], ctx->args[5], ctx->args[6], ctx->args[7] };

		action = by_tests(entry, args);
	}
	switch (action) {
	case MX_ACT_REDIRECT:
		break;
	case MX_ACT_BY_FD:
		if (is_local(ctx->args[2]))
			goto native;
		break;
	case MX_ACT_OWN_PROC:
		if (!IS_SPECIAL_OPEN(ctx->args[3]) || !is_own_proc(ctx->args[2]))
			goto native;
		break;
	case MX_ACT_OWN_PROC_AT:
		if (!IS_SPECIAL_OPEN(ctx->args[4]) || !is_own_proc(ctx->args[3]))
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
	copy.started = 0;
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
