/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Failpoints of the loops in C (mosix.failpoints says what they are for): numbers of points and
 * faults.  A loop that is not armed pays one comparison of a field it has in its cache; with
 * MX_NO_FAILPOINTS not even that, for the benchmark that compares the two.
 */
#ifndef MOSIX_FAILPOINT_H
#define MOSIX_FAILPOINT_H

/* cffi: begin */
#define MX_FP_REQUEST 1
#define MX_FP_HALF_SENT 2
#define MX_FP_SENT 3
#define MX_FP_HALF_REPLY 4
#define MX_FP_REPLY 5
#define MX_FP_EXECUTED 6

#define MX_FAULT_KILL 1
#define MX_FAULT_CUT 2
#define MX_FAULT_STALL 3
#define MX_FAULT_ERROR 4
#define MX_FAULT_HALF_OPEN 5
/* cffi: end */

/* A connection whose socket goes out through this one, and ends then, ends without a word. */
#define MX_NOWHERE "lo"

#ifdef MX_NO_FAILPOINTS
#define MX_FAILPOINTS 0
#else
#define MX_FAILPOINTS 1
#endif

#endif
