/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Serves the seccomp listener of a job at home: the opens that its filter notifies (interface.h),
 * and the calls that tell CPU time (cputime.h).  Where mosix.ko intercepts them there is no filter, and
 * the calls come from /dev/mosix.
 *
 * Called by mosix.native.listener.  In a deputy one thread, the listener's, lets ordinary opens go
 * on and tells CPU time; opens of special files wait in a table until another thread answers them.
 * It never needs that other thread for anything else, so that the ghosts and processes which the
 * other one stops and injects calls into never wait for it.
 *
 * A notification that was received by a process which then died is offered to nobody else, and
 * its caller waits for ever.  So whatever was received and not answered stands in memory that a
 * survivor maps too: once the deputy is dead it lets those calls go on, and serves from then on.
 * Exactly one process receives at a time: of two the loser would block.  What waits in mosix.ko needs
 * no survivor: it is made as it stands when the file is closed.
 */
#ifndef MOSIX_LISTENER_H
#define MOSIX_LISTENER_H

#include <stdint.h>

/* cffi: begin */
#define MX_LISTENER_MEMORY 4096
#define MX_ERESTARTNOINTR 513

/* An open of a special file. */
struct mx_asked {
	uint64_t id;
	int tid;
	int flags;
	unsigned int value; /* the third argument */
	char name[16];
};

/* Starts the thread, which serves until no process has the filter any more.  `memory`: a
 * descriptor of MX_LISTENER_MEMORY bytes, sealed against shrinking; -1: `listener` is a file of
 * /dev/mosix.  `event`: an eventfd, written
 * when something was asked.  NULL with errno.  It lives as long as this process. */
struct mx_listener *mx_listener_start(int listener, int memory, int event);
/* The next question that nobody took; 0: there is none. */
int mx_listener_take(struct mx_listener *l, struct mx_asked *asked);
/* Ends a question: the call returns `result`, or fails with -result.  0 or -errno (-ENOENT: its
 * caller was killed). */
int mx_listener_answer(struct mx_listener *l, uint64_t id, int64_t result);
/* Ends a question: the call is made as it stands. */
int mx_listener_go_on(struct mx_listener *l, uint64_t id);
/* From now on, until tid is 0: what `tid` asks or has asked is ended by "make this call again".
 * Right only when a ptrace stop of `tid` is pending, which otherwise would wait for the answer. */
void mx_listener_restart(struct mx_listener *l, int tid);
/* `pid`, which is stopped here and has one thread, has used so much CPU time on all nodes, of
 * which its kernel knows only a part: until it is not here it is told of the whole.  0 or -errno. */
int mx_listener_came_home(struct mx_listener *l, int pid, int64_t user_ns, int64_t system_ns);
void mx_listener_not_here(struct mx_listener *l, int pid);
/* What such a process has used, user and system ns, and not less than it was told.  0 or
 * -errno (-ENOENT: there is none). */
int mx_listener_cpu_time(struct mx_listener *l, int pid, int64_t *used);
/* The name of special file number i; NULL: there are no more. */
const char *mx_listener_special(int i);
/* The survivor's loop: lets go on whatever a dead process has received and not answered, then
 * everything else.  It begins when no other process serves: `memory`
 * is locked (fcntl) by whoever does, and a lock ends with its process.  0 or -errno. */
int mx_listener_survive(int listener, int memory);
/* cffi: end */

#endif
