// SPDX-License-Identifier: GPL-2.0
/*
 * What the functions of the vdso of a guest do: a blob in the page before it, to
 * which mosix.native.vdso lets them jump, behind the guest's clock page (clock.h).
 * Monotonic clocks are the node's own, called by the addresses in the clock page;
 * dates are home's; everything else is a system call.
 *
 * A guest must be able to leave at any instruction, and the node's functions stay
 * behind.  So each function can be begun again: `guard` keeps on the stack all that
 * is needed for it, behind a return address by which it is found (struct mx_guarded).
 * What the guard does not call has changed no register of the caller when it makes
 * its system call, and nothing at all in memory.
 *
 * It must never write to memory of its own, or need a vector register or libc.
 */
#include <stddef.h>
#include <stdint.h>

#include "clock.h"

#define NS 1000000000ULL

struct timespec_ {
	int64_t seconds;
	int64_t ns;
};

extern struct mx_clock mx_clock_page;

/*
 * The header: offsets in the blob, for Python.  A function's own part is from its
 * entry to the next; behind the last one lie the parts that all share.
 *
 * On entry to guard: rax is what to call, r10 the number of the function.  It is
 * called with the stack aligned as a function expects.
 */
__asm__(".pushsection .header,\"a\"\n"
	".globl mx_header\n"
	"mx_header:\n"
	"	.quad 0x6f64767369786f6d\n"
	"	.long clock_gettime - mx_header\n"
	"	.long gettimeofday - mx_header\n"
	"	.long time - mx_header\n"
	"	.long clock_getres - mx_header\n"
	"	.long getcpu - mx_header\n"
	"	.long getrandom - mx_header\n"
	"	.long guard - mx_header\n"
	"	.long guarding - mx_header\n"
	"	.long guarded - mx_header\n"
	"	.long unguarded - mx_header\n"
	"	.long system_calls - mx_header\n"
	"	.long mx_blob_end - mx_header\n"
	"	.popsection\n"
	".pushsection .text.entries,\"ax\"\n"
	"clock_gettime:\n"
	"	xor %r10d, %r10d\n"
	"	cmp $31, %edi\n"
	"	ja 1f\n"
	"	mov mx_clock_page+4(%rip), %eax\n"
	"	bt %edi, %eax\n"
	"	mov mx_clock_page+32(%rip), %rax\n"
	"	jc guard\n"
	"	test $-6, %edi\n" /* CLOCK_REALTIME 0, CLOCK_REALTIME_COARSE 5 */
	"	jnz 1f\n"
	"	lea mx_date(%rip), %rax\n"
	"	jmp guard\n"
	"1:	mov $228, %eax\n"
	"	syscall\n"
	"	ret\n"
	"gettimeofday:\n"
	"	mov $1, %r10d\n"
	"	test %rsi, %rsi\n" /* the time zone is home's */
	"	jnz 1f\n"
	"	lea mx_gettimeofday(%rip), %rax\n"
	"	jmp guard\n"
	"1:	mov $96, %eax\n"
	"	syscall\n"
	"	ret\n"
	"time:\n"
	"	mov $2, %r10d\n"
	"	lea mx_time(%rip), %rax\n"
	"	jmp guard\n"
	"clock_getres:\n"
	"	mov $3, %r10d\n"
	"	mov mx_clock_page+40(%rip), %rax\n"
	"	jmp guard\n"
	"getcpu:\n"
	"	mov $4, %r10d\n"
	"	mov mx_clock_page+48(%rip), %rax\n"
	"	jmp guard\n"
	"getrandom:\n"
	/* vgetrandom(buffer, size, flags, state, state size): whoever asks for the size of a
	 * state, by a state size of -1, is told ENOSYS, as where the kernel cannot do it, and
	 * will not use the function; for all others it is getrandom(2), whose three arguments
	 * come first. */
	"	cmp $-1, %r8\n"
	"	je 1f\n"
	"	mov $318, %eax\n"
	"	syscall\n"
	"	ret\n"
	"1:	mov $-38, %rax\n"
	"	ret\n"
	"guard:\n"
	"	sub $72, %rsp\n"
	"guarding:\n"
	"	mov %r10, (%rsp)\n"
	"	mov %rdi, 8(%rsp)\n"
	"	mov %rsi, 16(%rsp)\n"
	"	mov %rbx, 24(%rsp)\n"
	"	mov %rbp, 32(%rsp)\n"
	"	mov %r12, 40(%rsp)\n"
	"	mov %r13, 48(%rsp)\n"
	"	mov %r14, 56(%rsp)\n"
	"	mov %r15, 64(%rsp)\n"
	"	call *%rax\n"
	"guarded:\n"
	"	add $72, %rsp\n"
	"unguarded:\n"
	"	ret\n"
	/* Called by the guard where the node's functions are not to be used. */
	"system_calls:\n"
	"	mov $228, %eax\n"
	"	syscall\n"
	"	ret\n"
	"	mov $229, %eax\n"
	"	syscall\n"
	"	ret\n"
	"	mov $309, %eax\n"
	"	syscall\n"
	"	ret\n"
	"	.popsection\n");
_Static_assert(offsetof(struct mx_clock, direct) == 4, "entries above");
_Static_assert(offsetof(struct mx_clock, clock_gettime) == 32, "entries above");
_Static_assert(offsetof(struct mx_clock, clock_getres) == 40, "entries above");
_Static_assert(offsetof(struct mx_clock, getcpu) == 48, "entries above");

static void read_clock(int clock, struct timespec_ *t)
{
	((long (*)(int, struct timespec_ *))mx_clock_page.clock_gettime)(clock, t);
}

static struct timespec_ now(void)
{
	struct timespec_ t;
	uint32_t sequence;
	uint64_t date;

	if (mx_clock_page.direct & 1) {
		read_clock(0, &t);
		return t;
	}
	do {
		sequence = mx_clock_begin(&mx_clock_page);
		read_clock(1, &t);
		date = mx_clock_at(&mx_clock_page, t.seconds * (int64_t)NS + t.ns);
	} while (mx_clock_changed(&mx_clock_page, sequence));
	t.seconds = date / NS;
	t.ns = date % NS;
	return t;
}

/* The coarse clock is the fine one: it never is behind what another function has told. */
__attribute__((used)) long mx_date(int clock, struct timespec_ *t)
{
	(void)clock;
	*t = now();
	return 0;
}

__attribute__((used)) long mx_gettimeofday(struct timespec_ *tv)
{
	struct timespec_ t = now();

	if (tv) {
		tv->seconds = t.seconds;
		tv->ns = t.ns / 1000;
	}
	return 0;
}

__attribute__((used)) long mx_time(int64_t *seconds)
{
	struct timespec_ t = now();

	if (seconds)
		*seconds = t.seconds;
	return t.seconds;
}
