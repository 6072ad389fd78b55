// SPDX-License-Identifier: GPL-2.0
/*
 * Counts CPU time, system calls and bytes of chosen processes, for the balancer.
 *
 * Loaded with bcc by mosix.balancer.account, which puts the processes to be counted into
 * account_use and takes them out again.  Works with headers of any kernel: nothing of
 * task_struct is read; who is running say the helpers, since when a time stamp of each CPU.
 * Everybody pays for these programs at every switch, so what is not chosen leaves at once; the
 * one at sys_exit is attached for short windows only.
 */
#include <uapi/linux/ptrace.h>

#include "account.h"

/* Knobs: -D on loading. */
#ifndef ACCOUNT_PROCESSES
#define ACCOUNT_PROCESSES 4096
#endif
/* The PID namespace whose numbers are meant (device and inode of /proc/PID/ns/pid); 0: the first. */
#ifndef ACCOUNT_NS_INODE
#define ACCOUNT_NS_INODE 0
#define ACCOUNT_NS_DEVICE 0
#endif

BPF_HASH(account_use, u32, struct account_use, ACCOUNT_PROCESSES);
BPF_PERCPU_ARRAY(account_since, u64, 1);
BPF_PERCPU_ARRAY(account_failures, u64, ACCOUNT_FAILURES);

static inline void failed(int what)
{
	u64 *count = account_failures.lookup(&what);

	if (count)
		*count += 1;
}

/* The current process; 0: the idle task, or one of another namespace. */
static inline u32 process(void)
{
#if ACCOUNT_NS_INODE
	struct bpf_pidns_info ids = {};

	if (bpf_get_ns_current_pid_tgid(ACCOUNT_NS_DEVICE, ACCOUNT_NS_INODE, &ids, sizeof(ids)))
		return 0;
	return ids.tgid;
#else
	return bpf_get_current_pid_tgid() >> 32;
#endif
}

/* sched_switch: the current task is the one that leaves its CPU. */
int account_switch(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	u64 now = bpf_ktime_get_ns();
	u64 *since = account_since.lookup(&zero);
	struct account_use *use;
	u64 began;
	u32 tgid;

	if (!since) {
		failed(ACCOUNT_NO_SINCE);
		return 0;
	}
	began = *since;
	*since = now;
	tgid = process();
	if (!tgid || !began)
		return 0;
	use = account_use.lookup(&tgid);
	if (!use)
		return 0;
	__sync_fetch_and_add(&use->ran_ns, now - began);
	__sync_fetch_and_add(&use->switches, 1);
	return 0;
}

/* sys_exit: (struct pt_regs *, long result). */
int account_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = process();
	struct account_use *use;
	struct pt_regs *regs;
	unsigned long number;
	long result;

	if (!tgid)
		return 0;
	use = account_use.lookup(&tgid);
	if (!use)
		return 0;
	__sync_fetch_and_add(&use->calls, 1);
	result = ctx->args[1];
	if (result <= 0)
		return 0;
	regs = (struct pt_regs *)ctx->args[0];
	if (bpf_probe_read_kernel(&number, sizeof(number), &regs->orig_ax)) {
		failed(ACCOUNT_NO_CALL);
		return 0;
	}
	switch (number) {
	case 0: /* read, pread64, readv, preadv, preadv2, recvfrom, recvmsg */
	case 17:
	case 19:
	case 295:
	case 327:
	case 45:
	case 47:
		__sync_fetch_and_add(&use->read_bytes, result);
		break;
	case 1: /* write, pwrite64, writev, pwritev, pwritev2, sendto, sendmsg */
	case 18:
	case 20:
	case 296:
	case 328:
	case 44:
	case 46:
		__sync_fetch_and_add(&use->written_bytes, result);
		break;
	}
	return 0;
}
