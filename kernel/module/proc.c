// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/mosix: what mosd has told of processes of jobs and of guests, readable by everyone.  A process's
 * directory is there until mosd takes it away or the process has ended, whatever becomes of mosd.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "mosix.h"

#define MAX_SHOWN 65536

struct shown {
	struct pid *pid;
	struct wait_queue_entry ended; /* as a pidfd waits for it */
	struct proc_dir_entry *directory;
	struct mosix_told told;
};

static DEFINE_MUTEX(mutex);	 /* of all of these; whoever reads a file may be waited for under it */
static DEFINE_SPINLOCK(telling); /* of what is told of them, which is all that readers look at */
static DEFINE_XARRAY(all);	 /* by the PID in the first namespace */
static u32 count;
static struct proc_dir_entry *root;

static void sweep(struct work_struct *work);
static DECLARE_WORK(sweeping, sweep);

/* ---- files ---- */

static int show_version(struct seq_file *file, void *_)
{
	seq_puts(file, MOSIX_VERSION "\n");
	return 0;
}

#define SHOW(name, format, field)                                 \
	static int show_##name(struct seq_file *file, void *_)    \
	{                                                         \
		const struct shown *shown = file->private;        \
                                                                  \
		spin_lock(&telling);                              \
		seq_printf(file, format "\n", shown->told.field); \
		spin_unlock(&telling);                            \
		return 0;                                         \
	}
SHOW(from, "%s", from)
SHOW(where, "%s", where)
SHOW(class, "%u", job_class)
SHOW(pid_at_home, "%d", origin_pid)
SHOW(freezer, "%d", freezer)

static const struct {
	const char *name;
	int (*show)(struct seq_file *file, void *_);
} files[] = {
	{ "from", show_from },		 { "where", show_where },
	{ "class", show_class },	 { "origipid", show_pid_at_home },
	{ "origpid", show_pid_at_home }, { "freezer", show_freezer },
};

/* NULL: no memory. */
static struct proc_dir_entry *make_directory(struct shown *shown)
{
	struct proc_dir_entry *directory;
	char name[12];
	size_t i;

	snprintf(name, sizeof(name), "%d", pid_nr(shown->pid));
	directory = proc_mkdir(name, root);
	for (i = 0; directory && i < ARRAY_SIZE(files); i++) {
		if (!proc_create_single_data(files[i].name, 0444, directory, files[i].show, shown)) {
			proc_remove(directory);
			return NULL;
		}
	}
	return directory;
}

/* ---- processes ---- */

static bool has_ended(struct pid *pid)
{
	struct task_struct *task;
	bool ended;

	rcu_read_lock();
	task = pid_task(pid, PIDTYPE_TGID);
	ended = !task || (READ_ONCE(task->exit_state) && thread_group_empty(task));
	rcu_read_unlock();
	return ended;
}

/* Called with a lock held when the process ends, and perhaps at other times. */
static int on_end(struct wait_queue_entry *entry, unsigned int mode, int flags, void *key)
{
	schedule_work(&sweeping);
	return 0;
}

static void drop(struct shown *shown, unsigned long number)
{
	lockdep_assert_held(&mutex);
	xa_erase(&all, number);
	count--;
	remove_wait_queue(&shown->pid->wait_pidfd, &shown->ended);
	proc_remove(shown->directory);
	put_pid(shown->pid);
	kfree(shown);
}

static void sweep(struct work_struct *work)
{
	struct shown *shown;
	unsigned long number;

	mutex_lock(&mutex);
	xa_for_each(&all, number, shown)
	{
		if (has_ended(shown->pid))
			drop(shown, number);
	}
	mutex_unlock(&mutex);
}

static int add(struct pid *pid, const struct mosix_told *told)
{
	struct shown *shown;
	int error = -ENOMEM;

	if (count >= MAX_SHOWN)
		return -ENOSPC;
	shown = kzalloc(sizeof(*shown), GFP_KERNEL_ACCOUNT);
	if (!shown)
		return -ENOMEM;
	shown->pid = get_pid(pid);
	shown->told = *told;
	shown->directory = make_directory(shown);
	if (shown->directory)
		error = xa_insert(&all, pid_nr(pid), shown, GFP_KERNEL);
	if (error) {
		proc_remove(shown->directory);
		put_pid(shown->pid);
		kfree(shown);
		return error;
	}
	count++;
	init_waitqueue_func_entry(&shown->ended, on_end);
	add_wait_queue(&pid->wait_pidfd, &shown->ended);
	if (!has_ended(pid))
		return 0;
	drop(shown, pid_nr(pid));
	return -ESRCH;
}

static bool is_address(const char *text)
{
	size_t length = strnlen(text, MOSIX_ADDRESS_SIZE);

	return length && length < MOSIX_ADDRESS_SIZE && strspn(text, "0123456789.") == length;
}

/* Of a process, by its number as the caller sees it, from now on. */
int mosix_proc_tell(const struct mosix_told *told)
{
	struct shown *shown;
	struct pid *pid;
	int error = 0;

	if (!is_address(told->from) || !is_address(told->where) || told->origin_pid < 0)
		return -EINVAL;
	if (told->freezer != MOSIX_FREEZER_GUEST && (told->freezer < 0 || told->freezer > MOSIX_FREEZER_LAST))
		return -EINVAL;
	pid = find_get_pid(told->pid);
	if (!pid || has_ended(pid)) {
		put_pid(pid);
		return -ESRCH;
	}
	mutex_lock(&mutex);
	shown = xa_load(&all, pid_nr(pid));
	if (shown && shown->pid != pid) { /* of one that has ended: the number was given again */
		drop(shown, pid_nr(pid));
		shown = NULL;
	}
	if (shown) {
		spin_lock(&telling);
		shown->told = *told;
		spin_unlock(&telling);
	} else {
		error = add(pid, told);
	}
	mutex_unlock(&mutex);
	put_pid(pid);
	return error;
}

/* It is no process of mosix any more. */
int mosix_proc_forget(pid_t number)
{
	struct pid *pid = find_get_pid(number);
	struct shown *shown;

	if (!pid)
		return -ESRCH;
	mutex_lock(&mutex);
	shown = xa_load(&all, pid_nr(pid));
	if (shown)
		drop(shown, pid_nr(pid));
	mutex_unlock(&mutex);
	put_pid(pid);
	return shown ? 0 : -ESRCH;
}

int __init mosix_proc_init(void)
{
	root = proc_mkdir("mosix", NULL);
	if (!root)
		return -ENOMEM;
	if (proc_create_single_data("version", 0444, root, show_version, NULL))
		return 0;
	proc_remove(root);
	return -ENOMEM;
}

void mosix_proc_exit(void)
{
	struct shown *shown;
	unsigned long number;

	mutex_lock(&mutex);
	xa_for_each(&all, number, shown) drop(shown, number);
	mutex_unlock(&mutex);
	/* Nobody is waited for any more who would ask for it. */
	cancel_work_sync(&sweeping);
	proc_remove(root);
}
