/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Thin ptrace layer for tracee.py: every function returns a value >= 0 or -errno,
 * never touches more than the one process, and never takes a stop away from a
 * later look (see mx_wait).  Policy lives in Python.
 */
#ifndef MOSIX_TRACEE_H
#define MOSIX_TRACEE_H

#include <stdint.h>
#include <stddef.h>

/* cffi: begin */
/* Any ptrace request whose result is not data. */
long mx_ptrace(int request, int pid, unsigned long addr, unsigned long data);

/* Looks at the next stop or end of pid.  1: *code (CLD_*) and *status are set; 0:
 * nothing yet (only with !block).  A stop stays where it is (WNOWAIT), an end is taken. */
int mx_wait(int pid, int block, int *code, int *status);

int mx_get_regs(int pid, void *user_regs); /* 216 bytes */
int mx_set_regs(int pid, const void *user_regs);
long mx_get_regset(int pid, int type, void *buf, size_t size); /* bytes */
long mx_set_regset(int pid, int type, const void *buf, size_t size);
int mx_get_sigmask(int pid, uint64_t *mask);
int mx_set_sigmask(int pid, uint64_t mask);
int mx_get_siginfo(int pid, void *siginfo); /* 128 bytes */
/* Up to max siginfo_t of one pending queue, from the first on. */
long mx_peek_siginfo(int pid, int shared, void *buf, unsigned int max);
/* 1: registered, 0: not (or the kernel cannot tell). */
int mx_get_rseq(int pid, uint64_t *address, uint32_t *size, uint32_t *signature);

/* Bytes moved; fewer than size where the memory ends. */
long mx_read(int pid, uint64_t addr, void *buf, size_t size);
long mx_write(int pid, uint64_t addr, const void *buf, size_t size);
/* Writes whatever the protection is; mem_fd: /proc/PID/mem or -1. */
int mx_poke(int pid, int mem_fd, uint64_t addr, const void *buf, size_t size);
/* cffi: end */

#endif
