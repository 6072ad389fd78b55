/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What processes at home are told of their CPU time that have used some on other nodes: home's
 * kernel does not know of that.
 *
 * Called by the listener (listener.c), under its lock, for times, getrusage and clock_gettime.  It
 * answers from outside the caller, who waits; it never stops anybody and never waits.  Whatever
 * cannot be answered is left to the kernel, in particular all of a process that was never away.
 * A redirector (redirect.c) tells the same totals away, of which both parts never run back.
 *
 * A parent is told of its children (RUSAGE_CHILDREN, times) as its kernel would: of those that it has
 * waited for, with all that they had waited for.  So whoever has used CPU time away is remembered
 * until it is gone, and so are its ancestors.
 */
#ifndef MOSIX_CPUTIME_H
#define MOSIX_CPUTIME_H

#include <linux/seccomp.h>
#include <stdint.h>

struct mx_cputime;

/* From now on `pid`, which is stopped here and has one thread, has used so many ns on all nodes.
 * 0 or -errno: it has ended. */
int mx_cputime_add(struct mx_cputime **all, int pid, int64_t user_ns, int64_t system_ns);
/* Its body has left, or it has ended.  Whose body ends away tells itself, just before: MX_LAST_TIMES
 * in abi.h. */
void mx_cputime_remove(struct mx_cputime **all, int pid);
/* What `pid` has used on all nodes, user and system ns: not less than it was told.  0 or
 * -errno (-ENOENT: only home's kernel counts). */
int mx_cputime_used(struct mx_cputime *all, int pid, int64_t *used);
/* The answer to a call that was received from `listener`, which may be /dev/mosix; 0: it must be made
 * as it stands. */
int mx_cputime_answer(struct mx_cputime **all, int listener, const struct seccomp_notif *n, int64_t *result);

#endif
