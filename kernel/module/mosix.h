/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of mosix.ko offer each other. */
#ifndef MOSIX_H
#define MOSIX_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/ptrace.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "mosix_uapi.h"

#define MOSIX_VERSION "0.1.0"

struct file_operations;

/* Somebody who serves tasks: one open file of /dev/mosix. */
struct mosix_owner {
	struct kref refs;
	struct rcu_head rcu;
	u32 number;
	u32 sets;		   /* of hooks, that its tasks need */
	spinlock_t lock;	   /* of all that follows, and of the calls in the list */
	struct list_head calls;	   /* struct mosix_call, oldest first */
	wait_queue_head_t readers; /* waits for calls to be read */
	u64 next_id;
	bool dead; /* the file is closed */
};

enum mosix_counter {
	MOSIX_COUNT_REDIRECTED,
	MOSIX_COUNT_ANSWERED,
	MOSIX_COUNT_RAN_NATIVELY,
	MOSIX_COUNT_INTERRUPTED,
	MOSIX_COUNT_KILLED,
	MOSIX_COUNT_ORPHANED,
	MOSIX_COUNT_DENIED,
	MOSIX_COUNT_PARKED, /* goes up and down */
	MOSIX_COUNT_CAPTURES,
	MOSIX_COUNT_SENT_BYTES,
	MOSIX_COUNTS,
};

extern atomic64_t mosix_counts[MOSIX_COUNTS];

static inline void mosix_count(enum mosix_counter which)
{
	atomic64_inc(&mosix_counts[which]);
}

/* owner.c */
struct mosix_owner *mosix_owner_new(u32 sets);
struct mosix_owner *mosix_owner_get(u32 number);
void mosix_owner_put(struct mosix_owner *owner);
void mosix_owner_close(struct mosix_owner *owner);
u32 mosix_owners(void);

/* park.c */
enum mosix_end { MOSIX_END_RESULT, MOSIX_END_NATIVE };

enum mosix_end mosix_park(struct pt_regs *regs, u32 verdict, long *result);
bool mosix_park_readable(struct mosix_owner *owner);
bool mosix_park_next(struct mosix_owner *owner, struct mosix_request *request);
void mosix_park_unread(struct mosix_owner *owner, const struct mosix_request *request);
int mosix_park_answer(struct mosix_owner *owner, const struct mosix_reply *reply);
bool mosix_park_waits(struct mosix_owner *owner, u64 id);
void mosix_park_orphan_all(struct mosix_owner *owner);

/* hooks.c */
int mosix_hooks_add(const struct mosix_hook *hook);
int mosix_hooks_program(const void *holder, int fd);
void mosix_hooks_forget(const void *holder);
int mosix_hooks_use(u32 sets);
void mosix_hooks_unuse(u32 sets);
u32 mosix_hooks_count(void);
void mosix_hooks_exit(void);

/* pages.c */
struct mm_struct *mosix_memory_of(pid_t pid);
int mosix_pages_send(struct mosix_send_pages *order);

/* layout.c */
int mosix_layout_mappings(struct mosix_vmas *order);
int mosix_layout_pages(struct mosix_find_pages *order);

/* proc.c */
int mosix_proc_tell(const struct mosix_told *told);
int mosix_proc_forget(pid_t number);
int mosix_proc_init(void);
void mosix_proc_exit(void);

/* device.c */
extern const struct file_operations mosix_fops;

#endif
