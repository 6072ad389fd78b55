/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The loops over all nodes of a placement or a move: one pass, no allocation.  Called by
 * balancer/policy.py, where the formulas are explained; knows nothing but the numbers given.
 */
#ifndef MOSIX_DECIDE_H
#define MOSIX_DECIDE_H

#include <stdint.h>

/* cffi: begin */
/* Columns of a load table, n entries each. */
struct mx_nodes {
	long n;
	const float *running; /* processes that want a core, with those promised a place */
	const float *cores;
	const float *pace; /* wall seconds for a standard CPU second on an idle core */
	const float *free_mb;
	const float *steep;    /* log2 of the base, for a MB of all its memory */
	const float *call_s;   /* a round trip from its home for a process there, or NULL */
	const uint8_t *usable; /* or NULL: all */
};

struct mx_process {
	float age_s;	  /* CPU seconds used so far */
	float need_mb;	  /* what the target must have free */
	float move_s;	  /* how long a move stops it */
	float calls;	  /* forwarded calls for a CPU second */
	float transfer_s; /* bytes to and from home for a CPU second, as time on the link */
	int32_t home;	  /* index; -1: none of these */
};

struct mx_rules {
	float social;	   /* weight of others' delay when a process is placed; moves: always 1 */
	float memory;	   /* weight of base^(used/total - 1) */
	float call_s;	   /* round trip where mx_nodes has no call_s */
	float move_factor; /* a second of standing still counts so many times */
	float least_age_s; /* what a process is expected to run at least */
	float margin;	   /* part of its delay that a move must gain */
};

struct mx_choice {
	int32_t node;
	int32_t process;
	float value; /* placement: delay, less is better; move: seconds gained, more is better */
};

/*
 * The best nodes to start a process, best first; at most count.  Nodes without enough memory come
 * last.  Returns how many.
 */
int mx_place(const struct mx_nodes *nodes, const struct mx_process *process, const struct mx_rules *rules,
	     struct mx_choice *out, int count);

/*
 * The best moves away from node `here` with a gain above 0, of different nodes, best first; at most
 * count.  `slow`: how many times slower `here` is than its load says (memory shortage).
 */
int mx_moves(const struct mx_nodes *nodes, int32_t here, float slow, const struct mx_process *processes,
	     int process_count, const struct mx_rules *rules, struct mx_choice *out, int count);
/* cffi: end */

#endif
