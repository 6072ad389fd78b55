// SPDX-License-Identifier: GPL-2.0
#include "tracee.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define PEEK_BATCH 32

struct rseq_configuration {
	uint64_t pointer;
	uint32_t size;
	uint32_t signature;
	uint32_t flags;
	uint32_t pad;
};

struct peek_args {
	uint64_t off;
	uint32_t flags;
	int32_t nr;
};

long mx_ptrace(int request, int pid, unsigned long addr, unsigned long data)
{
	long result = ptrace(request, pid, addr, data);

	return result < 0 ? -errno : result;
}

/*
 * waitpid would clear the code with which a signal-delivery stop goes on: if the
 * tracer then died, the signal would be lost.  A death must be taken, or the
 * real parent never hears of it.
 */
int mx_wait(int pid, int block, int *code, int *status)
{
	siginfo_t info;
	int flags = WSTOPPED | WEXITED | WNOWAIT | __WALL | (block ? 0 : WNOHANG);

	info.si_pid = 0;
	if (waitid(P_PID, pid, &info, flags))
		return -errno;
	if (!info.si_pid)
		return 0;
	*code = info.si_code;
	*status = info.si_status;
	if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED)
		waitid(P_PID, pid, &info, WEXITED | WNOHANG | __WALL);
	return 1;
}

int mx_get_regs(int pid, void *user_regs)
{
	return ptrace(PTRACE_GETREGS, pid, 0, user_regs) ? -errno : 0;
}

int mx_set_regs(int pid, const void *user_regs)
{
	return ptrace(PTRACE_SETREGS, pid, 0, user_regs) ? -errno : 0;
}

long mx_get_regset(int pid, int type, void *buf, size_t size)
{
	struct iovec iov = { .iov_base = buf, .iov_len = size };

	if (ptrace(PTRACE_GETREGSET, pid, (unsigned long)type, &iov))
		return -errno;
	return (long)iov.iov_len;
}

long mx_set_regset(int pid, int type, const void *buf, size_t size)
{
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };

	if (ptrace(PTRACE_SETREGSET, pid, (unsigned long)type, &iov))
		return -errno;
	return (long)iov.iov_len;
}

int mx_get_sigmask(int pid, uint64_t *mask)
{
	return ptrace(PTRACE_GETSIGMASK, pid, sizeof(*mask), mask) ? -errno : 0;
}

int mx_set_sigmask(int pid, uint64_t mask)
{
	return ptrace(PTRACE_SETSIGMASK, pid, sizeof(mask), &mask) ? -errno : 0;
}

int mx_get_siginfo(int pid, void *siginfo)
{
	return ptrace(PTRACE_GETSIGINFO, pid, 0, siginfo) ? -errno : 0;
}

long mx_peek_siginfo(int pid, int shared, void *buf, unsigned int max)
{
	unsigned int done = 0;

	while (done < max) {
		struct peek_args args = {
			.off = done,
			.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
			.nr = max - done < PEEK_BATCH ? (int)(max - done) : PEEK_BATCH,
		};
		long got = ptrace(PTRACE_PEEKSIGINFO, pid, &args, (char *)buf + done * sizeof(siginfo_t));

		if (got < 0)
			return -errno;
		if (!got)
			break;
		done += (unsigned int)got;
	}
	return done;
}

int mx_get_rseq(int pid, uint64_t *address, uint32_t *size, uint32_t *signature)
{
	struct rseq_configuration rc;

	memset(&rc, 0, sizeof(rc));
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, pid, sizeof(rc), &rc) < 0)
		return errno == EIO || errno == EINVAL ? 0 : -errno;
	*address = rc.pointer;
	*size = rc.size;
	*signature = rc.signature;
	return rc.pointer != 0;
}

static long transfer(int pid, uint64_t addr, void *buf, size_t size, int write)
{
	size_t done = 0;

	while (done < size) {
		size_t piece = size - done < (64u << 20) ? size - done : (64u << 20);
		struct iovec local = { (char *)buf + done, piece };
		struct iovec remote = { (void *)(addr + done), piece };
		ssize_t n = write ? process_vm_writev(pid, &local, 1, &remote, 1, 0)
				  : process_vm_readv(pid, &local, 1, &remote, 1, 0);

		if (n < 0) {
			if (errno == EFAULT)
				break;
			return -errno;
		}
		if (!n)
			break;
		done += (size_t)n;
	}
	return (long)done;
}

long mx_read(int pid, uint64_t addr, void *buf, size_t size)
{
	return transfer(pid, addr, buf, size, 0);
}

long mx_write(int pid, uint64_t addr, const void *buf, size_t size)
{
	return transfer(pid, addr, (void *)buf, size, 1);
}

int mx_poke(int pid, int mem_fd, uint64_t addr, const void *buf, size_t size)
{
	const char *from = buf;

	while (mem_fd >= 0 && size) {
		ssize_t n = pwrite(mem_fd, from, size, (off_t)addr);

		if (n <= 0)
			return n ? -errno : -EIO;
		from += n;
		addr += (uint64_t)n;
		size -= (size_t)n;
	}
	while (size) {
		uint64_t word_addr = addr & ~7UL;
		size_t skip = addr - word_addr;
		size_t part = 8 - skip < size ? 8 - skip : size;
		long word = 0;

		if (part < 8) {
			errno = 0;
			word = ptrace(PTRACE_PEEKDATA, pid, word_addr, 0);
			if (word == -1 && errno)
				return -errno;
		}
		memcpy((char *)&word + skip, from, part);
		if (ptrace(PTRACE_POKEDATA, pid, word_addr, word))
			return -errno;
		from += part;
		addr += part;
		size -= part;
	}
	return 0;
}
