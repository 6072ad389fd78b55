// SPDX-License-Identifier: GPL-2.0
/*
 * mosix-guest: makes the confined empty process that a body moves into, and
 * opens its /proc files.  Started by mosix.remote.confine as the reserved uid R
 * without any capability; it must never keep a descriptor, a path or a right
 * that the guest could use.
 *
 *   mosix-guest create FD HOME_PID UID GID COMM
 *   mosix-guest open FD PID NAME...
 *
 * FD is a SOCK_SEQPACKET socket; each message is a letter and a text:
 *   create: "U"    namespaces unshared, waiting for the id maps
 *           < "M"  maps written; the rest is for /proc/self/timens_offsets
 *           "S"    from the stub (PID 1): SO_PASSCRED tells its outer PID
 *           "G"    from the guest, which then closes FD: end of file follows
 *   open:   "F"    with one descriptor (SCM_RIGHTS) per NAME
 *   both:   "E<errno> <what>" and the end
 *
 * There is no libc: a libc would register rseq, a robust list and TLS, which
 * the restore would have to undo, and map more than these few pages.  Linked
 * low (see the Makefile) with address randomisation off, so that the guest's
 * own mappings stay out of the way of the image's.
 */
#include <stddef.h>
#include <stdint.h>

#include <asm/signal.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <linux/socket.h>
#include <linux/types.h>
#include <linux/uio.h>
#include <asm/unistd.h>

/* Only in libc's headers. */
#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define MSG_NOSIGNAL 0x4000
#define MNT_DETACH 2
#define ADDR_NO_RANDOMIZE 0x0040000
#define KERNEL_SIGNALS 64

struct msghdr {
	void *name;
	uint64_t name_size;
	struct iovec *parts;
	uint64_t n_parts;
	void *control;
	uint64_t control_size;
	uint64_t flags;
};

struct descriptor_control {
	uint64_t size;
	int32_t level;
	int32_t type;
	int32_t fd;
	int32_t pad;
};

static int channel;

static long call6(long nr, long a, long b, long c, long d, long e, long f)
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

#define CALL_(nr, a, b, c, d, e, f, ...) call6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) CALL_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static uint64_t number(const char *text)
{
	uint64_t n = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		n = n * 10 + (uint64_t)(*text - '0');
	return n;
}

/* Both return where the text ends; the caller's buffer is large enough. */
static char *put(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	*to = 0;
	return to;
}

static char *put_number(char *to, uint64_t n)
{
	char digits[24];
	int i = 0;

	do
		digits[i++] = (char)('0' + n % 10);
	while (n /= 10);
	while (i)
		*to++ = digits[--i];
	*to = 0;
	return to;
}

static _Noreturn void end(int status)
{
	for (;;)
		CALL(__NR_exit_group, status);
}

static long tell(const char *text)
{
	return CALL(__NR_sendto, channel, text, length(text), MSG_NOSIGNAL);
}

static _Noreturn void fail(const char *what, long result)
{
	char text[256];
	char *at = put(text, "E");

	at = put_number(at, (uint64_t)-result);
	at = put(at, " ");
	put(at, what);
	tell(text);
	end(1);
}

static void must(const char *what, long result)
{
	if (result < 0)
		fail(what, result);
}

static void write_file(const char *path, const char *text)
{
	long fd = CALL(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);

	must(path, fd);
	must(path, CALL(__NR_write, fd, text, length(text)));
	CALL(__NR_close, fd);
}

static void set_capabilities(uint64_t set)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {
		{ (uint32_t)set, (uint32_t)set, 0 },
		{ (uint32_t)(set >> 32), (uint32_t)(set >> 32), 0 },
	};

	must("capset", CALL(__NR_capset, &header, data));
}

static void default_signals(void)
{
	/* struct sigaction of the kernel: handler, flags, restorer, mask. */
	uint64_t action[4] = { 0, 0, 0, 0 };
	uint64_t none = 0;

	for (int sig = 1; sig <= KERNEL_SIGNALS; sig++)
		if (sig != SIGKILL && sig != SIGSTOP)
			CALL(__NR_rt_sigaction, sig, action, NULL, sizeof(none));
	CALL(__NR_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof(none));
}

/* ---- the guest: HOME_PID, the job's uid, nothing else ---- */

static _Noreturn void guest(uint64_t home_pid, const char *comm)
{
	struct rlimit64 core;

	if ((uint64_t)CALL(__NR_getpid) != home_pid)
		fail("the kernel gave another PID than the home PID", -EAGAIN);
	set_capabilities(0);
	/* A soft limit of 1 also keeps core_pattern's pipe handler away
	 * (fs/coredump.c); a core belongs to home. */
	must("prlimit64", CALL(__NR_prlimit64, 0, RLIMIT_CORE, NULL, &core));
	core.rlim_cur = core.rlim_max ? 1 : 0;
	must("prlimit64", CALL(__NR_prlimit64, 0, RLIMIT_CORE, &core, NULL));
	must("PR_SET_NAME", CALL(__NR_prctl, PR_SET_NAME, comm));
	if (tell("G") < 0)
		end(1);
	CALL(__NR_close, channel);
	for (;;)
		CALL(__NR_pause);
}

/* ---- the stub: PID 1 of the guest's namespace ---- */

/* The guest as a child with the PID `home_pid`; 0 in the child. */
static long fork_as(uint64_t home_pid, long last_pid_fd)
{
	int32_t wanted = (int32_t)home_pid;
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (uint64_t)&wanted,
		.set_tid_size = 1,
	};
	char text[24];
	long result = CALL(__NR_clone3, &args, sizeof(args));

	if (result != -ENOSYS && result != -EPERM)
		return result;
	/* No set_tid (some containers filter clone3): nobody else forks in
	 * this namespace, so the number after the last one is ours. */
	if (last_pid_fd < 0)
		return result;
	put_number(text, home_pid - 1);
	if (CALL(__NR_write, last_pid_fd, text, length(text)) < 0)
		return result;
	return CALL(__NR_clone, SIGCHLD, 0);
}

static _Noreturn void stub(uint64_t home_pid, const char *comm, long last_pid_fd)
{
	long result;

	CALL(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	/* A remote that died before that line has closed its end: its
	 * descriptors go before its children are told. */
	if (tell("S") < 0)
		end(1);
	CALL(__NR_prctl, PR_SET_NAME, "mosix-stub");
	CALL(__NR_setsid); /* no terminal, no process group of the node */
	for (int cap = 0; CALL(__NR_prctl, PR_CAPBSET_DROP, cap) == 0; cap++)
		;
	must("PR_SET_SECUREBITS", CALL(__NR_prctl, PR_SET_SECUREBITS,
				       SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
					       SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
	must("PR_SET_NO_NEW_PRIVS", CALL(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	set_capabilities(1ull << CAP_CHECKPOINT_RESTORE);
	result = fork_as(home_pid, last_pid_fd);
	if (result == 0) {
		if (last_pid_fd >= 0)
			CALL(__NR_close, last_pid_fd);
		guest(home_pid, comm);
	}
	must("clone3 with set_tid", result);
	CALL(__NR_close_range, 0, ~0u, 0);
	/* Until the last child is gone.  A traced one is not gone before its
	 * tracer has reaped it. */
	do
		result = CALL(__NR_wait4, -1, NULL, 0, NULL);
	while (result > 0 || result == -EINTR);
	end(0);
}

/* ---- the carrier: a child of the remote, ends when the stub exists ---- */

static void empty_root(void)
{
	/* /proc is the one directory that is surely there to mount upon. */
	must("mount private", CALL(__NR_mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	must("mount tmpfs", CALL(__NR_mount, "none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
				 "size=4k,nr_inodes=2,mode=555"));
	must("chdir", CALL(__NR_chdir, "/proc"));
	must("pivot_root", CALL(__NR_pivot_root, ".", "."));
	must("detach the old root", CALL(__NR_umount2, ".", MNT_DETACH));
	must("remount read-only", CALL(__NR_mount, NULL, "/", NULL,
				       MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

static _Noreturn void create(char **argv)
{
	uint64_t home_pid = number(argv[0]);
	uint64_t uid = number(argv[1]);
	uint64_t gid = number(argv[2]);
	const char *comm = argv[3];
	char order[200];
	long last_pid_fd;
	long n;

	default_signals();
	CALL(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	must("unshare", CALL(__NR_unshare, CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
						   CLONE_NEWUTS | CLONE_NEWTIME));
	if (tell("U") < 0)
		end(1);
	n = CALL(__NR_recvfrom, channel, order, sizeof(order) - 1, 0, NULL, NULL);
	if (n < 1 || order[0] != 'M')
		end(1);
	order[n] = 0;

	/* What needs /proc, while we are still R (which owns these files). */
	write_file("/proc/self/timens_offsets", order + 1);
	/* Whoever runs out of memory here, guests go before anybody of the node. */
	write_file("/proc/self/oom_score_adj", "1000");
	/* Counts in our new namespace: the guest cannot make another one, in
	 * which it would have capabilities. */
	write_file("/proc/sys/user/max_user_namespaces", "0");
	last_pid_fd = CALL(__NR_openat, AT_FDCWD, "/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	/* Only now: mosd has moved us into the guest's cgroup, the new root. */
	must("unshare the cgroup namespace", CALL(__NR_unshare, CLONE_NEWCGROUP));

	must("setgroups", CALL(__NR_setgroups, 0, NULL));
	must("setresgid", CALL(__NR_setresgid, gid, gid, gid));
	must("setresuid", CALL(__NR_setresuid, uid, uid, uid));
	/* The change of uid has cleared both.  Without dumpable the remote
	 * could not trace: our memory was made in the initial namespace. */
	CALL(__NR_prctl, PR_SET_DUMPABLE, 1);
	CALL(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	/* Whoever has a session keyring from its parent possesses its keys.
	 * Where keyctl is not allowed here, the guest may not either. */
	n = CALL(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	if (n < 0 && n != -ENOSYS && n != -EPERM)
		fail("session keyring", n);
	must("sethostname", CALL(__NR_sethostname, "guest", 5));
	must("setdomainname", CALL(__NR_setdomainname, "(none)", 6));
	empty_root();

	/* The stub is the remote's own child: the remote alone reaps it, so
	 * its number cannot be given away behind the remote's back. */
	n = CALL(__NR_clone, CLONE_PARENT | SIGCHLD, 0);
	if (n == 0)
		stub(home_pid, comm, last_pid_fd);
	must("clone of PID 1", n);
	end(0);
}

/* ---- open: for the remote, which owns the namespace but not the files ---- */

static void give(long fd)
{
	char letter = 'F';
	struct iovec part = { &letter, 1 };
	struct descriptor_control control = {
		.size = offsetof(struct descriptor_control, pad),
		.level = SOL_SOCKET,
		.type = SCM_RIGHTS,
		.fd = (int32_t)fd,
	};
	struct msghdr message = {
		.parts = &part,
		.n_parts = 1,
		.control = &control,
		.control_size = sizeof(control),
	};

	must("sendmsg", CALL(__NR_sendmsg, channel, &message, MSG_NOSIGNAL));
	CALL(__NR_close, fd);
}

static _Noreturn void open_files(char **argv)
{
	char path[128];
	char *name = put(path, "/proc/");
	long fd;

	name = put_number(name, number(argv[0]));
	name = put(name, "/");
	put(name, "ns/user");
	fd = CALL(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	must(path, fd);
	must("setns", CALL(__NR_setns, fd, CLONE_NEWUSER));
	for (argv++; *argv; argv++) {
		int flags = O_RDONLY;

		if (length(*argv) > 64)
			fail("file name", -ENAMETOOLONG);
		put(name, *argv);
		if (same(*argv, "mem"))
			flags = O_RDWR;
		else if (same(*argv, "clear_refs"))
			flags = O_WRONLY;
		fd = CALL(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC);
		must(path, fd);
		give(fd);
	}
	end(0);
}

_Noreturn __attribute__((used)) void start(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	char **envp = argv + argc + 1;
	long persona;

	if (argc < 3)
		end(2);
	channel = (int)number(argv[2]);
	if (channel)
		CALL(__NR_close_range, 0, channel - 1, 0);
	CALL(__NR_close_range, channel + 1, ~0u, 0);
	if (argc >= 5 && same(argv[1], "open"))
		open_files(argv + 3);
	if (argc != 7 || !same(argv[1], "create"))
		end(2);
	/* Takes effect at exec: only then are stack and vdso at the top. */
	persona = CALL(__NR_personality, 0xffffffff);
	if (!(persona & ADDR_NO_RANDOMIZE)) {
		must("personality", CALL(__NR_personality, persona | ADDR_NO_RANDOMIZE));
		must("exec of /proc/self/exe", CALL(__NR_execve, "/proc/self/exe", argv, envp));
	}
	create(argv + 3);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start\n");
