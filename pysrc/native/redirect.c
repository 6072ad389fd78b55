// SPDX-License-Identifier: GPL-2.0
/* The redirector's loop: it receives notifications and sorts them; what it promises and its states are
 * described in redirect.h. */
#include "redirect_internal.h"

/* ---- waking the thread ---- */

/* mx_interruptible(&flag, nr, a, b, c, d): the system call, or -EINTR when flag is set.  The
 * handler below makes check and call one step.  Arguments move one register to the left twice. */
extern const char mx_interruptible_begin[], mx_interruptible_end[], mx_interruptible_abort[];
__asm__(".pushsection .text\n"
	".globl mx_interruptible\n"
	".hidden mx_interruptible\n"
	".hidden mx_interruptible_begin, mx_interruptible_end, mx_interruptible_abort\n"
	".globl mx_interruptible_begin, mx_interruptible_end, mx_interruptible_abort\n"
	".type mx_interruptible, @function\n"
	"mx_interruptible:\n"
	"	mov %rdi, %r11\n"
	"	mov %rsi, %rax\n"
	"	mov %rdx, %rdi\n"
	"	mov %rcx, %rsi\n"
	"	mov %r8, %rdx\n"
	"	mov %r9, %r10\n"
	"	xor %r8d, %r8d\n"
	"	xor %r9d, %r9d\n"
	"mx_interruptible_begin:\n"
	"	cmpl $0, (%r11)\n"
	"	jne mx_interruptible_abort\n"
	"	syscall\n"
	"mx_interruptible_end:\n"
	"	ret\n"
	"mx_interruptible_abort:\n"
	"	mov $-4, %rax\n"
	"	ret\n"
	"	.size mx_interruptible, .-mx_interruptible\n"
	"	.popsection\n");

static void wake(int signal, siginfo_t *info, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

	(void)signal;
	(void)info;
	if (*rip >= (greg_t)mx_interruptible_begin && *rip < (greg_t)mx_interruptible_end)
		*rip = (greg_t)mx_interruptible_abort;
}

static int install_wake(void)
{
	struct sigaction action = { .sa_sigaction = wake, .sa_flags = SA_SIGINFO };

	return sigaction(MX_WAKE_SIGNAL, &action, NULL);
}

void mx_redirect_stop(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int tid;

	in->stop = 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	tid = in->tid;
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, MX_WAKE_SIGNAL);
}

void mx_redirect_inject(struct mx_redirect *r, int on)
{
	((struct internal *)r->internal)->inject = on;
}

int take_stop(struct internal *in)
{
	return __atomic_exchange_n(&in->stop, 0, __ATOMIC_SEQ_CST);
}

void mx_redirect_forget_stop(struct mx_redirect *r)
{
	take_stop(r->internal);
}

/* ---- a notification ---- */

static int holds(const struct mx_redirect *r, const struct mx_test *t)
{
	uint64_t wanted = t->flags & MX_TEST_HOME_PID ? (uint32_t)r->home_pid : t->value;

	return ((r->args[t->arg] & t->mask) == wanted) != !!(t->flags & MX_TEST_DIFFERS);
}

static int classify(struct mx_redirect *r, const struct mx_descriptor *d)
{
	const struct internal *in = r->internal;
	int i = 0, all;

	while (i < d->n_tests) {
		const struct mx_test *t = &in->tests[d->first_test + i];

		for (all = 1;; t++, i++) {
			all &= holds(r, t);
			if (!(t->flags & MX_TEST_AND))
				break;
		}
		i++;
		if (all) {
			r->reason = t->reason;
			return t->cls;
		}
	}
	r->reason = d->reason;
	return d->cls;
}

/* Requests of these families are structs without pointers; the number tells their size. */
static int ioctl_is_plain(uint32_t request)
{
	uint32_t size = request >> 16 & 0x3fff, direction = request >> 30;
	uint32_t type = request >> 8 & 0xff;

	if (!size || !direction || size > 4096)
		return 0;
	return type == 'T' || type == 'f' || type == 'X' || type == 'E' || type == 0x12;
}

static const struct mx_descriptor *variant_of(struct mx_redirect *r, const struct mx_descriptor *d, int count)
{
	static __thread struct mx_descriptor guessed;
	uint32_t key = r->args[d->key_arg];
	int low = 1, high = count - 1;

	while (low <= high) {
		int middle = (low + high) / 2;

		if (d[middle].key == key)
			return &d[middle];
		if (d[middle].key < key)
			low = middle + 1;
		else
			high = middle - 1;
	}
	if (d->n_args)
		return d;
	if (d->special != MX_SPECIAL_IOCTL || !ioctl_is_plain(key))
		return NULL;
	guessed = *d;
	guessed.n_args = 3;
	guessed.args[0] = (struct mx_shape){ .kind = MX_ARG_FD };
	guessed.args[1] = (struct mx_shape){ .kind = MX_ARG_VALUE };
	guessed.args[2] = (struct mx_shape){
		.kind = key >> 30 == 1 ? MX_ARG_IN : MX_ARG_INOUT,
		.size = key >> 16 & 0x3fff,
		.length_arg = MX_NO_ARG,
	};
	return &guessed;
}

int begin_call(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int error;

	in->purpose = FOR_GUEST;
	in->regular = -1;
	in->writes = in->call->special == MX_SPECIAL_WRITEV || in->call->special == MX_SPECIAL_SENDMSG ||
		     (in->call->special == MX_SPECIAL_TRANSFER && in->call->args[1].kind == MX_ARG_IN);
	in->all = (r->nr == SYS_recvfrom && r->args[3] & MSG_WAITALL) ||
		  (r->nr == SYS_recvmsg && r->args[2] & MSG_WAITALL);
	r->counters[r->nr].calls++;
	r->total_calls++;
	error = build(r);
	if (error == MX_EV_HOME) {
		r->reason = in->call->proc_reason;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	if (error == MX_EV_ASKS)
		return hold(r, HELD_HOME, MX_EV_ASKS);
	if (error && in->done)
		return answered(r, in->done); /* it has begun elsewhere */
	if (error) {
		/* Which of several errors wins, and what is done before, only the kernel knows. */
		r->reason = MX_REASON_ARGUMENTS;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	in->state = CALLING;
	return 0;
}

static int begin(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const struct mx_descriptor *d;
	int cls, count;

	r->nr = in->notif.data.nr;
	memcpy(r->args, in->notif.data.args, sizeof(r->args));
	r->ip = in->notif.data.instruction_pointer;
	r->done = r->result = r->deadline_ns = r->completed = 0;
	in->done = in->total = in->chunk = 0;
	in->again = in->overtaken = 0;
	in->deadline = 0;
	if (in->inject)
		return send_answer(r, 0, CONTINUE_YES), 0;
	/* This number says to the kernel that there is no call: it would not make it again at home. */
	if (r->nr == -1)
		return send_answer(r, -ENOSYS, CONTINUE_NO), 0;
	if (in->notif.data.arch != AUDIT_ARCH_X86_64_ || r->nr < 0 || r->nr >= MX_TABLE_CALLS ||
	    !in->table->calls[r->nr].count) {
		r->reason = MX_REASON_UNKNOWN;
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
	d = &in->descriptors[in->table->calls[r->nr].first];
	count = in->table->calls[r->nr].count;
	cls = classify(r, d);
	if (cls != MX_AT_HOME && d->key_arg != MX_NO_ARG) {
		d = variant_of(r, d, count);
		if (!d)
			cls = MX_AT_HOME;
	}
	in->call = d;
	in->cls = cls;
	if (is_same(&in->undelivered, r) && in->undelivered.ip == r->ip) {
		in->undelivered.valid = 0;
		send_answer(r, in->undelivered.result, CONTINUE_NO);
		return 0;
	}
	if (is_same(&in->prime, r)) {
		in->prime.valid = 0;
		in->again = 1;
		in->done = in->prime.result;
		in->deadline = in->prime_deadline;
	}
	switch (cls) {
	case MX_HOME:
	case MX_BOTH:
		return begin_call(r);
	case MX_WAIT:
		return begin_sleep(r);
	case MX_HERE:
		return answer_here(r);
	case MX_LOCAL:
		return send_answer(r, 0, CONTINUE_YES), 0;
	default:
		return hold(r, HELD_HOME, MX_EV_HOME);
	}
}

/* The same from mosix.ko, which is given the last reply with the same system call. */
static int receive_parked(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct mosix_exchange *x = &in->exchange;
	long n = mx_interruptible(&in->stop, SYS_ioctl, r->listener, MOSIX_IOC_EXCHANGE, (long)x, 0);

	if (n == -EINTR)
		return take_stop(in) ? MX_EV_STOP : 0;
	if (n) {
		r->error = -n;
		return MX_EV_GONE;
	}
	/* Whoever gives the guest a signal has us stop first: that one waits need not be told. */
	if (x->request.kind != MOSIX_CALL)
		return 0;
	in->notif = mx_parked_notif(&x->request);
	return begin(r);
}

static int receive(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct pollfd hup = { r->listener, 0, 0 };
	long n;

	if (r->device)
		return receive_parked(r);
	memset(&in->notif, 0, sizeof(in->notif));
	n = mx_interruptible(&in->stop, SYS_ioctl, r->listener, SECCOMP_IOCTL_NOTIF_RECV, (long)&in->notif, 0);
	if (!n)
		return begin(r);
	if (n == -EINTR)
		return take_stop(in) ? MX_EV_STOP : 0;
	if (n == -ENOENT) {
		/* It vanished before it was taken, or nobody is left to notify. */
		if (poll(&hup, 1, 0) != 1 || !(hup.revents & POLLHUP))
			return 0;
	}
	r->error = -n;
	return MX_EV_GONE;
}

static int serve(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int event;

	if (in->state == HELD) {
		if (in->held != HELD_SLEEPING)
			return MX_EV_MISUSE;
		in->state = WAITING;
	}
	in->serving = 1;
	do {
		if (in->state == CALLING)
			event = call_agent(r);
		else if (in->state == WAITING)
			event = sleep_on(r);
		else
			event = receive(r);
	} while (!event);
	in->serving = 0;
	send_reply(r);
	return event;
}

int mx_redirect_run(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	sigset_t signals;
	int event;

	sigemptyset(&signals);
	sigaddset(&signals, MX_WAKE_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
	in->tid = gettid();
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	event = serve(r);
	in->tid = 0;
	return event;
}

/* ---- life ---- */

static int is_sound(const struct mx_table *table, size_t size)
{
	int i;

	if (size < sizeof(*table) || table->magic != MX_TABLE_MAGIC || table->version != MX_ABI_VERSION)
		return 0;
	if (size != sizeof(*table) + table->n_descriptors * sizeof(struct mx_descriptor) +
			    table->n_tests * sizeof(struct mx_test))
		return 0;
	for (i = 0; i < MX_TABLE_CALLS; i++)
		if (table->calls[i].first + table->calls[i].count > table->n_descriptors)
			return 0;
	return 1;
}

struct mx_redirect *mx_redirect_new(int listener, int call_fd, int pid, int home_pid, const void *table, size_t size)
{
	struct mx_redirect *r;
	struct internal *in;
	struct mx_table *copy;
	int on = 1;

	if (!is_sound(table, size)) {
		errno = EINVAL;
		return NULL;
	}
	r = calloc(1, sizeof(*r));
	in = calloc(1, sizeof(*in));
	copy = malloc(size);
	if (r)
		r->counters = calloc(MX_TABLE_CALLS, sizeof(*r->counters));
	if (!r || !in || !copy || !r->counters || install_wake()) {
		if (r)
			free(r->counters);
		free(r);
		free(in);
		free(copy);
		return NULL;
	}
	memcpy(copy, table, size);
	in->table = copy;
	in->descriptors = (const struct mx_descriptor *)(copy + 1);
	in->tests = (const struct mx_test *)(in->descriptors + copy->n_descriptors);
	in->n_tests = copy->n_tests;
	pthread_mutex_init(&in->renewal, NULL);
	in->new_fd = -1;
	r->internal = in;
	r->listener = listener;
	r->call_fd = call_fd;
	r->pid = pid;
	r->home_pid = home_pid;
	r->nr = -1;
	/* The flags are the argument itself, not behind a pointer. */
	r->synchronous = !ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
	setsockopt(call_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return r;
}

void mx_redirect_free(struct mx_redirect *r)
{
	struct internal *in;

	if (!r)
		return;
	in = r->internal;
	if (in->new_fd >= 0)
		close(in->new_fd);
	pthread_mutex_destroy(&in->renewal);
	free((void *)in->table);
	free(in->buffer);
	free(in->reply);
	free(in);
	free(r->counters);
	free(r);
}
