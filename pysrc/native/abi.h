/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What two processes of mosix agree on in C: the call socket (redirector at the
 * guest, agent in the ghost), the agent's control socket and the layout of the
 * agent's blob.  Included by redirect.c, agent.c and (through cffi) by Python.
 * All integers are little-endian and naturally aligned: x86-64 only.
 *
 * Increment MX_ABI_VERSION whenever a struct or the meaning of a field changes;
 * nodes with different versions refuse each other in the handshake.
 */
#ifndef MOSIX_ABI_H
#define MOSIX_ABI_H

#include <stdint.h>

#define MX_ABI_VERSION 5

/* ---- call socket: one request, one reply, never two in flight per thread ----
 * When the connection ends another one takes its place.  The redirector then sends
 * a request that has no reply yet once more; the agent executes none twice. */

#define MX_MAX_AREA (64u << 20) /* bytes of argument data of one call */
#define MX_MAX_RELOCS 64	/* msghdr + iovec + name + control at the most */

/*
 * A request is this header, n_relocs relocations, data_size bytes.  The agent
 * has an area of area_size bytes; the data are placed at its offset 0, what
 * lies behind them is undefined.  Each relocation stores the address of
 * area[to] into the 8 bytes at area[at], or into an argument.
 * After the call the agent returns area[out_offset ...]: out_fixed bytes, and
 * when the result is positive min(result * out_unit, out_var) more.  When the
 * result is negative nothing is returned, unless MX_REQ_OUT_ON_ERROR.
 */
struct mx_request {
	uint32_t size;	  /* bytes that follow this header */
	uint16_t nr;	  /* x86-64 system call number */
	uint16_t flags;	  /* MX_REQ_* */
	uint64_t id;	  /* sequence number, from 1, +1 per request of a thread */
	uint64_t signals; /* how many the guest has been given since it began; see mx_agent_state */
	uint64_t args[6];
	uint32_t data_size;
	uint32_t area_size;
	uint32_t out_offset;
	uint32_t out_fixed;
	uint32_t out_var;
	uint16_t out_unit;
	uint8_t n_relocs;
	uint8_t fd_mask; /* bit i: args[i] is a descriptor number; the agent's own give EBADF */
};

struct mx_reloc {
	uint32_t at; /* offset in the area, or MX_RELOC_ARG + index of an argument */
	uint32_t to; /* offset in the area */
};
#define MX_RELOC_ARG 0x80000000u

#define MX_REQ_OUT_ON_ERROR 1 /* select, ppoll: out bytes also when interrupted */
/* Goes on with a call that has begun: a signal that is on its way to the guest
 * interrupts it, and does not come before it. */
#define MX_REQ_AGAIN 2

struct mx_reply {
	uint32_t size;	  /* out bytes that follow */
	uint32_t flags;	  /* MX_REP_* */
	uint64_t id;	  /* of the request */
	int64_t result;	  /* as in rax: -errno, or a restart code with MX_REP_CANCELLED */
	uint64_t signals; /* mx_agent_state.signals: to be taken before the result is seen */
};

/* A signal or a freeze met the call and is on its way over the control connection.
 * With the kernel's own restart code (-512, -513, -514, -516) or -EINTR as result
 * the call did nothing; with any other the call is over (kill(2) of itself,
 * unblocking a signal), and the signal is to be taken before its result is seen. */
#define MX_REP_CANCELLED 1
/* The open has led to a file in /proc that describes the ghost instead of the
 * body (own_proc.h), by a path that did not show it.  Nothing was opened. */
#define MX_REP_GO_HOME 2
/*
 * Reading ahead.  A guest that reads a file with reads of one size is sent, behind the reply to
 * one, what the next would return at that moment: a reply with MX_REP_AHEAD, of at most
 * MX_AHEAD_MAX bytes, which answers nothing.  It comes before the reply to the next request,
 * whatever that is, and is kept until the first one that returns bytes.  A read is made when it
 * is asked for, like all calls; only when its whole result is, byte for byte, what was sent ahead
 * its reply is MX_REP_SAME, without the bytes.
 */
#define MX_REP_AHEAD 4
#define MX_REP_SAME 8
#define MX_AHEAD_MAX (256u << 10)

/* Before it executes an exit the agent calls times(NULL, MX_LAST_TIMES, user, system), in ns: what
 * its body has used on all nodes, for the listener of the job (cputime.h).  Where nobody listens
 * that is a times(NULL). */
#define MX_LAST_TIMES 0x7473616c2e786d00ULL

/* ---- the agent's blob: position independent, mapped rwx in one piece ---- */

#define MX_AGENT_MAGIC 0x746e6761786f6dULL

/* At offset 0 of the blob; offsets are from the blob's first byte. */
struct mx_agent_header {
	uint64_t magic;
	uint32_t version;      /* MX_ABI_VERSION */
	uint32_t blob_size;    /* code and data, a multiple of the page size, stack included */
	uint32_t serve_entry;  /* serves the call socket until it is closed */
	uint32_t obey_entry;   /* obeys the control socket until it ends or the process is stopped */
	uint32_t call_return;  /* address behind the `syscall` that makes a redirected call */
	uint32_t state_offset; /* struct mx_agent_state */
	uint32_t stack_top;    /* initial rsp for either entry; from here to blob_size lies
				  * scratch memory for the arguments of MX_OP_CALLS */
	uint32_t saved_offset; /* struct mx_agent_saved */
};

/* Written by the deputy or remote while the process is stopped, else by the agent. */
struct mx_agent_state {
	int32_t call_fd;     /* -1: none */
	int32_t control_fd;  /* -1: none */
	uint64_t current_id; /* request being executed, 0: waiting for one */
	uint32_t cancelled;  /* set by the deputy at a stop at call_return: the reply gets MX_REP_CANCELLED */
	uint32_t go_home;    /* the reply gets MX_REP_GO_HOME */
	uint64_t guest_mask; /* signal mask of the guest's thread */
	uint64_t ignored;    /* signals the guest ignores; the ghost blocks guest_mask | ignored */
	uint64_t area;	     /* scratch of area_size bytes, mapped by the agent; the end is for reading ahead */
	uint64_t area_size;
	uint64_t calls;	    /* redirected calls executed */
	uint64_t signals;   /* taken from the ghost for this guest, see below */
	uint32_t failpoint; /* tests only, failpoint.h: MX_FP_*, what it does, milliseconds, at which visit */
	uint32_t fault;
	uint32_t fault_value;
	uint32_t fault_hits;
	uint32_t broken;   /* the call socket ended: obeys until MX_OP_RENEW */
	uint32_t renewals; /* how many of those there were */
	uint32_t first;	   /* the next request is the first of its connection */
	uint32_t masked;   /* the call being executed waits with a temporary signal mask */
	uint64_t last_id;  /* of the request executed last, and its reply, until the next request comes */
	uint64_t reply;	   /* its address; 0: forgotten */
	uint64_t reply_size;
	uint64_t kept; /* memory outside the area that it lies in */
	uint64_t kept_size;
	uint64_t ahead_size; /* of what was sent ahead of the next request; 0: nothing, or it is to be thrown away */
	uint64_t ahead_left; /* bytes of that which have yet to be sent, or MX_AHEAD_UNKNOWN */
	int32_t reads_fd;    /* `reads` times reads_size bytes were read from it, last up to reads_end */
	uint32_t reads;
	uint64_t reads_size;
	int64_t reads_end;
	uint64_t cure; /* where to jump when control_fd ends before commit; 0: SIGKILL to itself */
};

/* Stopped while it sent ahead.  Started anew then, it ends the connection, where nobody can find the
 * beginning of the next reply. */
#define MX_AHEAD_UNKNOWN UINT64_MAX

/* A request whose sender has given the guest fewer signals than were taken for it
 * is sent back with -ERESTARTNOINTR: natively the handler would have run before
 * the call was made.  A reply that tells of more than the guest was given waits. */

/* What the cure needs besides the stub, which loads only what a system call clobbers. */
struct mx_agent_saved {
	uint64_t rbx, rbp, rsp, r12, r13, r14, r15, rflags;
};

/* ---- control socket of the agent: SOCK_STREAM pair, one order at a time ---- */

enum mx_op {
	MX_OP_CALLS = 1, /* count * struct mx_call follow; executed in order, stops at the first failure
	                  * unless MX_CALL_MAY_FAIL; answer: struct mx_done, then count int64 results */
	MX_OP_FILL = 2,	 /* count * struct mx_run follow; receives every run from descriptor fd straight into
	                  * memory; answer: struct mx_done, result = bytes or -errno (-EPIPE: ended early) */
	MX_OP_FD = 3,	 /* one SCM_RIGHTS descriptor rides on this header; answer: result = number it got,
	                  * close-on-exec, as high under RLIMIT_NOFILE as is free */
	MX_OP_MOVE = 4,	 /* a copy of the blob has been made elsewhere: goes on in it at obey_entry of the
	                  * address that follows (uint64); answer: result = 0, then the jump */
	MX_OP_RENEW = 5, /* the call socket that rides on this header takes the place of one that ended; no answer.
	                  * Read whenever the agent is through with the call it executes: serves on then */
};

struct mx_order {
	uint32_t op;
	uint32_t count;
	int32_t fd;
	uint32_t pad;
};

struct mx_call {
	uint64_t nr;
	uint64_t args[6];
	uint64_t flags; /* MX_CALL_* */
};
#define MX_CALL_MAY_FAIL 1
#define MX_MAX_CALLS 512 /* in one MX_OP_CALLS */

struct mx_run {
	uint64_t start; /* address, page aligned */
	uint64_t size;	/* bytes, a multiple of the page size */
};

struct mx_done {
	int64_t result; /* MX_OP_CALLS: how many calls were made */
	uint32_t count; /* results that follow */
	uint32_t pad;
};

#endif
