/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the two halves of the agent's blob: agent.c (entries, obeying) and
 * agent_serve.c (redirected calls).  Nothing here may need a relocation at run
 * time, a vector register, thread-local storage or libc: the blob runs inside
 * somebody else's process, with that process's registers and memory.
 */
#ifndef MOSIX_AGENT_H
#define MOSIX_AGENT_H

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

/* Serves the call socket until it ends; agent_serve.c.  Started anew whenever
 * the blob was moved or the area was taken away while it waited. */
void serve(struct mx_agent_state *state);

static inline long mx_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* gcc may call these for struct copies. */
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);

#endif
