/* SPDX-License-Identifier: GPL-2.0 */
/* CPU time of all threads that a /proc shows, read in one go. */
#ifndef MOSIX_PROCTIMES_H
#define MOSIX_PROCTIMES_H

#include <stdint.h>

/* cffi: begin */

/* Of one thread, in ns since it began: on a CPU, and waiting for one although runnable. */
struct mx_times {
	uint64_t ran;
	uint64_t waited;
	int32_t thread;
};

/*
 * All threads that `proc` shows, but for those of the processes in `skip` (ascending).  How many
 * there are, of which the first `room` are in `out`; -errno: the directory cannot be read.  What
 * ends meanwhile is left out.
 */
long mx_proc_times(const char *proc, const int32_t *skip, int skipped, struct mx_times *out, long room);

/* cffi: end */

#endif
