/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What intercept.bpf.c and user space (mosix.kernel.intercept) agree on: the maps' keys and values.
 * Python takes what lies between the two cffi lines.
 */
#ifndef MOSIX_INTERCEPT_H
#define MOSIX_INTERCEPT_H

/* cffi: begin */
/* Knobs: entries of the maps. */
#define MX_TASKS 32768
#define MX_LOCAL_FDS 65536
#define MX_NAMES 64
#define MX_TESTS 256

#define MX_POLICIES 4	/* kinds of tasks: at home, guest, ... */
#define MX_CALLS 512	/* system call numbers */
#define MX_NAME_SIZE 16 /* of a file under /proc/self, NUL included */

/* What is done with a call of a task with some policy: struct mx_action at policy * MX_CALLS + nr. */
#define MX_ACT_NATIVE 0
#define MX_ACT_REDIRECT 1
#define MX_ACT_DENY 2 /* ENOSYS */
#define MX_ACT_KILL 3
#define MX_ACT_BY_FD 4 /* native if the first argument is a descriptor marked local */
/* Redirected if the first argument is the path of a special file, which is opened as one (mosix(7)). */
#define MX_ACT_OWN_PROC 5
#define MX_ACT_OWN_PROC_AT 6 /* the same, of the second argument */
#define MX_ACT_TESTS 7	     /* as the first rule says whose tests all hold */

/* Tests of one action at most, and flags of a test. */
#define MX_MAX_TESTS 16
#define MX_TEST_DIFFERS 1
#define MX_TEST_AND 2 /* the next test belongs to the same rule */

/* Indices of the map `counts`. */
#define MX_COUNT_NATIVE 0
#define MX_COUNT_REDIRECTED 1
#define MX_COUNT_DENIED 2
#define MX_COUNT_KILLED 3
#define MX_COUNT_INHERITED 4
#define MX_COUNT_ENDED 5
#define MX_COUNT_MAP_FAILED 6  /* an entry could not be made: the child is not intercepted */
#define MX_COUNT_PATH_FAILED 7 /* a path could not be read: redirected, user space looks at it */
#define MX_COUNT_STALE 8       /* the task of an entry had ended unseen; the number is another's now */
#define MX_COUNTS 9

struct mx_task {
	uint32_t policy;
	uint32_t owner;	 /* number of a file of /dev/mosix */
	uint32_t orphan; /* MOSIX_ORPHAN_* */
	uint32_t epoch;
	uint64_t started; /* tells it from a later task of its number; 0: its first call will tell */
};

struct mx_action {
	uint8_t action;
	uint8_t otherwise; /* MX_ACT_TESTS: the action when no rule holds */
	uint16_t first;	   /* its tests */
	uint16_t n_tests;
	uint16_t zero;
};

/* (argument & mask) == value, or != with MX_TEST_DIFFERS. */
struct mx_test {
	uint64_t mask;
	uint64_t value;
	uint8_t argument;
	uint8_t flags;
	uint8_t action; /* of the rule whose last test it is */
	uint8_t zero[5];
};

struct mx_fd {
	uint32_t tgid;
	uint32_t fd;
};

struct mx_name {
	char name[MX_NAME_SIZE];
};
/* cffi: end */

#endif
