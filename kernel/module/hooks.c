// SPDX-License-Identifier: GPL-2.0
/*
 * Hooks: which system calls are looked at, and what decides about them.
 *
 * ftrace calls us at the entry of just those functions, and only while somebody owns tasks that need
 * it.  The eBPF program says what becomes of the call; unless that is "native", the task goes to stub()
 * instead of the function, where it may sleep.  Everybody else's calls pay for the entry and the program.
 */
#include <linux/bpf.h>
#include <linux/ctype.h>
#include <linux/filter.h>
#include <linux/ftrace.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>
#include <asm/ibt.h>
#include <asm/unistd.h>

#include "mosix.h"

/* What the program sees as struct bpf_raw_tracepoint_args. */
struct context {
	u64 args[12];
};

/* Hooks that are there at the same times. */
struct set {
	struct ftrace_ops ops;
	u32 hooked;
	u32 users;
	bool registered;
};

static void hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs);

/* No recursion to be looked for: the hook and what it calls make no system call. */
#define SET                                              \
	{                                                \
		.ops = {                                 \
			.func = hook,                    \
			.flags = FTRACE_OPS_FL_IPMODIFY, \
		},                                       \
	}

static DEFINE_MUTEX(mutex); /* of all of these, but that the hook reads the program under RCU */
static struct bpf_prog __rcu *program;
static const void *program_holder; /* NULL: it is gone, and those who own tasks still need the program */
static struct set sets[MOSIX_SETS] = { SET, SET };

static u32 ask(struct bpf_prog *prog, const struct pt_regs *regs)
{
	struct context context = { .args = { (unsigned long)regs, regs->orig_ax, regs->di, regs->si, regs->dx,
					     regs->r10, regs->r8, regs->r9, current->start_boottime } };
	u32 verdict;

	preempt_disable();
	verdict = bpf_prog_run(prog, &context);
	preempt_enable();
	return verdict;
}

/*
 * The hooked function itself; `ip` is where it was entered, which lies behind an ENDBR if there is one.
 * It is given a copy, by which the hook knows that it has been decided: functions that look at more
 * than arguments take current_pt_regs().
 */
static long call_original(const struct pt_regs *regs, unsigned long ip)
{
	long (*function)(const struct pt_regs *);
	struct pt_regs decided = *regs;
	u32 before;

	if (!get_kernel_nofault(before, (u32 *)(ip - sizeof(before))) && is_endbr(before))
		ip -= sizeof(before);
	function = (void *)ip;
	return function(&decided);
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
	if (end == MOSIX_END_NATIVE) {
		/* That one does not come back. */
		if (regs->orig_ax == __NR_exit || regs->orig_ax == __NR_exit_group)
			module_put(THIS_MODULE);
		result = call_original(regs, ip);
	}
	module_put(THIS_MODULE);
	return result;
}

/* What ftrace has saved, and restores: arguments, and where it goes on.  That is all we need, and less
 * than FTRACE_OPS_FL_SAVE_REGS would have it save. */
static struct pt_regs *registers(struct ftrace_regs *fregs)
{
#ifdef HAVE_OPAQUE_FTRACE_REGS
	return &arch_ftrace_regs(fregs)->regs;
#else
	return &fregs->regs;
#endif
}

static void notrace hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *entry = registers(fregs);
	struct pt_regs *regs = (struct pt_regs *)entry->di;
	struct bpf_prog *prog;
	u32 verdict = MOSIX_NATIVE;

	/* No system call of user space, or one that call_original() makes. */
	if (unlikely(regs != task_pt_regs(current)))
		return;
	rcu_read_lock();
	prog = rcu_dereference(program);
	if (prog)
		verdict = ask(prog, regs);
	rcu_read_unlock();
	if (likely(MOSIX_VERDICT_ACTION(verdict) == MOSIX_NATIVE))
		return;
	/* Stays loaded until the task has left stub(). */
	if (!try_module_get(THIS_MODULE))
		return;
	entry->si = ip;
	entry->dx = verdict;
	entry->ip = (unsigned long)stub;
}

static bool is_used(void)
{
	int i;

	for (i = 0; i < MOSIX_SETS; i++) {
		if (sets[i].users)
			return true;
	}
	return false;
}

/* Registered exactly while there are a program and somebody whose tasks need the set. */
static int update_set(struct set *set, bool decided)
{
	bool wanted = decided && set->users && set->hooked;
	int error;

	if (wanted == set->registered)
		return 0;
	error = wanted ? register_ftrace_function(&set->ops) : unregister_ftrace_function(&set->ops);
	if (!error)
		set->registered = wanted;
	return error;
}

static int update(bool decided)
{
	int i, error = 0;

	lockdep_assert_held(&mutex);
	for (i = 0; i < MOSIX_SETS && !error; i++)
		error = update_set(&sets[i], decided);
	return error;
}

static bool has_program(void)
{
	return rcu_access_pointer(program);
}

/* Nobody decides any more, nothing is hooked. */
static void drop(void)
{
	struct bpf_prog *prog = rcu_dereference_protected(program, lockdep_is_held(&mutex));
	int i;

	WARN_ON(update(false));
	program_holder = NULL;
	RCU_INIT_POINTER(program, NULL);
	synchronize_rcu();
	bpf_prog_put(prog);
	for (i = 0; i < MOSIX_SETS; i++) {
		/* Empties the filter. (ftrace_free_filter() leaves a dangling one: only for the very end.) */
		WARN_ON(ftrace_set_filter(&sets[i].ops, NULL, 0, 1));
		sets[i].hooked = 0;
	}
}

static const char *const prefixes[] = {
	"__x64_sys_", "__do_sys_", /* of a call without arguments kallsyms may know only this name */
};

/* Whether a function of that name begins at `address`. */
static bool is_at(unsigned long address, const char *function)
{
	char found[KSYM_SYMBOL_LEN];
	size_t length = strlen(function);

	sprint_symbol(found, address);
	return !strncmp(found, function, length) && !strncmp(found + length, "+0x0/", 5);
}

static int filter(struct set *set, const char *prefix, const struct mosix_hook *hook)
{
	char function[MOSIX_NAME_SIZE + 16];
	int length = scnprintf(function, sizeof(function), "%s%s", prefix, hook->name);

	if (!hook->address)
		return ftrace_set_filter(&set->ops, function, length, 0);
	if (!is_at(hook->address, function))
		return -EINVAL;
	return ftrace_set_filter_ip(&set->ops, hook->address, 0, 0);
}

/* One more system call, named as in asm/unistd_64.h. */
int mosix_hooks_add(const struct mosix_hook *hook)
{
	const char *c;
	int i, error = -EINVAL;

	/* The name goes into a pattern. */
	for (c = hook->name; *c; c++) {
		if (!islower(*c) && !isdigit(*c) && *c != '_')
			return -EINVAL;
	}
	if (c == hook->name || hook->set >= MOSIX_SETS)
		return -EINVAL;
	mutex_lock(&mutex);
	if (has_program()) {
		error = -EBUSY;
		goto out;
	}
	for (i = 0; i < ARRAY_SIZE(prefixes) && error == -EINVAL; i++)
		error = filter(&sets[hook->set], prefixes[i], hook);
	if (error == -EINVAL)
		error = -ENOENT;
	if (!error)
		sets[hook->set].hooked++;
out:
	mutex_unlock(&mutex);
	return error;
}

/* The program of descriptor `fd` decides until `holder` lets go of it and nobody owns tasks. */
int mosix_hooks_program(const void *holder, int fd)
{
	struct bpf_prog *prog;
	int i, error = -EBUSY;
	u32 hooked = 0;

	mutex_lock(&mutex);
	if (has_program())
		goto out;
	error = -EINVAL; /* without a filter every function of the kernel would be hooked */
	for (i = 0; i < MOSIX_SETS; i++)
		hooked += sets[i].hooked;
	if (!hooked)
		goto out;
	prog = bpf_prog_get_type_dev(fd, BPF_PROG_TYPE_RAW_TRACEPOINT, false);
	error = PTR_ERR_OR_ZERO(prog);
	if (error)
		goto out;
	rcu_assign_pointer(program, prog);
	program_holder = holder;
	error = update(true);
	if (error)
		drop();
out:
	mutex_unlock(&mutex);
	return error;
}

/* `holder` is gone.  A task that is intercepted must not run free because of that: only when nobody
 * owns any is nothing decided any more. */
void mosix_hooks_forget(const void *holder)
{
	mutex_lock(&mutex);
	if (program_holder == holder) {
		program_holder = NULL;
		if (!is_used())
			drop();
	}
	mutex_unlock(&mutex);
}

static void count_users(u32 which, int more)
{
	int i;

	for (i = 0; i < MOSIX_SETS; i++) {
		if (which & 1 << i)
			sets[i].users += more;
	}
}

int mosix_hooks_use(u32 which)
{
	int error;

	mutex_lock(&mutex);
	count_users(which, 1);
	error = update(has_program());
	if (error) {
		count_users(which, -1);
		WARN_ON(update(has_program()));
	}
	mutex_unlock(&mutex);
	return error;
}

void mosix_hooks_unuse(u32 which)
{
	mutex_lock(&mutex);
	count_users(which, -1);
	if (has_program() && !program_holder && !is_used())
		drop();
	else
		WARN_ON(update(has_program()));
	mutex_unlock(&mutex);
}

u32 mosix_hooks_count(void)
{
	u32 count = 0;
	int i;

	mutex_lock(&mutex);
	for (i = 0; i < MOSIX_SETS; i++)
		count += sets[i].registered ? sets[i].hooked : 0;
	mutex_unlock(&mutex);
	return count;
}

/* No file is open and no task in stub(), but one may not have left its last instructions. */
void mosix_hooks_exit(void)
{
	int i;

	for (i = 0; i < MOSIX_SETS; i++)
		ftrace_free_filter(&sets[i].ops);
	synchronize_rcu_tasks();
}
