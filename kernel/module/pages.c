// SPDX-License-Identifier: GPL-2.0
/*
 * Sends memory of a process: its pages go into a socket as they are, into a pipe or file with one copy,
 * and never through user space.  Only for the tracer of the process, who may read it anyway.  It is the
 * tracer's to have it stand still, and not looked at here: he may let it make a call of his own meanwhile.
 */
#include <linux/bvec.h>
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/ptrace.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "mosix.h"

#define BATCH 64 /* pages held at once */

static bool is_traced_by_us(struct task_struct *task)
{
	struct task_struct *tracer;
	bool ours;

	rcu_read_lock();
	tracer = ptrace_parent(task);
	ours = tracer && same_thread_group(tracer, current);
	rcu_read_unlock();
	return ours;
}

/* As ptrace asks it of a tracer who wants to read. */
static bool is_readable(struct mm_struct *mm)
{
	return get_dumpable(mm) == SUID_DUMP_USER || ns_capable(mm->user_ns, CAP_SYS_PTRACE);
}

/* The memory of process `pid`, which the caller traces, to be put with mmput(). */
struct mm_struct *mosix_memory_of(pid_t pid)
{
	struct pid *number = find_get_pid(pid);
	struct task_struct *task = get_pid_task(number, PIDTYPE_PID);
	struct mm_struct *mm = ERR_PTR(-ESRCH);

	put_pid(number);
	if (!task)
		return mm;
	if (!is_traced_by_us(task))
		mm = ERR_PTR(-EPERM);
	else
		mm = get_task_mm(task) ?: ERR_PTR(-ESRCH);
	put_task_struct(task);
	if (!IS_ERR(mm) && !is_readable(mm)) {
		mmput(mm);
		mm = ERR_PTR(-EPERM);
	}
	return mm;
}

/* Some pages from `start` on, referenced; how many. */
static long hold(struct mm_struct *mm, u64 start, u64 size, struct page **pages)
{
	unsigned long wanted = min_t(u64, size >> PAGE_SHIFT, BATCH);
	int locked = 1;
	long got;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
#ifdef HAVE_GUP_VMAS
	got = get_user_pages_remote(mm, start, wanted, FOLL_FORCE, pages, NULL, &locked);
#else
	got = get_user_pages_remote(mm, start, wanted, FOLL_FORCE, pages, &locked);
#endif
	if (locked)
		mmap_read_unlock(mm);
	return got ?: -EFAULT;
}

static ssize_t send_to_socket(struct socket *socket, struct page **pages, size_t done, size_t size)
{
#ifdef HAVE_KERNEL_SENDPAGE
	size_t offset = done & ~PAGE_MASK;

	return kernel_sendpage(socket, pages[done >> PAGE_SHIFT], offset,
			       min_t(size_t, PAGE_SIZE - offset, size - done),
			       MSG_NOSIGNAL | (size - done > PAGE_SIZE ? MSG_MORE : 0));
#else
	struct bio_vec vectors[BATCH];
	struct msghdr message = { .msg_flags = MSG_SPLICE_PAGES | MSG_NOSIGNAL };
	size_t n = size >> PAGE_SHIFT, i;

	for (i = 0; i < n; i++)
		bvec_set_page(&vectors[i], pages[i], PAGE_SIZE, 0);
	iov_iter_bvec(&message.msg_iter, ITER_SOURCE, vectors, n, size);
	iov_iter_advance(&message.msg_iter, done);
	return sock_sendmsg(socket, &message);
#endif
}

static ssize_t send_to_file(struct file *file, struct page **pages, size_t done, size_t size)
{
	struct bio_vec vectors[BATCH];
	struct iov_iter iter;
	size_t n = size >> PAGE_SHIFT, i;

	for (i = 0; i < n; i++)
		vectors[i] = (struct bio_vec){ .bv_page = pages[i], .bv_len = PAGE_SIZE };
	iov_iter_bvec(&iter, WRITE, vectors, n, size);
	iov_iter_advance(&iter, done);
	return vfs_iter_write(file, &iter, &file->f_pos, 0);
}

/* All of the pages but their first `done` bytes; bytes that went, in *sent, even on an error. */
static int send_pages(struct file *file, struct page **pages, size_t done, size_t size, u64 *sent)
{
	struct socket *socket = sock_from_file(file);

	while (done < size) {
		ssize_t n = socket ? send_to_socket(socket, pages, done, size) : send_to_file(file, pages, done, size);

		if (n <= 0)
			return n ?: -EIO;
		done += n;
		*sent += n;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int send_run(struct mm_struct *mm, struct file *file, struct mosix_run run, size_t skip, struct page **pages,
		    u64 *sent)
{
	while (run.size) {
		long n = hold(mm, run.start, run.size, pages), i;
		int error;

		if (n < 0)
			return n;
		error = send_pages(file, pages, skip, n << PAGE_SHIFT, sent);
		skip = 0;
		for (i = 0; i < n; i++)
			put_page(pages[i]);
		if (error)
			return error;
		run.start += n << PAGE_SHIFT;
		run.size -= n << PAGE_SHIFT;
	}
	return 0;
}

static bool is_sound(struct mosix_run run)
{
	return run.size && !((run.start | run.size) & ~PAGE_MASK) && run.start < TASK_SIZE_MAX &&
	       run.size <= TASK_SIZE_MAX - run.start;
}

/* What is asked for in `order`, whose `sent` is kept up to date. */
int mosix_pages_send(struct mosix_send_pages *order)
{
	const struct mosix_run __user *runs = u64_to_user_ptr(order->runs);
	struct page **pages;
	struct mm_struct *mm;
	struct file *file;
	int error = 0;
	u64 i;

	order->sent = 0;
	if (order->skip >= PAGE_SIZE || order->count > MOSIX_MOST_RUNS)
		return -EINVAL;
	file = fget(order->fd);
	if (!file)
		return -EBADF;
	pages = kmalloc_array(BATCH, sizeof(*pages), GFP_KERNEL_ACCOUNT);
	mm = pages ? mosix_memory_of(order->pid) : ERR_PTR(-ENOMEM);
	if (IS_ERR(mm)) {
		error = PTR_ERR(mm);
	} else {
		if (!(file->f_mode & FMODE_WRITE))
			error = -EBADF;
		for (i = 0; i < order->count && !error; i++) {
			struct mosix_run run;

			if (copy_from_user(&run, runs + i, sizeof(run)))
				error = -EFAULT;
			else if (!is_sound(run))
				error = -EINVAL;
			else
				error = send_run(mm, file, run, i ? 0 : order->skip, pages, &order->sent);
		}
		mmput(mm);
		if (!error)
			mosix_count(MOSIX_COUNT_CAPTURES);
		atomic64_add(order->sent, &mosix_counts[MOSIX_COUNT_SENT_BYTES]);
	}
	kfree(pages);
	fput(file);
	return error;
}
