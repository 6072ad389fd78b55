/* SPDX-License-Identifier: GPL-2.0 */
/* What account.bpf.c counts for a process; `mosix.balancer.account` reads it by these names. */
#ifndef MOSIX_ACCOUNT_H
#define MOSIX_ACCOUNT_H

struct account_use {
	unsigned long long ran_ns;   /* on a CPU, all threads */
	unsigned long long switches; /* how often a thread left one */
	/* only while sys_exit is watched: */
	unsigned long long calls;
	unsigned long long read_bytes;
	unsigned long long written_bytes;
};

/* Indices of account_failures: what went wrong, how often. */
enum account_failure {
	ACCOUNT_NO_SINCE, /* the time stamp of this CPU was not found */
	ACCOUNT_NO_CALL,  /* the number of the call could not be read */
	ACCOUNT_FAILURES,
};

#endif
