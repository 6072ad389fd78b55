// SPDX-License-Identifier: GPL-2.0
/*
 * Hooks: which system calls are looked at, and what decides about them.
 *
 * ftrace calls us at the entry of just those functions, and only while somebody owns tasks.  The eBPF
 * program says what becomes of the call; unless that is "native", the task goes to stub() instead of
 * the function, where it may sleep.  Everybody else's calls pay for the entry and the program.
 */
#include <linux/bpf.h>
#include <linux/ctype.h>
#include <linux/filter.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>
#include <asm/ibt.h>

#include "mosix.h"

/* What the program sees as struct bpf_raw_tracepoint_args. */
struct context {
	u64 args[12];
};

static DEFINE_MUTEX(mutex); /* of all of these, but that the hook reads the program under RCU */
static struct bpf_prog __rcu *program;
static const void *program_holder;
static u32 hooked;
static u32 users;
static bool registered;

static u32 ask(struct bpf_prog *prog, const struct pt_regs *regs)
{
	struct context context = { .args = { (unsigned long)regs, regs->orig_ax, regs->di, regs->si, regs->dx,
					     regs->r10, regs->r8, regs->r9 } };
	u32 verdict;

	preempt_disable();
	verdict = bpf_prog_run(prog, &context);
	preempt_enable();
	return verdict;
}

/* The hooked function itself; `ip` is where it was entered, which lies behind an ENDBR if there is one. */
static long call_original(const struct pt_regs *regs, unsigned long ip)
{
	long (*function)(const struct pt_regs *);
	u32 before;

	if (!get_kernel_nofault(before, (u32 *)(ip - sizeof(before))) && is_endbr(before))
		ip -= sizeof(before);
	function = (void *)ip;
	return function(regs);
}

/* In place of the system call, in the context of its task. */
static noinline long stub(const struct pt_regs *regs, unsigned long ip, u32 verdict)
{
	enum mosix_end end = MOSIX_END_RESULT;
	long result = -EINTR;
	u32 value = MOSIX_VERDICT_VALUE(verdict);

	switch (MOSIX_VERDICT_ACTION(verdict)) {
	case MOSIX_REDIRECT:
		end = mosix_park((struct pt_regs *)regs, verdict, &result);
		break;
	case MOSIX_DENY:
		mosix_count(MOSIX_COUNT_DENIED);
		result = value > 0 && value < ERESTARTSYS ? -(long)value : -EPERM;
		break;
	default:
		mosix_count(MOSIX_COUNT_DENIED);
		send_sig(SIGKILL, current, 1);
	}
	if (end == MOSIX_END_NATIVE)
		result = call_original(regs, ip);
	module_put(THIS_MODULE);
	return result;
}

static void notrace hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *entry = ftrace_get_regs(fregs), *regs;
	struct bpf_prog *prog;
	u32 verdict = MOSIX_NATIVE;

	/* From stub(): it has been decided already. */
	if (!entry || within_module(parent, THIS_MODULE))
		return;
	regs = (struct pt_regs *)entry->di;
	if (regs != task_pt_regs(current))
		return;
	rcu_read_lock();
	prog = rcu_dereference(program);
	if (prog)
		verdict = ask(prog, regs);
	rcu_read_unlock();
	if (MOSIX_VERDICT_ACTION(verdict) == MOSIX_NATIVE)
		return;
	/* Stays loaded until the task has left stub(). */
	if (!try_module_get(THIS_MODULE))
		return;
	entry->si = ip;
	entry->dx = verdict;
	entry->ip = (unsigned long)stub;
}

static struct ftrace_ops ops = {
	.func = hook,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

/* Registered exactly while there are a program and somebody who serves. */
static int update(void)
{
	bool wanted = program_holder && users;
	int error;

	lockdep_assert_held(&mutex);
	if (wanted == registered)
		return 0;
	error = wanted ? register_ftrace_function(&ops) : unregister_ftrace_function(&ops);
	if (!error)
		registered = wanted;
	return error;
}

static int filter(const char *prefix, const char *name)
{
	char function[MOSIX_NAME_SIZE + 16];
	int length = scnprintf(function, sizeof(function), "%s%s", prefix, name);

	return ftrace_set_filter(&ops, function, length, 0);
}

/* One more system call, named as in asm/unistd_64.h. */
int mosix_hooks_add(const char *name)
{
	const char *c;
	int error;

	/* The name goes into a pattern. */
	for (c = name; *c; c++) {
		if (!islower(*c) && !isdigit(*c) && *c != '_')
			return -EINVAL;
	}
	if (c == name)
		return -EINVAL;
	mutex_lock(&mutex);
	if (program_holder) {
		error = -EBUSY;
		goto out;
	}
	error = filter("__x64_sys_", name);
	/* Of a call without arguments kallsyms may know only the other name. */
	if (error == -EINVAL)
		error = filter("__do_sys_", name);
	if (error == -EINVAL)
		error = -ENOENT;
	if (!error)
		hooked++;
out:
	mutex_unlock(&mutex);
	return error;
}

/* The program of descriptor `fd` decides until `holder` lets go of it. */
int mosix_hooks_program(const void *holder, int fd)
{
	struct bpf_prog *prog;
	int error = -EBUSY;

	mutex_lock(&mutex);
	if (program_holder)
		goto out;
	error = -EINVAL; /* without a filter every function of the kernel would be hooked */
	if (!hooked)
		goto out;
	prog = bpf_prog_get_type_dev(fd, BPF_PROG_TYPE_RAW_TRACEPOINT, false);
	error = PTR_ERR_OR_ZERO(prog);
	if (error)
		goto out;
	rcu_assign_pointer(program, prog);
	program_holder = holder;
	error = update();
	if (error) {
		program_holder = NULL;
		RCU_INIT_POINTER(program, NULL);
		synchronize_rcu();
		bpf_prog_put(prog);
	}
out:
	mutex_unlock(&mutex);
	return error;
}

/* `holder` is gone: nothing is decided any more, nothing hooked. */
void mosix_hooks_forget(const void *holder)
{
	struct bpf_prog *prog;

	mutex_lock(&mutex);
	if (program_holder == holder) {
		prog = rcu_dereference_protected(program, lockdep_is_held(&mutex));
		program_holder = NULL;
		WARN_ON(update());
		RCU_INIT_POINTER(program, NULL);
		synchronize_rcu();
		bpf_prog_put(prog);
		/* Empties the filter. (ftrace_free_filter() leaves a dangling one: only for the very end.) */
		WARN_ON(ftrace_set_filter(&ops, NULL, 0, 1));
		hooked = 0;
	}
	mutex_unlock(&mutex);
}

int mosix_hooks_use(void)
{
	int error;

	mutex_lock(&mutex);
	users++;
	error = update();
	if (error)
		users--;
	mutex_unlock(&mutex);
	return error;
}

void mosix_hooks_unuse(void)
{
	mutex_lock(&mutex);
	users--;
	WARN_ON(update());
	mutex_unlock(&mutex);
}

u32 mosix_hooks_count(void)
{
	u32 count;

	mutex_lock(&mutex);
	count = registered ? hooked : 0;
	mutex_unlock(&mutex);
	return count;
}

/* No file is open and no task in stub(), but one may not have left its last instructions. */
void mosix_hooks_exit(void)
{
	ftrace_free_filter(&ops);
	synchronize_rcu_tasks();
}
