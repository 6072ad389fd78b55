/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The clock page of a guest: how its vdso (guest_vdso.c) and its redirector make
 * home's date of CLOCK_MONOTONIC.  The remote alone writes it, while the guest reads.
 *
 * What is told never runs back.  When a better estimate is behind the one before, time
 * runs slower until it is true again; when home's clock was set back by a second or more
 * the guest sees that, as natively.
 */
#ifndef MOSIX_CLOCK_H
#define MOSIX_CLOCK_H

#include <stdint.h>

/* cffi: begin */
struct mx_clock {
	uint32_t sequence; /* odd while the next three are being changed */
	uint32_t direct;   /* bit n: clock n is what the node's own clock_gettime says */
	int64_t offset_ns; /* date = the guest's CLOCK_MONOTONIC + this + what is left of: */
	int64_t excess_ns; /* by so much it was ahead ... */
	int64_t since_ns;  /* ... at this CLOCK_MONOTONIC of the guest */
	/* functions like those of the vdso, in the guest */
	uint64_t clock_gettime;
	uint64_t clock_getres;
	uint64_t getcpu;
};

/* From now on the date is the guest's CLOCK_MONOTONIC, which is ours plus shift_ns, plus
 * offset_ns.  Returns by how much what is told is ahead of that. */
int64_t mx_clock_set(struct mx_clock *clock, int64_t shift_ns, int64_t offset_ns);
/* The date now, as the guest would read it.  From any thread. */
int64_t mx_clock_date(const struct mx_clock *clock, int64_t shift_ns);
/* cffi: end */

/* An excess goes away at one part in 64. */
#define MX_CLOCK_SLEW_SHIFT 6
#define MX_CLOCK_IN_CHANGE 1u

static inline uint32_t mx_clock_begin(const struct mx_clock *clock)
{
	uint32_t sequence;

	while ((sequence = __atomic_load_n(&clock->sequence, __ATOMIC_ACQUIRE)) & MX_CLOCK_IN_CHANGE)
		__builtin_ia32_pause();
	return sequence;
}

static inline int mx_clock_changed(const struct mx_clock *clock, uint32_t sequence)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return __atomic_load_n(&clock->sequence, __ATOMIC_RELAXED) != sequence;
}

static inline int64_t mx_clock_at(const struct mx_clock *clock, int64_t monotonic_ns)
{
	int64_t offset = __atomic_load_n(&clock->offset_ns, __ATOMIC_RELAXED);
	int64_t since = __atomic_load_n(&clock->since_ns, __ATOMIC_RELAXED);
	int64_t left =
		__atomic_load_n(&clock->excess_ns, __ATOMIC_RELAXED) - ((monotonic_ns - since) >> MX_CLOCK_SLEW_SHIFT);

	return monotonic_ns + offset + (left > 0 ? left : 0);
}

#endif
