/* SPDX-License-Identifier: GPL-2.0 */
/*
 * System calls in a stopped, seized process that cure themselves: if the tracer is
 * killed at any moment, the process goes on as if nothing had happened.
 *
 * The stub lies in the zero tail of the process's vdso (no stack, no frame, no page of
 * the program is touched) and after the call restores the signal mask and every
 * register that a system call changes, then jumps back.  Tracers must have set
 * PTRACE_O_TRACESYSGOOD (otherwise a tracer's death at a syscall stop becomes SIGTRAP)
 * and must only look at stops with WNOWAIT.
 *
 * The same slots hold reissue stubs (mx_finish_call): a call that the program made
 * elsewhere and whose rest it makes here, with other arguments.
 */
#ifndef MOSIX_INJECT_H
#define MOSIX_INJECT_H

#include <stdint.h>
#include <stddef.h>

/* cffi: begin */
/* Where stubs may be put: the unused end of one process's vdso. */
struct mx_site {
	uint64_t vdso;
	uint64_t tail; /* first byte of the first slot */
	uint64_t end;
};

struct mx_injected {
	uint64_t nr;
	uint64_t args[6];
	int64_t result;
};

/* What a reissue stub holds. */
struct mx_reissue {
	uint64_t nr;	  /* of the program's own call */
	uint64_t args[6]; /* of the program's own call */
	uint64_t add;
	uint64_t rip;	 /* behind the program's syscall instruction */
	uint64_t offset; /* of rip in the stub: 0 before the call, 2 behind it, then corrections */
};

/* Finds the slots of the vdso that is mapped at [vdso, end).  -ENOSPC: none. */
int mx_site_init(struct mx_site *site, int pid, uint64_t vdso, uint64_t end);
/* 1: [vdso, end) still is the vdso of pid. */
int mx_site_valid(const struct mx_site *site, int pid);

/*
 * Makes `count` system calls, in order, in the stopped process; each result is stored.
 * The process is left in a PTRACE_EVENT_STOP with the registers and mask it had;
 * *status is that stop's (a group stop may have come in between).
 * -EBUSY: it stands in a signal-delivery stop; -ESRCH: it is gone; -ENOEXEC: 32-bit code.
 */
int mx_inject(const struct mx_site *site, int pid, struct mx_injected *calls, int count, int *status);

/*
 * Writes a reissue stub and sets the registers so that on resuming the process makes
 * call nr(args).  `regs` is the program's context rewound to its syscall instruction
 * (rax: the number of its own call).  data (16 bytes or NULL) is put beside the stub and
 * args[data_arg] becomes its address.
 */
int mx_finish_call(const struct mx_site *site, int pid, const void *regs, uint64_t nr, const uint64_t *args,
		   uint64_t add, const void *data, int data_arg);

/* 2: stands in a reissue stub, *out is set; 1: in an injection stub of a dead tracer; 0: neither. */
int mx_in_stub(const struct mx_site *site, int pid, const void *regs, struct mx_reissue *out);

/*
 * 1: a signal handler of the process will return into a stub (it interrupted the call
 * that was made from there).  Slots that nobody can be in any more are freed.
 */
int mx_stub_on_stack(const struct mx_site *site, int pid, const void *regs);

/*
 * Prepares the way back for a process whose registers somebody is about to change for
 * longer (the agent): a stub as above that stays where it is.  Whoever jumps to it has
 * restored all registers that a system call does not change, and rax, rdi, rsi... of one
 * last call, which the stub makes first.  user_regs (216 bytes): what to set, instead of
 * that, to give the process back from a PTRACE_EVENT_STOP.
 */
int mx_cure_prepare(const struct mx_site *site, int pid, uint64_t *stub, void *user_regs);
int mx_cure_forget(int pid, uint64_t stub);
/* cffi: end */

#endif
