/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The redirector: takes the system calls of one guest from its seccomp listener, or
 * from mosix.ko (`device`), has them executed by the agent over the call socket (abi.h) and gives the
 * results back.  Called by mosix.remote.notify; what each call's arguments mean
 * comes from mosix.syscalls.descriptors.  It never decides policy: whatever is
 * not a plain call is an event for Python.
 *
 * Threads.  One thread, the redirector's, calls mx_redirect_run() and handles its
 * events; it alone may call finish, answer, prime and free, and it may hand that
 * right to another thread while it is not inside run.  mx_redirect_stop(), _renew() and
 * _inject() may be called from any thread at any time.
 *
 * States, and what run() does in them:
 *
 *   IDLE      waits for a notification                       stop -> STOP
 *   CALLING   a request is at the agent, its reply awaited   stop -> CANCEL_WANTED;
 *             run() again waits on.  Reply whole             -> answered; STOP if
 *             CANCEL_WANTED was given, else IDLE.  The connection ends -> LINK;
 *             run() again goes on when there is another: mx_redirect_renew().
 *             Reply cancelled, or cut short after CANCEL_WANTED -> CANCELLED
 *   WAITING   a sleep or pause is awaited                    stop -> SLEEPING; run()
 *             again waits on.  Over                          -> answered, IDLE
 *   HELD      the notification is Python's to answer, by mx_redirect_finish() or
 *             mx_redirect_answer(); both lead to IDLE.  Entered with the events
 *             HOME, ASKS, CANCELLED and SLEEPING; run() in HELD is a sleep's continuation
 *             or an error.
 *
 * run() blocks without polling.  stop sets a flag and sends MX_WAKE_SIGNAL to the
 * thread; its handler moves a thread that is about to enter the kernel past the
 * `syscall`, so that the signal can never come too early.
 *
 * At most once.  With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV a received
 * notification cannot vanish, nor can a call that was read from mosix.ko.  Without it a signal makes the guest issue the call
 * again: the result that could not be delivered is kept and answers the identical
 * call (number, arguments, instruction) when it comes again.  A guest that is taken
 * elsewhere between the two must get that result by its registers instead:
 * mx_redirect_take_undelivered().
 */
#ifndef MOSIX_REDIRECT_H
#define MOSIX_REDIRECT_H

#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "clock.h"

/* ---- the packed table: mosix.syscalls.descriptors writes it, numbers are those of shapes.py ---- */

#define MX_TABLE_MAGIC 0x7473786d
#define MX_TABLE_CALLS 512
#define MX_NO_ARG 255

enum mx_class { MX_LOCAL, MX_HOME, MX_BOTH, MX_WAIT, MX_AT_HOME, MX_HERE };

enum mx_on_cancel { MX_RESTART, MX_PARTIAL, MX_REMAINING, MX_UNCANCELLABLE };

enum mx_arg_kind {
	MX_ARG_VALUE,
	MX_ARG_FD,
	MX_ARG_PATH,
	MX_ARG_OPEN_PATH,
	MX_ARG_STRING,
	MX_ARG_IN,
	MX_ARG_OUT,
	MX_ARG_OUT_RESULT,
	MX_ARG_INOUT,
	MX_ARG_OUT_LENGTH_AT,
};

enum mx_special {
	MX_SPECIAL_NONE,
	MX_SPECIAL_READV,
	MX_SPECIAL_WRITEV,
	MX_SPECIAL_SENDMSG,
	MX_SPECIAL_RECVMSG,
	MX_SPECIAL_SENDMMSG,
	MX_SPECIAL_RECVMMSG,
	MX_SPECIAL_SELECT,
	MX_SPECIAL_PSELECT,
	MX_SPECIAL_NANOSLEEP,
	MX_SPECIAL_CLOCK_NANOSLEEP,
	MX_SPECIAL_PAUSE,
	MX_SPECIAL_TRANSFER,
	MX_SPECIAL_PRLIMIT,
	MX_SPECIAL_SETPRIORITY,
	MX_SPECIAL_CPU_CLOCK,
	MX_SPECIAL_RUSAGE,
	MX_SPECIAL_TIMES,
	MX_SPECIAL_IOCTL,
	MX_SPECIAL_DATE,
	MX_SPECIAL_ON_ERROR,
	MX_SPECIAL_EXIT,
};

enum mx_timeout { MX_TIMEOUT_NONE, MX_TIMEOUT_MILLISECONDS, MX_TIMEOUT_TIMESPEC, MX_TIMEOUT_TIMEVAL };

struct mx_shape {
	uint32_t size;
	uint16_t unit;
	uint8_t kind;
	uint8_t length_arg;
};

#define MX_TEST_DIFFERS 1
#define MX_TEST_HOME_PID 2 /* value is the PID at home */
#define MX_TEST_AND 4	   /* the next test belongs to the same rule */

struct mx_test {
	uint64_t mask;
	uint64_t value;
	uint8_t arg;
	uint8_t flags;
	uint8_t cls;
	uint8_t pad;
	uint16_t reason;
	uint16_t pad2;
};

struct mx_descriptor {
	uint32_t key;
	uint16_t nr;
	uint16_t first_test;
	uint8_t n_tests;
	uint8_t cls;
	uint8_t special;
	uint8_t key_arg;
	uint8_t on_cancel;
	uint8_t timeout;
	uint8_t timeout_arg;
	uint8_t n_args;
	uint16_t reason;
	uint16_t proc_reason; /* of an open of /proc/self/maps and its like */
	uint32_t pad;
	struct mx_shape args[6];
};

struct mx_table {
	uint32_t magic;
	uint32_t version; /* MX_ABI_VERSION */
	uint32_t n_descriptors;
	uint32_t n_tests;
	struct {
		uint16_t first;
		uint16_t count; /* the row's own, then its variants by rising key; 0: unknown call */
	} calls[MX_TABLE_CALLS];
	/* struct mx_descriptor[n_descriptors], struct mx_test[n_tests] */
};

/* cffi: begin */
#define MX_EV_STOP 1
#define MX_EV_HOME 2
#define MX_EV_CANCEL_WANTED 3
#define MX_EV_CANCELLED 4
#define MX_EV_SLEEPING 5
#define MX_EV_LINK 6 /* the connection ended: see mx_redirect_renew() */
#define MX_EV_GONE 7
#define MX_EV_MISUSE 8
#define MX_EV_ASKS 9
#define MX_WAKE_SIGNAL 44
#define MX_REASON_UNKNOWN 0
#define MX_REASON_DESCRIPTORS 1
#define MX_REASON_MEMORY 2
#define MX_REASON_ARGUMENTS 3

struct mx_counter {
	uint64_t calls;
	uint64_t sent; /* bytes to the agent, headers included */
	uint64_t received;
};

/* What Python may set before run(), and read after an event. */
struct mx_redirect {
	int listener;
	int device;  /* `listener` is /dev/mosix: the module parks the guest's calls */
	int call_fd; /* -1 until there is one */
	int pid;     /* of the guest, as seen from here */
	int home_pid;
	int64_t monotonic_offset_ns; /* the guest's clock minus ours */
	int64_t boottime_offset_ns;
	int64_t carried_user_ns; /* CPU time used on other nodes */
	int64_t carried_system_ns;
	int64_t before_ns;	/* CPU time that the guest used before its body began */
	struct mx_clock *clock; /* what makes dates; NULL: they are this node's */

	int nr;	    /* the call the event is about; -1: none */
	int reason; /* HOME: index into the reasons of the table */
	uint64_t args[6];
	uint64_t ip;
	uint64_t id;	     /* CANCEL_WANTED, CANCELLED: of the request */
	int64_t result;	     /* CANCELLED: what the ghost's kernel said */
	int64_t done;	     /* CANCELLED: bytes moved so far */
	int64_t deadline_ns; /* of a relative timeout, guest's CLOCK_MONOTONIC; 0: none */
	int completed;	     /* CANCELLED: the call is over, a signal came meanwhile */
	int error;	     /* LINK, GONE: errno */
	int synchronous;     /* SYNC_WAKE_UP is on */
	int interface;	     /* opens of /proc/self/{special} are asked about: ASKS */
	char asked[16];	     /* ASKS: the name of the file */
	uint64_t signals;    /* given to the guest so far: mx_agent_state.signals in abi.h */
	uint64_t owed;	     /* CANCELLED: as many it must have been given before it goes on */
	uint64_t total_calls;
	uint64_t total_bytes;	     /* on the call socket */
	struct mx_counter *counters; /* by number, 512 */
	void *internal;
};

/* NULL with errno when out of memory, EINVAL when the table is not one. */
struct mx_redirect *mx_redirect_new(int listener, int call_fd, int pid, int home_pid, const void *table, size_t size);
/* Closes no descriptor. */
void mx_redirect_free(struct mx_redirect *r);
/* Serves until there is something to decide: MX_EV_*. */
int mx_redirect_run(struct mx_redirect *r);
void mx_redirect_stop(struct mx_redirect *r);
/* Another connection to the same agent, whose descriptor becomes ours: the old one
 * ends, and a request without its reply is sent again, with its number. */
void mx_redirect_renew(struct mx_redirect *r, int call_fd);
/* Whether such a one waits to be used. */
int mx_redirect_renewed(const struct mx_redirect *r);
/* A stop that came when nothing ran is forgotten. */
void mx_redirect_forget_stop(struct mx_redirect *r);
/* The held notification gets the end that it would have had natively, were a
 * signal delivered now: EINTR or the restart code, the bytes moved, the rest of a
 * sleep.  0 or -errno (-ENOENT: the guest no longer waits). */
int mx_redirect_finish(struct mx_redirect *r);
/* The held notification gets `result`, which may be a restart code when a stop of
 * the guest is pending.  Same return. */
int mx_redirect_answer(struct mx_redirect *r, int64_t result);
/* 1: the guest stopped inside a call that had been made; *result is what it should return, and is
 * forgotten here.  0: there is none. */
int mx_redirect_take_undelivered(struct mx_redirect *r, int64_t *result);
/* The next call with this number and these arguments goes on with one that has begun: behind
 * `done` bytes, or waiting only until deadline_ns. */
void mx_redirect_prime(struct mx_redirect *r, int nr, const uint64_t *args, int64_t done, int64_t deadline_ns);
/* Tests only: what the loops of this process do at the hits-th visit of a point (failpoint.h). */
void mx_redirect_arm(int point, int fault, int value, int hits);
/* User and system time of the body on all nodes, in ns, as the guest is told.  -1: it is gone. */
int mx_redirect_cpu(struct mx_redirect *r, uint64_t *used);
/* While on, every notification is answered by CONTINUE: the tracer injects. */
void mx_redirect_inject(struct mx_redirect *r, int on);
/* cffi: end */

#endif
