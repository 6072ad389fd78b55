// SPDX-License-Identifier: GPL-2.0
/*
 * Writes and reads a guest's clock page; called by mosix.remote.clock and the redirector.
 * It must never leave the page in change: the guest waits for the end of it.
 */
#include <time.h>

#include "clock.h"

#define NS 1000000000LL

static int64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

int64_t mx_clock_set(struct mx_clock *clock, int64_t shift_ns, int64_t offset_ns)
{
	uint32_t sequence = clock->sequence;
	int64_t now, excess;

	__atomic_store_n(&clock->sequence, sequence | MX_CLOCK_IN_CHANGE, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* Only now: whoever still uses the old values has read an earlier time. */
	now = monotonic_ns() + shift_ns;
	excess = mx_clock_at(clock, now) - (now + offset_ns);
	if (excess < 0 || excess >= NS)
		excess = 0;
	__atomic_store_n(&clock->offset_ns, offset_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&clock->excess_ns, excess, __ATOMIC_RELAXED);
	__atomic_store_n(&clock->since_ns, now, __ATOMIC_RELAXED);
	__atomic_store_n(&clock->sequence, sequence + 2, __ATOMIC_RELEASE);
	return excess;
}

int64_t mx_clock_date(const struct mx_clock *clock, int64_t shift_ns)
{
	uint32_t sequence;
	int64_t date;

	do {
		sequence = mx_clock_begin(clock);
		date = mx_clock_at(clock, monotonic_ns() + shift_ns);
	} while (mx_clock_changed(clock, sequence));
	return date;
}
