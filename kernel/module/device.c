// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/mosix.  A file of it is what an owner of tasks serves them through, or what holds the program
 * that decides about calls, or both.  Making it one takes CAP_SYS_ADMIN; serving takes only the
 * descriptor, which may be handed to somebody without any privilege.
 */
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "mosix.h"

struct mosix_file {
	struct mutex mutex; /* of becoming an owner */
	struct mosix_owner *owner;
};

static struct mosix_owner *owner_of(struct file *file)
{
	struct mosix_file *own = file->private_data;

	return smp_load_acquire(&own->owner);
}

static int mosix_open(struct inode *inode, struct file *file)
{
	struct mosix_file *own = kzalloc(sizeof(*own), GFP_KERNEL_ACCOUNT);

	if (!own)
		return -ENOMEM;
	mutex_init(&own->mutex);
	file->private_data = own;
	return stream_open(inode, file);
}

static int mosix_release(struct inode *inode, struct file *file)
{
	struct mosix_file *own = file->private_data;

	mosix_hooks_forget(own);
	if (own->owner) {
		u32 sets = own->owner->sets;

		mosix_owner_close(own->owner);
		mosix_hooks_unuse(sets);
	}
	kfree(own);
	return 0;
}

static ssize_t mosix_read(struct file *file, char __user *buffer, size_t size, loff_t *offset)
{
	struct mosix_owner *owner = owner_of(file);
	struct mosix_request request;
	ssize_t done = 0;

	if (!owner || size < sizeof(request))
		return -EINVAL;
	while (size - done >= sizeof(request)) {
		if (!mosix_park_next(owner, &request)) {
			int error;

			if (done)
				break;
			if (file->f_flags & O_NONBLOCK)
				return -EAGAIN;
			error = wait_event_interruptible(owner->readers, mosix_park_readable(owner));
			if (error)
				return error;
			continue;
		}
		if (copy_to_user(buffer + done, &request, sizeof(request))) {
			mosix_park_unread(owner, &request);
			return done ? done : -EFAULT;
		}
		done += sizeof(request);
	}
	return done;
}

static ssize_t mosix_write(struct file *file, const char __user *buffer, size_t size, loff_t *offset)
{
	struct mosix_owner *owner = owner_of(file);
	struct mosix_reply reply;
	ssize_t done = 0;

	if (!owner || !size || size % sizeof(reply))
		return -EINVAL;
	while (done < size) {
		int error = -EFAULT;

		if (!copy_from_user(&reply, buffer + done, sizeof(reply)))
			error = mosix_park_answer(owner, &reply);
		if (error)
			return done ? done : error;
		done += sizeof(reply);
		if (fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return done;
}

static __poll_t mosix_poll(struct file *file, poll_table *table)
{
	struct mosix_owner *owner = owner_of(file);

	if (!owner)
		return EPOLLERR;
	poll_wait(file, &owner->readers, table);
	return EPOLLOUT | EPOLLWRNORM | (mosix_park_readable(owner) ? EPOLLIN | EPOLLRDNORM : 0);
}

static int become_owner(struct mosix_file *own, u32 __user *number)
{
	struct mosix_owner *owner;
	int error = -EBUSY;
	u32 sets;

	if (get_user(sets, number))
		return -EFAULT;
	if (!sets || sets >= 1 << MOSIX_SETS)
		return -EINVAL;
	mutex_lock(&own->mutex);
	if (own->owner)
		goto out;
	owner = mosix_owner_new(sets);
	error = PTR_ERR_OR_ZERO(owner);
	if (error)
		goto out;
	error = mosix_hooks_use(sets);
	if (!error && put_user(owner->number, number)) {
		mosix_hooks_unuse(sets);
		error = -EFAULT;
	}
	if (error)
		mosix_owner_close(owner);
	else
		smp_store_release(&own->owner, owner);
out:
	mutex_unlock(&own->mutex);
	return error;
}

static int add_hook(const struct mosix_hook __user *from)
{
	struct mosix_hook hook;

	if (copy_from_user(&hook, from, sizeof(hook)))
		return -EFAULT;
	if (hook.zero || strnlen(hook.name, sizeof(hook.name)) == sizeof(hook.name))
		return -EINVAL;
	return mosix_hooks_add(&hook);
}

/* The reply of before and the next request, in one system call. */
static int exchange(struct file *file, struct mosix_exchange __user *user)
{
	struct mosix_owner *owner = owner_of(file);
	struct mosix_request request;
	struct mosix_reply reply;
	int error;

	if (!owner)
		return -EINVAL;
	if (copy_from_user(&reply, &user->reply, sizeof(reply)))
		return -EFAULT;
	if (reply.id) {
		error = mosix_park_answer(owner, &reply);
		if (error && error != -ENOENT)
			return error;
		if (put_user(0, &user->reply.id))
			return -EFAULT;
	}
	while (!mosix_park_next(owner, &request)) {
		error = wait_event_interruptible(owner->readers, mosix_park_readable(owner));
		if (error) /* not to be made again: the reply is gone */
			return -EINTR;
	}
	if (!copy_to_user(&user->request, &request, sizeof(request)))
		return 0;
	mosix_park_unread(owner, &request);
	return -EFAULT;
}

static int waits(struct file *file, const u64 __user *user)
{
	struct mosix_owner *owner = owner_of(file);
	u64 id;

	if (!owner)
		return -EINVAL;
	if (copy_from_user(&id, user, sizeof(id)))
		return -EFAULT;
	return mosix_park_waits(owner, id) ? 0 : -ENOENT;
}

static int show_counters(struct mosix_counters __user *to)
{
	struct mosix_counters counters = {
		.redirected = atomic64_read(&mosix_counts[MOSIX_COUNT_REDIRECTED]),
		.answered = atomic64_read(&mosix_counts[MOSIX_COUNT_ANSWERED]),
		.ran_natively = atomic64_read(&mosix_counts[MOSIX_COUNT_RAN_NATIVELY]),
		.interrupted = atomic64_read(&mosix_counts[MOSIX_COUNT_INTERRUPTED]),
		.killed = atomic64_read(&mosix_counts[MOSIX_COUNT_KILLED]),
		.orphaned = atomic64_read(&mosix_counts[MOSIX_COUNT_ORPHANED]),
		.denied = atomic64_read(&mosix_counts[MOSIX_COUNT_DENIED]),
		.hooks = mosix_hooks_count(),
		.owners = mosix_owners(),
		.parked = atomic64_read(&mosix_counts[MOSIX_COUNT_PARKED]),
		.captures = atomic64_read(&mosix_counts[MOSIX_COUNT_CAPTURES]),
		.sent_bytes = atomic64_read(&mosix_counts[MOSIX_COUNT_SENT_BYTES]),
	};

	return copy_to_user(to, &counters, sizeof(counters)) ? -EFAULT : 0;
}

static int send_pages(struct mosix_send_pages __user *user)
{
	struct mosix_send_pages order;
	int error;

	if (copy_from_user(&order, user, sizeof(order)))
		return -EFAULT;
	error = mosix_pages_send(&order);
	if (put_user(order.sent, &user->sent))
		error = -EFAULT;
	/* A part may have been sent: it must not be begun again. */
	return error == -ERESTARTSYS ? -EINTR : error;
}

static int list_mappings(struct mosix_vmas __user *user)
{
	struct mosix_vmas order;
	int error;

	if (copy_from_user(&order, user, sizeof(order)))
		return -EFAULT;
	error = mosix_layout_mappings(&order);
	if (!error && copy_to_user(user, &order, sizeof(order)))
		error = -EFAULT;
	return error;
}

static int find_pages(struct mosix_find_pages __user *user)
{
	struct mosix_find_pages order;
	int error;

	if (copy_from_user(&order, user, sizeof(order)))
		return -EFAULT;
	error = mosix_layout_pages(&order);
	if (!error && copy_to_user(user, &order, sizeof(order)))
		error = -EFAULT;
	return error;
}

static int tell(const struct mosix_told __user *user)
{
	struct mosix_told told;

	return copy_from_user(&told, user, sizeof(told)) ? -EFAULT : mosix_proc_tell(&told);
}

static long mosix_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (command) {
	case MOSIX_IOC_VERSION:
		return put_user(MOSIX_API_VERSION, (u32 __user *)user);
	case MOSIX_IOC_COUNTERS:
		return show_counters(user);
	case MOSIX_IOC_SEND_PAGES:
		return send_pages(user);
	case MOSIX_IOC_VMAS:
		return list_mappings(user);
	case MOSIX_IOC_FIND_PAGES:
		return find_pages(user);
	case MOSIX_IOC_EXCHANGE:
		return exchange(file, user);
	case MOSIX_IOC_WAITS:
		return waits(file, user);
	case MOSIX_IOC_OWN:
	case MOSIX_IOC_HOOK:
	case MOSIX_IOC_PROGRAM:
	case MOSIX_IOC_TELL:
	case MOSIX_IOC_FORGET:
		break;
	default:
		return -ENOTTY;
	}
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	switch (command) {
	case MOSIX_IOC_OWN:
		return become_owner(file->private_data, user);
	case MOSIX_IOC_HOOK:
		return add_hook(user);
	case MOSIX_IOC_TELL:
		return tell(user);
	case MOSIX_IOC_FORGET:
		return argument > INT_MAX ? -ESRCH : mosix_proc_forget(argument);
	default:
		return argument > INT_MAX ? -EBADF : mosix_hooks_program(file->private_data, argument);
	}
}

const struct file_operations mosix_fops = {
	.owner = THIS_MODULE,
	.open = mosix_open,
	.release = mosix_release,
	.read = mosix_read,
	.write = mosix_write,
	.poll = mosix_poll,
	.unlocked_ioctl = mosix_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};
