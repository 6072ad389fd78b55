/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What mosix.ko and user space agree on: /dev/mosix, and the verdict of the eBPF program that the
 * module asks about each hooked system call.  Included by the module and by intercept.bpf.c; Python
 * takes what lies between the two cffi lines (mosix.kernel.device).
 *
 * Increment MOSIX_API_VERSION whenever a structure, a number or the meaning of a field changes.
 */
#ifndef MOSIX_UAPI_H
#define MOSIX_UAPI_H

/*
 * A verdict: 4 bits of action, 4 bits of what to do when nobody serves the owner any more, and in the
 * remaining 24 the owner (of a redirected call) or the errno (of a denied one).
 */
#define MOSIX_VERDICT(action, orphan, value) ((action) | (orphan) << 4 | (value) << 8)
#define MOSIX_VERDICT_ACTION(verdict) ((verdict)&0xf)
#define MOSIX_VERDICT_ORPHAN(verdict) ((verdict) >> 4 & 0xf)
#define MOSIX_VERDICT_VALUE(verdict) ((verdict) >> 8)

/* cffi: begin */
#define MOSIX_API_VERSION 3

/* What becomes of a hooked system call. */
#define MOSIX_NATIVE 0
#define MOSIX_REDIRECT 1
#define MOSIX_DENY 2
#define MOSIX_KILL 3

/* What becomes of a redirected one whose owner has closed its file. */
#define MOSIX_ORPHAN_NATIVE 0
#define MOSIX_ORPHAN_EIO 1
#define MOSIX_ORPHAN_KILL 2

/* read(2) of an owner's file gives as many of these as there are and fit. */
struct mosix_request {
	uint64_t id;   /* never used twice in the life of the file */
	uint32_t kind; /* MOSIX_CALL or MOSIX_CANCEL */
	uint32_t nr;
	int32_t tid; /* as seen from the reader's PID namespace; 0: not visible there */
	int32_t tgid;
	uint64_t args[6];
	uint64_t ip; /* behind the instruction that made the call */
	uint64_t sp;
};

#define MOSIX_CALL 1
/* The task of a call that was read has a signal to take.  The owner still answers that call, once:
 * with what it got, or with a restart code when nothing was done. */
#define MOSIX_CANCEL 2

/* write(2) takes any number of these.  ENOENT: the task has been killed meanwhile, or nothing of that
 * id has been read. */
struct mosix_reply {
	uint64_t id;
	int64_t result; /* as in rax: -errno, or a restart code (-512, -513, -514) */
	uint32_t flags; /* MOSIX_RUN_NATIVELY */
	uint32_t zero;
};

/* The call is made here and now, by its own task; `result` is not looked at and must be 0. */
#define MOSIX_RUN_NATIVELY 1

struct mosix_counters {
	uint64_t redirected; /* calls that were parked */
	uint64_t answered;
	uint64_t ran_natively;
	uint64_t interrupted; /* by a signal, before anybody had read them */
	uint64_t killed;      /* SIGKILL while parked */
	uint64_t orphaned;
	uint64_t denied;
	uint64_t hooks;	     /* functions that are hooked now */
	uint64_t owners;     /* files that own tasks now */
	uint64_t parked;     /* tasks that wait now */
	uint64_t captures;   /* orders to send memory that were carried out */
	uint64_t sent_bytes; /* of memory, so far */
};

#define MOSIX_NAME_SIZE 32

/* Hooks come in sets, each of which is there only while somebody owns tasks that need it. */
#define MOSIX_SETS 2

struct mosix_hook {
	uint64_t address; /* of the function, as /proc/kallsyms tells; 0: it is searched for, slowly */
	uint32_t set;
	uint32_t zero;
	char name[MOSIX_NAME_SIZE]; /* of the system call, as in asm/unistd_64.h; NUL-terminated */
};

/* A reply, if its id is not 0, and then the next request. */
struct mosix_exchange {
	struct mosix_reply reply; /* its id becomes 0 when it was taken, or nobody waits for it */
	struct mosix_request request;
};

struct mosix_run {
	uint64_t start; /* address and bytes, multiples of the page size */
	uint64_t size;
};

#define MOSIX_MOST_RUNS 65536 /* in one order */

/* What is said of a process's memory is for its tracer only, who sees to it that it stands still. */
struct mosix_send_pages {
	int32_t pid;
	int32_t fd;    /* a blocking socket, pipe or file */
	uint64_t runs; /* address of the runs to be sent, raw and in order */
	uint32_t count;
	uint32_t skip; /* bytes of the first page that are not sent again after EINTR */
	uint64_t sent; /* out: bytes, also when it fails */
};

/* Bits of mosix_vma.flags: the VmFlags of /proc/PID/smaps, by the kernel's own names for them.  Others
 * are not told. */
#define MOSIX_VMA_RD 0
#define MOSIX_VMA_WR 1
#define MOSIX_VMA_EX 2
#define MOSIX_VMA_SH 3
#define MOSIX_VMA_MR 4
#define MOSIX_VMA_MW 5
#define MOSIX_VMA_ME 6
#define MOSIX_VMA_MS 7
#define MOSIX_VMA_GD 8
#define MOSIX_VMA_PF 9
#define MOSIX_VMA_LO 10
#define MOSIX_VMA_IO 11
#define MOSIX_VMA_SR 12
#define MOSIX_VMA_RR 13
#define MOSIX_VMA_DC 14
#define MOSIX_VMA_DE 15
#define MOSIX_VMA_LF 16
#define MOSIX_VMA_AC 17
#define MOSIX_VMA_NR 18
#define MOSIX_VMA_HT 19
#define MOSIX_VMA_SF 20
#define MOSIX_VMA_WF 21
#define MOSIX_VMA_DD 22
#define MOSIX_VMA_SD 23
#define MOSIX_VMA_MM 24
#define MOSIX_VMA_HG 25
#define MOSIX_VMA_NH 26
#define MOSIX_VMA_MG 27
#define MOSIX_VMA_UM 28
#define MOSIX_VMA_UW 29
#define MOSIX_VMA_UI 30
#define MOSIX_VMA_SS 31
#define MOSIX_VMA_SL 32
#define MOSIX_VMA_DP 33

/* One mapping, as /proc/PID/maps has it. */
struct mosix_vma {
	uint64_t start;
	uint64_t end;
	uint64_t flags;
	uint64_t offset; /* in its file, in bytes */
	uint64_t inode;
	uint32_t major;
	uint32_t minor;
	uint32_t key;  /* of its protection */
	uint32_t name; /* where among the names its own begins, which ends with NUL */
};

struct mosix_vmas {
	int32_t pid;
	uint32_t zero;
	uint64_t next;	/* in: mappings that end behind that; out: where to go on, 0: these were all */
	uint64_t vmas;	/* address of an array */
	uint64_t names; /* address of bytes */
	uint32_t count; /* in: for how many there is room, in `vmas`; out: how many there are */
	uint32_t names_size;
};

/* Only pages that were written since "4" was written into /proc/PID/clear_refs, or are in a mapping that was
 * made, or has grown, since: the kernel's soft-dirty bits.  What is gone since is among neither these nor all pages. */
#define MOSIX_PAGES_DIRTY 1

/* Pages that hold data: those that are there but the zero page, and those in swap. */
struct mosix_find_pages {
	int32_t pid;
	uint32_t flags;
	uint64_t start; /* in: from there on; out: where to go on */
	uint64_t end;	/* `start` then, when all was looked at */
	uint64_t runs;	/* address of an array */
	uint32_t count; /* in: for how many runs there is room; out: how many there are */
	uint32_t zero;
};

#define MOSIX_ADDRESS_SIZE 16

/* What everyone may read of a process in /proc/mosix/PID, as mosix(7) means it. */
struct mosix_told {
	int32_t pid;
	uint32_t job_class;
	int32_t origin_pid;		/* at home; 0: it is at home here */
	int32_t freezer;		/* 0...3, or MOSIX_FREEZER_GUEST */
	char from[MOSIX_ADDRESS_SIZE];	/* an IPv4 address, or "0": from here */
	char where[MOSIX_ADDRESS_SIZE]; /* the same: it runs here */
};

#define MOSIX_FREEZER_LAST 3
#define MOSIX_FREEZER_GUEST -66
/* cffi: end */

#define MOSIX_IOC_MAGIC 'M'
/* Argument: uint32_t *; the version is stored there. */
#define MOSIX_IOC_VERSION _IOR(MOSIX_IOC_MAGIC, 0, uint32_t)
/* Argument: uint32_t *, in which stands which sets of hooks its tasks need, a bit for each; makes the
 * file an owner of tasks, whose number is stored there (1...). */
#define MOSIX_IOC_OWN _IOWR(MOSIX_IOC_MAGIC, 1, uint32_t)
/* Argument: struct mosix_hook *; one more system call to be asked about.  Only before the program; a
 * call is in one set only. */
#define MOSIX_IOC_HOOK _IOW(MOSIX_IOC_MAGIC, 2, struct mosix_hook)
/* Argument: descriptor of a BPF_PROG_TYPE_RAW_TRACEPOINT program.  It decides until this file is
 * closed and nobody owns tasks any more: whoever made it may die.  Its context: args[0] the task's
 * struct pt_regs, [1] the number, [2...7] the arguments, [8] when the task was started. */
#define MOSIX_IOC_PROGRAM _IO(MOSIX_IOC_MAGIC, 3)
/* Argument: struct mosix_counters *. */
#define MOSIX_IOC_COUNTERS _IOR(MOSIX_IOC_MAGIC, 4, struct mosix_counters)
/* Argument: struct mosix_send_pages *. */
#define MOSIX_IOC_SEND_PAGES _IOWR(MOSIX_IOC_MAGIC, 5, struct mosix_send_pages)
/* Argument: struct mosix_exchange *.  Waits for a request; EINTR may come after the reply was taken. */
#define MOSIX_IOC_EXCHANGE _IOWR(MOSIX_IOC_MAGIC, 6, struct mosix_exchange)
/* Argument: uint64_t *, the id of a call that was read.  ENOENT unless its task still waits. */
#define MOSIX_IOC_WAITS _IOW(MOSIX_IOC_MAGIC, 7, uint64_t)
/* Argument: struct mosix_vmas *.  ENOSPC: there is no room for one. */
#define MOSIX_IOC_VMAS _IOWR(MOSIX_IOC_MAGIC, 8, struct mosix_vmas)
/* Argument: struct mosix_find_pages *.  EOPNOTSUPP: there are pages of a kind that cannot be captured. */
#define MOSIX_IOC_FIND_PAGES _IOWR(MOSIX_IOC_MAGIC, 9, struct mosix_find_pages)
/* Argument: struct mosix_told *, from now on in /proc/mosix until the process ends. */
#define MOSIX_IOC_TELL _IOW(MOSIX_IOC_MAGIC, 10, struct mosix_told)
/* Argument: PID of a process that is not to be in /proc/mosix any more. */
#define MOSIX_IOC_FORGET _IO(MOSIX_IOC_MAGIC, 11)

#endif
