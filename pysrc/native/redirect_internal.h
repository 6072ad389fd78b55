// SPDX-License-Identifier: GPL-2.0
/* What the units of the redirector share: its state and the functions they lend each other.  Included by
 * redirect*.c only; what others may use is in redirect.h. */
#ifndef MOSIX_REDIRECT_INTERNAL_H
#define MOSIX_REDIRECT_INTERNAL_H
#include "redirect.h"
#include "failpoint.h"
#include "interface.h"
#include "own_proc.h"
#include "parked.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define SYNC_WAKE_UP 1UL

#define AUDIT_ARCH_X86_64_ 0xc000003e

#define ERESTARTSYS_ 512
#define ERESTARTNOINTR_ 513
#define ERESTARTNOHAND_ 514
#define ERESTART_RESTARTBLOCK_ 516

/* One request moves at most this many bytes of a read or write; longer ones are
 * sums.  Neither side then needs more memory than this for one call. */
#define CHUNK (4u << 20)
/* So much is received at once, and written into the guest, from the caches, while more comes. */
#define STEP (64u << 10)
#define EARLY (STEP / 2) /* so much of a reply that is not whole yet is worth a system call */
#define KEEP_BUFFER (1u << 20)
#define MAX_IOV 1024
/* Relocations per message: name, iov, control, base; one for the array. */
#define MAX_MESSAGES ((MX_MAX_RELOCS - 1) / 4)
#define MAX_SEGMENTS 128
#define MAX_CONTROL (64u << 10)
#define MAX_FD_SET (1 << 20)
#define SIGSET 8
#define HEAD (sizeof(struct mx_request) + MX_MAX_RELOCS * sizeof(struct mx_reloc))
#define NS 1000000000LL
/* TASK_SIZE_MAX with four levels of page tables; what a guest has is below it with five, too. */
#define USER_END 0x7ffffffff000ULL
#define MAX_RW_COUNT 0x7ffff000ULL

enum state { IDLE, CALLING, WAITING, HELD };
enum held { HELD_HOME, HELD_CANCELLED, HELD_SLEEPING };
enum { CONTINUE_NO, CONTINUE_YES };
enum purpose { FOR_GUEST, FOR_MODE }; /* MODE: is that descriptor a regular file? */

/* Bytes of the area that go back to the guest; `parts` iovecs from `first` when scattered. */
struct segment {
	uint64_t address;
	uint32_t offset;
	uint32_t size;
	int16_t length_segment; /* its 32-bit length is at the start of this one; -1 */
	uint16_t message;	/* 1 + index of the message it belongs to */
	uint32_t first;
	uint32_t parts;
};

struct kept {
	int valid;
	int nr;
	uint64_t args[6];
	uint64_t ip;
	int64_t result;
};

struct internal {
	const struct mx_table *table;
	const struct mx_descriptor *descriptors;
	const struct mx_test *tests;
	uint32_t n_tests;

	volatile int stop;
	volatile int inject;
	pthread_mutex_t renewal;
	volatile int new_fd; /* to be used instead of call_fd; -1: none */
	volatile int tid;

	enum state state;
	enum held held;
	int cancel_wanted;
	struct seccomp_notif notif;
	struct mosix_exchange exchange; /* its reply goes out when the next request is waited for */
	int serving;
	struct kept undelivered;
	struct kept prime;
	int64_t prime_deadline;

	/* the call being made */
	const struct mx_descriptor *call;
	int cls;
	enum purpose purpose;
	int writes;  /* TRANSFER, iov: direction */
	int all;     /* a short read is not an end */
	int regular; /* -1 not known yet */
	uint64_t total, done, chunk;
	int again;     /* it has begun elsewhere, or before a signal */
	int overtaken; /* a signal waits behind it, but a transfer of a file goes on to its end */
	int64_t deadline;
	int nowait;

	/* CPU time as told last */
	uint64_t user_ns, system_ns;

	/* the sleep */
	clockid_t clock;
	struct timespec until;
	int64_t date; /* it ends at this date at home; 0: `until` is enough */
	int forever;
	uint64_t rem;

	/* request under construction; data begin at buffer + HEAD */
	char *buffer;
	size_t room;
	uint32_t used, data_size, out_offset, fixed_end;
	uint32_t arg_offset[6];
	struct mx_reloc relocs[MX_MAX_RELOCS];
	int n_relocs;
	struct iovec from[MAX_SEGMENTS];
	uint32_t from_at[MAX_SEGMENTS];
	int n_from;
	struct segment segments[MAX_SEGMENTS];
	int n_segments;
	struct segment var;
	int has_var;
	struct iovec guest_iov[MAX_IOV + 8];
	uint32_t n_guest_iov;
	struct iovec window[MAX_IOV + 8];
	struct iovec ends[MAX_IOV];
	char end_bytes[MAX_IOV];
	struct mx_request *request;
	size_t sent, to_send;
	int resent; /* the agent may know it from another connection */

	/* reply */
	char *reply;
	size_t reply_room, received;
	size_t written;	   /* of the variable bytes, those that are in the guest already */
	size_t ahead;	   /* bytes sent ahead of this reply, behind its header's place */
	size_t ahead_left; /* of those, not received yet */
};

/* redirect.c */
int take_stop(struct internal *in);
int begin_call(struct mx_redirect *r);
long mx_interruptible(volatile int *flag, long nr, long a, long b, long c, long d);

/* redirect_answer.c */
int send_reply(struct mx_redirect *r);
int send_answer(struct mx_redirect *r, int64_t result, int go_on);
int is_same(const struct kept *kept, const struct mx_redirect *r);
int finish_call(struct mx_redirect *r, int64_t result);
int sleep_on(struct mx_redirect *r);
int begin_sleep(struct mx_redirect *r);
int answer_here(struct mx_redirect *r);

/* redirect_request.c */
int64_t now_ns(clockid_t clock);
int64_t guest_now(const struct mx_redirect *r);
int date_is_nodes(const struct mx_redirect *r);
struct timespec timespec_of(int64_t ns);
int grow(char **buffer, size_t *room, size_t size);
void shrink(char **buffer, size_t *room);
uint64_t min64(uint64_t a, uint64_t b);
int is_users(uint64_t address, uint64_t size);
int peek(const struct mx_redirect *r, void *to, uint64_t address, size_t size);
int poke(const struct mx_redirect *r, uint64_t address, const void *from, size_t size);
char *area(const struct internal *in, uint32_t offset);
int64_t place(struct internal *in, uint64_t size);
int64_t place_data(struct internal *in, uint64_t size);
int relocate(struct internal *in, uint32_t at, uint32_t to);
int relocate_arg(struct internal *in, int arg, uint32_t to);
int64_t add_in(struct internal *in, uint64_t address, uint64_t size);
int fetch(const struct mx_redirect *r);
int can_write(struct mx_redirect *r);
int add_segment(struct internal *in, uint64_t address, uint32_t offset, uint32_t size, int length_segment, int message);
void begin_request(struct mx_redirect *r);
int seal(struct mx_redirect *r, int nr, const uint64_t *args, uint32_t out_var, uint16_t out_unit, int fd_mask,
	 int flags);
void begin_out(struct internal *in);
void end_data(struct internal *in);
void apply_deadline(struct mx_redirect *r, uint64_t *args);
int add_updates(struct mx_redirect *r, const uint64_t *args, int i, uint64_t size);
int build_shapes(struct mx_redirect *r, int nr, uint64_t *args, const struct mx_descriptor *d);

/* redirect_calls.c */
int scatter(struct mx_redirect *r, const char *from, uint32_t first, uint32_t count, uint64_t skip, uint64_t size);
int build(struct mx_redirect *r);
int build_mode(struct mx_redirect *r);

/* redirect_reply.c */
int hold(struct mx_redirect *r, enum held why, int event);
int answered(struct mx_redirect *r, int64_t result);
int64_t cpu_total(const struct mx_redirect *r);
int cpu_used(struct mx_redirect *r, uint64_t *user, uint64_t *system, uint64_t faults[2]);
int call_agent(struct mx_redirect *r);

#endif
