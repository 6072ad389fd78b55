// SPDX-License-Identifier: GPL-2.0
#include "inject.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "tracee.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif

/*
 * One slot: code, 16 bytes of data for a reissued call, marker, one more word (the
 * saved mask, or the number of the program's own call).  A marker that is not 0 means
 * that the stub may still be executed or returned into.
 */
#define SLOT 192
#define DATA_AT 160
#define MARK_AT 176
#define WORD_AT 184
#define MARK_INJECTED 0x784d6f7369784901ULL
#define MARK_REISSUE 0x784d6f7369785202ULL
/* offsets of the immediates of a reissue stub, fixed by build_reissue */
#define REISSUE_ADD 26
#define REISSUE_REGS 30
#define MAX_RETRIES 1000
#define STACK_SCAN_MAX (8u << 20)

struct code {
	uint8_t bytes[SLOT];
	unsigned int used;
};

static void emit(struct code *c, const void *bytes, unsigned int n)
{
	memcpy(c->bytes + c->used, bytes, n);
	c->used += n;
}

#define EMIT(c, ...)                                  \
	do {                                          \
		const uint8_t b_[] = { __VA_ARGS__ }; \
		emit((c), b_, sizeof(b_));            \
	} while (0)

static void emit_movabs(struct code *c, uint8_t rex, uint8_t op, uint64_t value)
{
	EMIT(c, rex, op);
	emit(c, &value, 8);
}

static void emit_jump(struct code *c, uint64_t target)
{
	EMIT(c, 0xff, 0x25, 0, 0, 0, 0); /* jmp *0(%rip) */
	emit(c, &target, 8);
}

static void set_word(struct code *c, unsigned int at, uint64_t value)
{
	memcpy(c->bytes + at, &value, 8);
}

/* syscall; rt_sigprocmask(SIG_SETMASK, &saved, NULL, 8); nine registers; jump back */
static void build_injection(struct code *c, uint64_t base, const struct user_regs_struct *r, uint64_t mask)
{
	memset(c, 0, sizeof(*c));
	EMIT(c, 0x0f, 0x05);
	EMIT(c, 0xb8, SYS_rt_sigprocmask, 0, 0, 0);
	EMIT(c, 0xbf, SIG_SETMASK, 0, 0, 0);
	emit_movabs(c, 0x48, 0xbe, base + WORD_AT);
	EMIT(c, 0xba, 0, 0, 0, 0);
	EMIT(c, 0x41, 0xba, 8, 0, 0, 0);
	EMIT(c, 0x0f, 0x05);
	emit_movabs(c, 0x48, 0xb8, r->rax);
	emit_movabs(c, 0x48, 0xb9, r->rcx);
	emit_movabs(c, 0x49, 0xbb, r->r11);
	emit_movabs(c, 0x48, 0xbf, r->rdi);
	emit_movabs(c, 0x48, 0xbe, r->rsi);
	emit_movabs(c, 0x48, 0xba, r->rdx);
	emit_movabs(c, 0x49, 0xba, r->r10);
	emit_movabs(c, 0x49, 0xb8, r->r8);
	emit_movabs(c, 0x49, 0xb9, r->r9);
	emit_jump(c, r->rip);
	set_word(c, MARK_AT, MARK_INJECTED);
	set_word(c, WORD_AT, mask);
}

/*
 * A system call keeps the flags, so the result is corrected without touching them:
 * the upper half of rax is 0 for a count and all ones for an error.
 */
static void build_reissue(struct code *c, const struct user_regs_struct *r, uint64_t add, const void *data)
{
	uint32_t add32 = (uint32_t)add;

	memset(c, 0, sizeof(*c));
	EMIT(c, 0x0f, 0x05);	   /*  0 syscall */
	EMIT(c, 0x48, 0x89, 0xc1); /*  2 mov %rax,%rcx */
	EMIT(c, 0x48, 0x0f, 0xc9); /*  5 bswap %rcx */
	EMIT(c, 0x89, 0xc9);	   /*  8 mov %ecx,%ecx */
	EMIT(c, 0xe3, 11);	   /* 10 jrcxz 23 */
	if (add) {
		EMIT(c, 0xb8); /* 12 mov $add,%eax */
		emit(c, &add32, 4);
	} else {
		EMIT(c, 0x0f, 0x1f, 0x44, 0x00, 0x00); /* 12 nop */
	}
	EMIT(c, 0xeb, 11);		    /* 17 jmp 30 */
	EMIT(c, 0x0f, 0x1f, 0x40, 0x00);    /* 19 nop */
	EMIT(c, 0x48, 0x8d, 0x80);	    /* 23 lea add(%rax),%rax */
	emit(c, &add32, 4);		    /* 26 */
	emit_movabs(c, 0x48, 0xbf, r->rdi); /* 30 */
	emit_movabs(c, 0x48, 0xbe, r->rsi);
	emit_movabs(c, 0x48, 0xba, r->rdx);
	emit_movabs(c, 0x49, 0xba, r->r10);
	emit_movabs(c, 0x49, 0xb8, r->r8);
	emit_movabs(c, 0x49, 0xb9, r->r9);
	emit_movabs(c, 0x48, 0xb9, r->rip + 2); /* as the syscall instruction leaves them */
	emit_movabs(c, 0x49, 0xbb, r->eflags);
	emit_jump(c, r->rip + 2);
	if (data)
		memcpy(c->bytes + DATA_AT, data, 16);
	set_word(c, MARK_AT, MARK_REISSUE);
	set_word(c, WORD_AT, r->rax);
}

static int peek(int pid, uint64_t addr, uint64_t *word)
{
	errno = 0;
	*word = (uint64_t)ptrace(PTRACE_PEEKDATA, pid, addr, 0);
	return errno ? -errno : 0;
}

static int put_code(int pid, uint64_t base, const struct code *c)
{
	return mx_poke(pid, -1, base, c->bytes, SLOT);
}

int mx_site_init(struct mx_site *site, int pid, uint64_t vdso, uint64_t end)
{
	Elf64_Ehdr eh;
	uint64_t used = sizeof(eh);
	size_t size = end - vdso;
	uint8_t *image;
	long got;

	memset(site, 0, sizeof(*site));
	if (size < sizeof(eh) || size > (1u << 20))
		return -EINVAL;
	image = malloc(size);
	if (!image)
		return -ENOMEM;
	got = mx_read(pid, vdso, image, size);
	if (got != (long)size) {
		free(image);
		return got < 0 ? (int)got : -EFAULT;
	}
	memcpy(&eh, image, sizeof(eh));
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) || eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != EM_X86_64) {
		free(image);
		return -ENOEXEC;
	}
	/* the file ends behind whatever reaches farthest: segments, sections, their tables */
	for (unsigned int i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;
		uint64_t at = eh.e_phoff + i * sizeof(ph);

		if (at + sizeof(ph) > size)
			break;
		memcpy(&ph, image + at, sizeof(ph));
		if (ph.p_offset + ph.p_filesz > used)
			used = ph.p_offset + ph.p_filesz;
		if (at + sizeof(ph) > used)
			used = at + sizeof(ph);
	}
	for (unsigned int i = 0; i < eh.e_shnum; i++) {
		Elf64_Shdr sh;
		uint64_t at = eh.e_shoff + i * sizeof(sh);

		if (at + sizeof(sh) > size)
			break;
		memcpy(&sh, image + at, sizeof(sh));
		if (sh.sh_type != SHT_NOBITS && sh.sh_offset + sh.sh_size > used)
			used = sh.sh_offset + sh.sh_size;
		if (at + sizeof(sh) > used)
			used = at + sizeof(sh);
	}
	free(image);
	site->vdso = vdso;
	site->end = end;
	site->tail = vdso + ((used + 63) & ~63UL);
	return site->tail + SLOT <= end ? 0 : -ENOSPC;
}

int mx_site_valid(const struct mx_site *site, int pid)
{
	uint64_t word, mark;

	if (!site->vdso || peek(pid, site->vdso, &word) || (uint32_t)word != 0x464c457fu)
		return 0;
	if (peek(pid, site->tail + MARK_AT, &mark))
		return 0;
	return !mark || mark == MARK_INJECTED || mark == MARK_REISSUE;
}

static uint64_t slot_of(const struct mx_site *site, uint64_t rip)
{
	uint64_t base;

	if (rip < site->tail || rip >= site->end)
		return 0;
	base = rip - (rip - site->tail) % SLOT;
	return base + SLOT <= site->end ? base : 0;
}

int mx_in_stub(const struct mx_site *site, int pid, const void *regs, struct mx_reissue *out)
{
	const struct user_regs_struct *r = regs;
	uint64_t base = slot_of(site, r->rip);
	uint8_t slot[SLOT];
	uint64_t mark;
	uint32_t add;

	if (!base || mx_read(pid, base, slot, SLOT) != SLOT)
		return 0;
	memcpy(&mark, slot + MARK_AT, 8);
	if (mark == MARK_INJECTED)
		return 1;
	if (mark != MARK_REISSUE)
		return 0;
	memset(out, 0, sizeof(*out));
	memcpy(&out->nr, slot + WORD_AT, 8);
	for (int i = 0; i < 6; i++)
		memcpy(&out->args[i], slot + REISSUE_REGS + 10 * i + 2, 8);
	memcpy(&add, slot + REISSUE_ADD, 4);
	out->add = add;
	memcpy(&out->rip, slot + REISSUE_REGS + 10 * 6 + 2, 8);
	out->offset = r->rip - base;
	return 2;
}

/* ---- finding a free slot ---- */

/* Is there an address inside the slot among the words of the stack above rsp? */
static int on_stack(int pid, uint64_t base, uint64_t rsp)
{
	static const size_t piece = 1 << 16;
	uint64_t *words = malloc(piece);
	uint64_t at = (rsp - 128) & ~7UL;
	size_t scanned = 0;
	int found = !words;

	while (!found && scanned < STACK_SCAN_MAX) {
		long got = mx_read(pid, at + scanned, words, piece);

		for (long i = 0; i < got / 8 && !found; i++)
			found = words[i] >= base && words[i] < base + SLOT;
		if (got < (long)piece)
			break;
		scanned += piece;
	}
	free(words);
	return found;
}

/*
 * The first slot that nobody can still be in.  Marked slots were left by a dead tracer,
 * or hold a reissue stub: done with unless the process stands in them or a signal
 * handler on its stack will return into them.
 */
static uint64_t free_slot(const struct mx_site *site, int pid, const struct user_regs_struct *r)
{
	uint64_t base, mark;

	for (base = site->tail; base + SLOT <= site->end; base += SLOT)
		if (!peek(pid, base + MARK_AT, &mark) && !mark)
			return base;
	for (base = site->tail; base + SLOT <= site->end; base += SLOT)
		if (slot_of(site, r->rip) != base && !on_stack(pid, base, r->rsp))
			return base;
	return 0;
}

int mx_stub_on_stack(const struct mx_site *site, int pid, const void *regs)
{
	const struct user_regs_struct *r = regs;
	uint64_t base, mark;
	int found = 0;

	for (base = site->tail; base + SLOT <= site->end; base += SLOT) {
		if (slot_of(site, r->rip) == base || peek(pid, base + MARK_AT, &mark) || !mark)
			continue;
		if (on_stack(pid, base, r->rsp))
			found = 1;
		else if (ptrace(PTRACE_POKEDATA, pid, base + MARK_AT, 0))
			return -errno;
	}
	return found;
}

/* ---- stops ---- */

enum { AT_EVENT_STOP, AT_SYSCALL, AT_OTHER_EVENT };

/*
 * Waits for the next stop that is not a signal's; signals are passed on.  Only SIGSTOP
 * can come while the mask blocks all.  Any trap clears a pending interrupt, so that a
 * caller who waits for one asks again (`interrupt`).
 */
static int next_stop(int pid, int interrupt, int *status)
{
	for (;;) {
		siginfo_t info;
		int sig, event;

		info.si_pid = 0;
		if (waitid(P_PID, pid, &info, WSTOPPED | WEXITED | WNOWAIT | __WALL)) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED)
			return -ESRCH;
		*status = info.si_status;
		sig = info.si_status & 0xff;
		event = info.si_status >> 8;
		if (event == PTRACE_EVENT_STOP)
			return AT_EVENT_STOP;
		if (event)
			return AT_OTHER_EVENT;
		if (sig == (SIGTRAP | 0x80))
			return AT_SYSCALL;
		if (interrupt)
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
		if (ptrace(PTRACE_CONT, pid, 0, sig) && errno != ESRCH)
			return -errno;
	}
}

/* From any stop but a signal's to a PTRACE_EVENT_STOP, the program not advancing. */
static int settle(int pid, int *status)
{
	siginfo_t info;
	int where;

	if (ptrace(PTRACE_GETSIGINFO, pid, 0, &info))
		return -errno;
	if (info.si_code >> 8 == PTRACE_EVENT_STOP) {
		*status = info.si_code;
		return 0;
	}
	if (info.si_code >> 8 == PTRACE_EVENT_EXIT)
		return -ESRCH;
	/* si_code > 0 with an event or syscall stop is the stop's own code */
	if (!(info.si_signo == SIGTRAP &&
	      (info.si_code == (SIGTRAP | 0x80) || (info.si_code >> 8 > 0 && (info.si_code & 0xff) == SIGTRAP))))
		return -EBUSY;
	/* rax is still overwritten at PTRACE_EVENT_EXEC: go on to the end of the call */
	do {
		if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || ptrace(PTRACE_CONT, pid, 0, 0))
			return -errno;
		where = next_stop(pid, 1, status);
		if (where < 0)
			return where;
	} while (where != AT_EVENT_STOP);
	return 0;
}

/* Lets the stub of a dead tracer finish. */
static int leave_stub(const struct mx_site *site, int pid, struct user_regs_struct *r, int *status)
{
	struct mx_reissue ignored;

	for (int tries = 0; mx_in_stub(site, pid, r, &ignored) == 1; tries++) {
		int where;

		if (tries > MAX_RETRIES)
			return -ETIMEDOUT;
		if (ptrace(PTRACE_CONT, pid, 0, 0))
			return -errno;
		if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) && errno != ESRCH)
			return -errno;
		while ((where = next_stop(pid, 1, status)) != AT_EVENT_STOP) {
			if (where < 0)
				return where;
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
			ptrace(PTRACE_CONT, pid, 0, 0);
		}
		if (ptrace(PTRACE_GETREGS, pid, 0, r))
			return -errno;
	}
	return 0;
}

/*
 * The context as user code would see it, for the case that the tracer dies: restart
 * codes resolved as the kernel would without a signal, and out of an rseq section
 * (whose descriptor the kernel forgets when the stub returns).  1: rseq moved it.
 */
static int user_context(int pid, struct user_regs_struct *r)
{
	uint64_t rseq, cs, start, length, abort_ip;
	uint32_t size, signature;

	if ((int64_t)r->orig_rax >= 0) {
		switch ((int64_t)r->rax) {
		case -512:
		case -513:
		case -514:
			r->rax = r->orig_rax;
			r->rip -= 2;
			break;
		case -516:
			r->rax = SYS_restart_syscall;
			r->rip -= 2;
			break;
		}
	}
	r->orig_rax = (uint64_t)-1;
	if (mx_get_rseq(pid, &rseq, &size, &signature) != 1)
		return 0;
	if (peek(pid, rseq + 8, &cs) || !cs || peek(pid, cs + 8, &start) || peek(pid, cs + 16, &length) ||
	    peek(pid, cs + 24, &abort_ip))
		return 0;
	if (r->rip - start >= length)
		return 0;
	r->rip = abort_ip;
	return 1;
}

static int is_restart(int64_t result)
{
	return result == -512 || result == -513 || result == -514 || result == -516;
}

/* One call from the stub: to its entry stop, to its exit stop; the result. */
static int one_call(int pid, struct user_regs_struct *g, struct mx_injected *call, uint64_t base)
{
	int status, where;

	for (int tries = 0;; tries++) {
		g->rip = base;
		g->orig_rax = (uint64_t)-1;
		g->rax = call->nr;
		g->rdi = call->args[0];
		g->rsi = call->args[1];
		g->rdx = call->args[2];
		g->r10 = call->args[3];
		g->r8 = call->args[4];
		g->r9 = call->args[5];
		if (ptrace(PTRACE_SETREGS, pid, 0, g))
			return -errno;
		if (!tries) {
			uint64_t all = ~0UL;

			/* only now: until the stub is in place nothing would restore it */
			if (ptrace(PTRACE_SETSIGMASK, pid, sizeof(all), &all))
				return -errno;
		}
		for (int stops = 0; stops < 2;) {
			if (ptrace(PTRACE_SYSCALL, pid, 0, 0))
				return -errno;
			where = next_stop(pid, 0, &status);
			if (where < 0)
				return where;
			if (where == AT_SYSCALL)
				stops++;
		}
		if (ptrace(PTRACE_GETREGS, pid, 0, g))
			return -errno;
		call->result = (int64_t)g->rax;
		if (!is_restart(call->result))
			return 0;
		if (tries > MAX_RETRIES)
			return -ETIMEDOUT;
	}
}

int mx_inject(const struct mx_site *site, int pid, struct mx_injected *calls, int count, int *status)
{
	struct user_regs_struct raw, cured, g;
	struct code code;
	uint64_t mask, base;
	int moved, where, error, ret = 0;

	ret = settle(pid, status);
	if (ret)
		return ret;
	if (ptrace(PTRACE_GETREGS, pid, 0, &raw))
		return -errno;
	if (raw.cs != 0x33)
		return -ENOEXEC;
	ret = leave_stub(site, pid, &raw, status);
	if (ret)
		return ret;
	base = free_slot(site, pid, &raw);
	if (!base)
		return -ENOSPC;
	if (ptrace(PTRACE_GETSIGMASK, pid, sizeof(mask), &mask))
		return -errno;
	cured = raw;
	moved = user_context(pid, &cured);
	build_injection(&code, base, &cured, mask);
	ret = put_code(pid, base, &code);
	if (ret)
		return ret;
	/* ends the temporary mask of sigsuspend, ppoll and the like: the call is made again */
	if (ptrace(PTRACE_SETSIGMASK, pid, sizeof(mask), &mask))
		return -errno;
	g = cured;
	for (int i = 0; i < count && !ret; i++)
		ret = one_call(pid, &g, &calls[i], base);
	if (ret == -ESRCH)
		return ret;
	/* only from an event stop does the kernel itself decide between restart and EINTR;
	 * a restart code put into rax elsewhere leaks to the program */
	do {
		if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || ptrace(PTRACE_CONT, pid, 0, 0))
			return -errno;
		where = next_stop(pid, 1, status);
		if (where < 0)
			return where;
	} while (where != AT_EVENT_STOP);
	/* mask first: dead in between, the stub still restores the registers */
	if (ptrace(PTRACE_SETSIGMASK, pid, sizeof(mask), &mask))
		return -errno;
	if (ptrace(PTRACE_SETREGS, pid, 0, moved ? &cured : &raw))
		return -errno;
	error = ptrace(PTRACE_POKEDATA, pid, base + MARK_AT, 0) ? -errno : 0;
	return ret ? ret : error;
}

int mx_finish_call(const struct mx_site *site, int pid, const void *regs, uint64_t nr, const uint64_t *args,
		   uint64_t add, const void *data, int data_arg)
{
	struct user_regs_struct g = *(const struct user_regs_struct *)regs;
	struct user_regs_struct now;
	struct code code;
	uint64_t base;
	uint64_t a[6];
	int ret;

	if (add > 0x7fffffff || data_arg > 5 || (data && data_arg < 0))
		return -EINVAL;
	if (ptrace(PTRACE_GETREGS, pid, 0, &now))
		return -errno;
	base = free_slot(site, pid, &now);
	if (!base)
		return -ENOSPC;
	build_reissue(&code, &g, add, data);
	ret = put_code(pid, base, &code);
	if (ret)
		return ret;
	memcpy(a, args, sizeof(a));
	if (data)
		a[data_arg] = base + DATA_AT;
	g.rip = base;
	g.orig_rax = (uint64_t)-1;
	g.rax = nr;
	g.rdi = a[0];
	g.rsi = a[1];
	g.rdx = a[2];
	g.r10 = a[3];
	g.r8 = a[4];
	g.r9 = a[5];
	return ptrace(PTRACE_SETREGS, pid, 0, &g) ? -errno : 0;
}

int mx_cure_prepare(const struct mx_site *site, int pid, uint64_t *stub, void *user_regs)
{
	struct user_regs_struct raw, cured;
	struct code code;
	uint64_t mask, base;
	int moved;

	if (ptrace(PTRACE_GETREGS, pid, 0, &raw) || ptrace(PTRACE_GETSIGMASK, pid, sizeof(mask), &mask))
		return -errno;
	base = free_slot(site, pid, &raw);
	if (!base)
		return -ENOSPC;
	cured = raw;
	moved = user_context(pid, &cured);
	build_injection(&code, base, &cured, mask);
	memcpy(user_regs, moved ? &cured : &raw, sizeof(raw));
	*stub = base;
	return put_code(pid, base, &code);
}

int mx_cure_forget(int pid, uint64_t stub)
{
	return ptrace(PTRACE_POKEDATA, pid, stub + MARK_AT, 0) ? -errno : 0;
}
