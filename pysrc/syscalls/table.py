"""Every x86-64 system call up to Linux 6.18: where it runs and how its arguments reach memory.

From this table come the guest's seccomp filter (`filter`), the descriptors of the C marshaller
(`descriptors`), the reasons shown by mosps and the manual's list of calls. A call that is not
here never runs on a foreign node: it is notified and the body comes home. Numbers are those of
asm/unistd_64.h, constants those of the headers named beside them; nothing is taken from the
machine that builds, so that all nodes have the same table.

A row must be `HOME` only when a process with the ghost's descriptors, files, identity and
signals gives the right answer, and every byte that the kernel reads or writes is in its shapes.
"""

from __future__ import annotations

from mosix.syscalls.shapes import (
    HOME_PID,
    MASK32,
    MASK64,
    NO_ARG,
    Class,
    OnCancel,
    Row,
    Rule,
    Shape,
    Special,
    Test,
    Timeout,
    bits,
    fd,
    given,
    has,
    is_,
    is_not,
    length,
    null,
    open_path,
    path,
    reads,
    reads_n,
    string,
    updates,
    updates_n,
    value,
    writes,
    writes_length_at,
    writes_n,
    writes_result,
)

_LOCAL, _HOME, _BOTH, _WAIT, _AT_HOME, _HERE = Class
_RESTART, _PARTIAL, _REMAINING, _NEVER = OnCancel

# sizes of structs (bytes): asm/stat.h, linux/time.h, asm/statfs.h, linux/resource.h, …
_STAT, _STATFS, _STATX, _TIMESPEC, _TIMEVAL, _ITIMER = 144, 120, 256, 16, 16, 32
_RLIMIT, _RUSAGE, _SIGINFO, _SIGACTION, _SIGSET, _TIMEX = 16, 144, 128, 32, 8, 208
_FLOCK, _TERMIOS, _WINSIZE, _IFREQ = 32, 36, 8, 40
_XATTR_NAME = 256

#: What the body comes home for when the number or the entry (ia32, x32) is not in the table.
UNKNOWN = "a system call unknown to MOSIX"
#: A call has met EMFILE: some of the numbers are the agent's, whom the program must not feel.
DESCRIPTORS = "has no descriptor left"
#: The agent has no memory for the arguments; at home the program needs none.
MEMORY = "has no memory left for a large system call"
#: Memory that is not there or may not be written, a size that no table expects: which error wins,
#: and what is done before it, is the kernel's business.
ARGUMENTS = "made a call with wrong arguments"
PROC_REASON = "reads its own maps, status or memory in /proc"


def _local(nr: int, name: str, *rules: Rule, reason: str = "") -> Row:
    return Row(nr, name, _LOCAL, rules=rules, reason=reason or name)


def _home(
    nr: int,
    name: str,
    *args: Shape,
    cancel: OnCancel = _NEVER,
    rules: tuple[Rule, ...] = (),
    special: Special = Special.NONE,
    timeout: tuple[Timeout, int] = (Timeout.NONE, 0),
    cls: Class = _HOME,
) -> Row:
    return Row(
        nr,
        name,
        cls,
        args,
        cancel,
        rules,
        special=special,
        timeout=timeout[0],
        timeout_arg=timeout[1],
        reason=name,
    )


def _at_home(nr: int, name: str, reason: str = "") -> Row:
    return Row(nr, name, _AT_HOME, reason=reason or name)


def _by(
    nr: int,
    name: str,
    key_arg: int,
    variants: dict[tuple[int, ...], tuple[Shape, ...]],
    *,
    default: tuple[Shape, ...] = (),
    cancel: OnCancel = _NEVER,
    rules: tuple[Rule, ...] = (),
    special: Special = Special.NONE,
) -> Row:
    flat = {key: shapes for keys, shapes in variants.items() for key in keys}
    return Row(nr, name, _HOME, default, cancel, rules, flat, key_arg, special, reason=name)


def _go_home(*tests: Test, reason: str) -> Rule:
    return Rule(tests, _AT_HOME, reason)


def _when(cls: Class, *tests: Test) -> Rule:
    return Rule(tests, cls)


# ---- conditions used by more than one row ----

# linux/mman.h
_MAP_SHARED_BITS, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB = 0x03, 0x20, 0x2000, 0x40000
_MAP_PRIVATE = 0x02
_MMAP = (
    _go_home(has(3, _MAP_LOCKED | _MAP_HUGETLB), reason="locked or huge pages"),
    _when(_LOCAL, bits(3, _MAP_ANONYMOUS | _MAP_SHARED_BITS, _MAP_ANONYMOUS | _MAP_PRIVATE)),
    _go_home(has(3, _MAP_ANONYMOUS), reason="maps shared memory"),
)
# MREMAP_DONTUNMAP 4; an old size of 0 duplicates a shared mapping
_MREMAP = (
    _go_home(has(3, 4), reason="mremap"),
    _go_home(null(1), reason="maps shared memory"),
)
# clockids: CPU time of oneself is 2 (process) and 3 (thread); REALTIME 0, its coarse 5 and its
# alarm 8, and TAI 11 have a date, which is home's; negative ones name another process or a
# device by descriptor
_CLOCK = (
    *(_when(_HERE, is_(0, clock)) for clock in (0, 5, 8, 11)),
    _when(_HERE, is_(0, 2)),
    _when(_HERE, is_(0, 3)),
    _when(_HOME, has(0, 0x80000000)),
)
_CPU_CLOCK = (
    _go_home(is_(0, 2), reason="a timer on CPU time"),
    _go_home(is_(0, 3), reason="a timer on CPU time"),
    _go_home(has(0, 0x80000000), reason="a timer on another clock"),
)
_OWN = "another process's"
#: the length is told although it fails
_NO_ADDRESS = _go_home(null(1), reason=ARGUMENTS)
_ZEROCOPY = _go_home(has(3, 0x4000000), reason="zero-copy send")  # MSG_ZEROCOPY
_ZEROCOPY_MSG = _go_home(has(2, 0x4000000), reason="zero-copy send")

_INT, _LONG = 4, 8
_ioctl_none = (fd, value, value)


def _ioctl_in(size: int) -> tuple[Shape, ...]:
    return (fd, value, reads(size))


def _ioctl_out(size: int) -> tuple[Shape, ...]:
    return (fd, value, updates(size))


# asm-generic/ioctls.h, linux/sockios.h, linux/fs.h. Not in here and not plain: comes home.
_IOCTLS: dict[tuple[int, ...], tuple[Shape, ...]] = {
    # TCSBRK TCXONC TCFLSH TIOCEXCL TIOCNXCL TIOCSCTTY TIOCCONS TIOCNOTTY TCSBRKP TIOCSBRK
    # TIOCCBRK TIOCVHANGUP FIONCLEX FIOCLEX
    (0x5409, 0x540A, 0x540B, 0x540C, 0x540D, 0x540E, 0x541D, 0x5422): _ioctl_none,
    (0x5425, 0x5427, 0x5428, 0x5437, 0x5450, 0x5451): _ioctl_none,
    (0x5401, 0x5456): _ioctl_out(_TERMIOS),  # TCGETS, TIOCGLCKTRMIOS
    (0x5402, 0x5403, 0x5404, 0x5457): _ioctl_in(_TERMIOS),  # TCSETS TCSETSW TCSETSF TIOCSLCKTRMIOS
    (0x5405,): _ioctl_out(18),  # TCGETA: struct termio
    (0x5406, 0x5407, 0x5408): _ioctl_in(18),
    # TIOCGPGRP TIOCOUTQ TIOCMGET TIOCGSOFTCAR FIONREAD TIOCGETD TIOCGSID FIOQSIZE(8)
    (0x540F, 0x5411, 0x5415, 0x5419, 0x541B, 0x5424, 0x5429): _ioctl_out(_INT),
    (0x5460,): _ioctl_out(_LONG),
    # TIOCSPGRP TIOCMBIS TIOCMBIC TIOCMSET TIOCSSOFTCAR TIOCPKT FIONBIO TIOCSETD FIOASYNC
    (0x5410, 0x5416, 0x5417, 0x5418, 0x541A, 0x5420, 0x5421, 0x5423, 0x5452): _ioctl_in(_INT),
    (0x5412,): _ioctl_in(1),  # TIOCSTI
    (0x5413,): _ioctl_out(_WINSIZE),
    (0x5414,): _ioctl_in(_WINSIZE),
    (0x5441,): _ioctl_none,  # TIOCGPTPEER
    # FIOSETOWN SIOCSPGRP; FIOGETOWN SIOCGPGRP SIOCATMARK; SIOCGSTAMP SIOCGSTAMPNS
    (0x8901, 0x8902): _ioctl_in(_INT),
    (0x8903, 0x8904, 0x8905): _ioctl_out(_INT),
    (0x8906, 0x8907): _ioctl_out(_TIMESPEC),
    # SIOCGIFNAME FLAGS ADDR DSTADDR BRDADDR NETMASK METRIC MTU HWADDR INDEX TXQLEN: struct ifreq
    (0x8910, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B): _ioctl_out(_IFREQ),
    (0x891D, 0x8921, 0x8927, 0x8933, 0x8942): _ioctl_out(_IFREQ),
    (0x8914, 0x8916, 0x8918, 0x891A, 0x891C, 0x891E, 0x8922): _ioctl_in(_IFREQ),
    # BLKROGET BLKGETSIZE(8) BLKRAGET(8) BLKSSZGET BLKPBSZGET BLKGETSIZE64; BLKFLSBUF
    (0x125E, 0x1268, 0x127B): _ioctl_out(_INT),
    (0x1260, 0x1263, 0x80081272): _ioctl_out(_LONG),
    (0x1261,): _ioctl_none,
    # FS_IOC_GETFLAGS/SETFLAGS are declared long and are int: linux/fs.h
    (0x80086601,): _ioctl_out(_INT),
    (0x40086602,): _ioctl_in(_INT),
    (0x40049409,): _ioctl_none,  # FICLONE: the argument is a descriptor
    (0x4020940D,): _ioctl_in(32),  # FICLONERANGE
    (0x40045431, 0x80045430): _ioctl_out(_INT),  # TIOCSPTLCK, TIOCGPTN
}

# linux/fcntl.h
_FCNTLS: dict[tuple[int, ...], tuple[Shape, ...]] = {
    # F_DUPFD GETFD SETFD GETFL SETFL SETOWN GETOWN SETSIG GETSIG SETLEASE GETLEASE NOTIFY
    (0, 1, 2, 3, 4, 8, 9, 10, 11, 1024, 1025, 1026): (fd, value, value),
    # DUPFD_QUERY CREATED_QUERY CANCELLK DUPFD_CLOEXEC SETPIPE_SZ GETPIPE_SZ ADD_SEALS GET_SEALS
    (1027, 1028, 1029, 1030, 1031, 1032, 1033, 1034): (fd, value, value),
    (5, 36): (fd, value, updates(_FLOCK)),  # F_GETLK, F_OFD_GETLK
    (6, 7, 37, 38): (fd, value, reads(_FLOCK)),  # F_SETLK(W), F_OFD_SETLK(W)
    (15,): (fd, value, reads(8)),  # F_SETOWN_EX
    (16,): (fd, value, updates(8)),  # F_GETOWN_EX
    (1035, 1037): (fd, value, updates(8)),  # F_GET_RW_HINT, F_GET_FILE_RW_HINT
    (1036, 1038): (fd, value, reads(8)),
}

# linux/prctl.h: options that only concern identity, signals or scheduling of the process
_PRCTLS: dict[tuple[int, ...], tuple[Shape, ...]] = {
    # SET_PDEATHSIG GET_DUMPABLE GET_KEEPCAPS SET_KEEPCAPS CAPBSET_READ CAPBSET_DROP
    # GET_SECUREBITS SET_SECUREBITS SET_TIMERSLACK GET_TIMERSLACK SET_CHILD_SUBREAPER
    # SET_NO_NEW_PRIVS GET_NO_NEW_PRIVS CAP_AMBIENT SET_PTRACER
    (1, 3, 7, 8, 23, 24, 27, 28, 29, 30, 36, 38, 39, 47, 0x59616D61): (value,) * 5,
    (2, 37): (value, updates(_INT)),  # GET_PDEATHSIG, GET_CHILD_SUBREAPER
    (15,): (value, string(16)),  # SET_NAME
}
# GET_NAME, SET_THP_DISABLE, GET_THP_DISABLE, GET_TID_ADDRESS, SET_VMA, GET_TSC
_PRCTL_RULES = (
    *(_when(_LOCAL, is_(0, option)) for option in (16, 41, 42, 40, 0x53564D41, 25)),
    _when(_BOTH, is_(0, 15)),
)

TABLE: tuple[Row, ...] = (
    # ---- bytes ----
    _home(0, "read", fd, writes_result(2), value, cancel=_RESTART, special=Special.TRANSFER),
    _home(1, "write", fd, reads_n(2), value, cancel=_PARTIAL, special=Special.TRANSFER),
    _home(2, "open", open_path, value, value, cancel=_RESTART),
    _home(3, "close", fd),
    _home(4, "stat", path, writes(_STAT)),
    _home(5, "fstat", fd, writes(_STAT)),
    _home(6, "lstat", path, writes(_STAT)),
    _home(
        7,
        "poll",
        updates_n(1, 8),
        value,
        value,
        cancel=_REMAINING,
        timeout=(Timeout.MILLISECONDS, 2),
    ),
    _home(8, "lseek", fd, value, value),
    Row(9, "mmap", _AT_HOME, rules=_MMAP, reason="maps a file"),
    _local(10, "mprotect"),
    _local(11, "munmap"),
    _local(12, "brk"),
    # ---- signals ----
    _home(
        13,
        "rt_sigaction",
        value,
        reads(_SIGACTION),
        writes(_SIGACTION),
        value,
        cls=_BOTH,
        rules=(_when(_LOCAL, null(1)),),
    ),
    _home(
        14,
        "rt_sigprocmask",
        value,
        reads(_SIGSET),
        writes(_SIGSET),
        value,
        cls=_BOTH,
        rules=(_when(_LOCAL, null(1)),),
    ),
    _local(15, "rt_sigreturn"),
    _by(16, "ioctl", 1, _IOCTLS, special=Special.IOCTL, cancel=_RESTART),
    _home(
        17, "pread64", fd, writes_result(2), value, value, cancel=_RESTART, special=Special.TRANSFER
    ),
    _home(18, "pwrite64", fd, reads_n(2), value, value, cancel=_PARTIAL, special=Special.TRANSFER),
    _home(19, "readv", fd, value, value, cancel=_RESTART, special=Special.READV),
    _home(20, "writev", fd, value, value, cancel=_PARTIAL, special=Special.WRITEV),
    _home(21, "access", path, value),
    _home(22, "pipe", writes(8)),
    _home(
        23,
        "select",
        value,
        value,
        value,
        value,
        value,
        cancel=_REMAINING,
        special=Special.SELECT,
        timeout=(Timeout.TIMEVAL, 4),
    ),
    _local(24, "sched_yield"),
    _local(25, "mremap", *_MREMAP),
    _local(26, "msync"),
    _local(27, "mincore"),
    _local(28, "madvise"),
    _at_home(29, "shmget", "System V shared memory"),
    _at_home(30, "shmat", "System V shared memory"),
    _at_home(31, "shmctl", "System V shared memory"),
    _home(32, "dup", fd),
    _home(33, "dup2", fd, value),
    _home(34, "pause", cls=_WAIT, special=Special.PAUSE, cancel=_RESTART),
    _home(35, "nanosleep", value, value, cls=_WAIT, special=Special.NANOSLEEP, cancel=_REMAINING),
    # ITIMER_REAL 0 is home's; VIRTUAL and PROF count where the body runs
    _home(36, "getitimer", value, writes(_ITIMER), rules=(_when(_LOCAL, is_not(0, 0)),)),
    _home(37, "alarm", value),
    _home(
        38,
        "setitimer",
        value,
        reads(_ITIMER),
        writes(_ITIMER),
        rules=(_when(_LOCAL, is_not(0, 0)),),
    ),
    _home(39, "getpid"),
    _home(40, "sendfile", fd, fd, updates(8), value),
    # ---- sockets ----
    _home(41, "socket", value, value, value),
    _home(42, "connect", fd, reads_n(2), value, cancel=_RESTART),
    _home(43, "accept", fd, writes_length_at(2), length, cancel=_RESTART),
    _home(
        44,
        "sendto",
        fd,
        reads_n(2),
        value,
        value,
        reads_n(5),
        value,
        cancel=_PARTIAL,
        special=Special.TRANSFER,
        rules=(_ZEROCOPY,),
    ),
    _home(
        45,
        "recvfrom",
        fd,
        writes_result(2),
        value,
        value,
        writes_length_at(5),
        length,
        cancel=_PARTIAL,
        special=Special.TRANSFER,
    ),
    _home(
        46,
        "sendmsg",
        fd,
        value,
        value,
        cancel=_PARTIAL,
        special=Special.SENDMSG,
        rules=(_ZEROCOPY_MSG,),
    ),
    _home(47, "recvmsg", fd, value, value, cancel=_PARTIAL, special=Special.RECVMSG),
    _home(48, "shutdown", fd, value),
    _home(49, "bind", fd, reads_n(2), value),
    _home(50, "listen", fd, value),
    _home(51, "getsockname", fd, writes_length_at(2), length, rules=(_NO_ADDRESS,)),
    _home(52, "getpeername", fd, writes_length_at(2), length, rules=(_NO_ADDRESS,)),
    _home(53, "socketpair", value, value, value, updates(8), special=Special.ON_ERROR),
    # SO_ATTACH_FILTER 26 and SO_ATTACH_REUSEPORT_CBPF 51 of SOL_SOCKET, all of IPPROTO_IP's
    # netfilter (64…) hold pointers
    _home(
        54,
        "setsockopt",
        fd,
        value,
        value,
        reads_n(4),
        value,
        rules=(
            _go_home(is_(1, 1), is_(2, 26), reason="a socket filter"),
            _go_home(is_(1, 1), is_(2, 51), reason="a socket filter"),
            _go_home(is_not(1, 1), bits(2, 0xFFFFFFC0, 0x40), reason="netfilter"),
        ),
    ),
    # TCP_ZEROCOPY_RECEIVE 35 of IPPROTO_TCP 6 maps memory
    _home(
        55,
        "getsockopt",
        fd,
        value,
        value,
        writes_length_at(4),
        length,
        rules=(
            _go_home(is_(1, 1), is_(2, 26), reason="a socket filter"),
            _go_home(is_(1, 6), is_(2, 35), reason="zero-copy receive"),
            _go_home(is_not(1, 1), bits(2, 0xFFFFFFC0, 0x40), reason="netfilter"),
        ),
    ),
    # ---- processes ----
    _at_home(56, "clone", "clone"),
    _at_home(57, "fork", "fork"),
    _at_home(58, "vfork", "vfork"),
    _at_home(59, "execve", "execve"),
    _home(60, "exit", value, special=Special.EXIT),
    _home(61, "wait4", value, updates(4), value, updates(_RUSAGE), cancel=_RESTART),
    _home(62, "kill", value, value),
    _home(63, "uname", writes(390)),
    _home(64, "semget", value, value, value),
    _home(65, "semop", value, reads_n(2, 6), value, cancel=_RESTART),
    # IPC_RMID GETPID GETVAL GETNCNT GETZCNT SETVAL; the others take pointers of many sizes
    _by(66, "semctl", 2, {(0, 11, 12, 14, 15, 16): (value, value, value, value)}),
    _at_home(67, "shmdt", "System V shared memory"),
    _home(68, "msgget", value, value),
    _home(69, "msgsnd", value, reads_n(2, 1, 8), value, value, cancel=_RESTART),
    _home(70, "msgrcv", value, writes_result(2, 1, 8), value, value, value, cancel=_RESTART),
    _by(71, "msgctl", 1, {(0,): (value, value, value)}),
    _by(72, "fcntl", 1, _FCNTLS, cancel=_RESTART),
    _home(73, "flock", fd, value, cancel=_RESTART),
    # ---- files and directories ----
    _home(74, "fsync", fd),
    _home(75, "fdatasync", fd),
    _home(76, "truncate", path, value),
    _home(77, "ftruncate", fd, value),
    _home(78, "getdents", fd, writes_result(2), value),
    _home(79, "getcwd", writes_result(1), value),
    _home(80, "chdir", path),
    _home(81, "fchdir", fd),
    _home(82, "rename", path, path),
    _home(83, "mkdir", path, value),
    _home(84, "rmdir", path),
    _home(85, "creat", open_path, value, cancel=_RESTART),
    _home(86, "link", path, path),
    _home(87, "unlink", path),
    _home(88, "symlink", path, path),
    _home(89, "readlink", path, writes_result(2), value),
    _home(90, "chmod", path, value),
    _home(91, "fchmod", fd, value),
    _home(92, "chown", path, value, value),
    _home(93, "fchown", fd, value, value),
    _home(94, "lchown", path, value, value),
    _home(95, "umask", value),
    # the time zone is home's
    _home(
        96,
        "gettimeofday",
        writes(_TIMEVAL),
        writes(8),
        special=Special.DATE,
        rules=(_when(_HERE, null(1)),),
    ),
    _home(97, "getrlimit", value, writes(_RLIMIT)),
    # RUSAGE_SELF 0 and RUSAGE_THREAD 1 are the body's
    _home(
        98,
        "getrusage",
        value,
        writes(_RUSAGE),
        special=Special.RUSAGE,
        rules=(_when(_HERE, is_(0, 0)), _when(_HERE, is_(0, 1))),
    ),
    _home(99, "sysinfo", writes(112)),
    _home(100, "times", writes(32), special=Special.TIMES),
    _at_home(101, "ptrace", "traces a process"),
    # ---- identity ----
    _home(102, "getuid"),
    _home(103, "syslog", value, writes_result(2), value),
    _home(104, "getgid"),
    _home(105, "setuid", value),
    _home(106, "setgid", value),
    _home(107, "geteuid"),
    _home(108, "getegid"),
    _home(109, "setpgid", value, value),
    _home(110, "getppid"),
    _home(111, "getpgrp"),
    _home(112, "setsid"),
    _home(113, "setreuid", value, value),
    _home(114, "setregid", value, value),
    _home(115, "getgroups", value, writes_result(0, 4)),
    _home(116, "setgroups", value, reads_n(0, 4)),
    _home(117, "setresuid", value, value, value),
    _home(118, "getresuid", updates(4), updates(4), updates(4), special=Special.ON_ERROR),
    _home(119, "setresgid", value, value, value),
    _home(120, "getresgid", updates(4), updates(4), updates(4), special=Special.ON_ERROR),
    _home(121, "getpgid", value),
    _home(122, "setfsuid", value),
    _home(123, "setfsgid", value),
    _home(124, "getsid", value),
    # a version that the kernel does not know fails, and the one it prefers is told
    _home(125, "capget", updates(8), updates(24), special=Special.ON_ERROR),
    _home(126, "capset", updates(8), reads(24), special=Special.ON_ERROR),
    # ---- signals ----
    _home(127, "rt_sigpending", writes_n(1), value),
    _home(
        128,
        "rt_sigtimedwait",
        reads(_SIGSET),
        updates(_SIGINFO),
        reads(_TIMESPEC),
        value,
        cancel=_REMAINING,
        timeout=(Timeout.TIMESPEC, 2),
    ),
    _home(129, "rt_sigqueueinfo", value, value, reads(_SIGINFO)),
    _home(130, "rt_sigsuspend", reads(_SIGSET), value, cancel=_RESTART),
    _local(131, "sigaltstack"),
    _home(132, "utime", path, reads(16)),
    _home(133, "mknod", path, value, value),
    _at_home(134, "uselib"),
    _at_home(135, "personality"),
    _at_home(136, "ustat"),
    _home(137, "statfs", path, writes(_STATFS)),
    _home(138, "fstatfs", fd, writes(_STATFS)),
    _by(139, "sysfs", 0, {(1,): (value, string(4096)), (3,): (value,)}),
    # ---- scheduling ----
    _home(140, "getpriority", value, value),
    _home(
        141,
        "setpriority",
        value,
        value,
        value,
        cls=_BOTH,
        special=Special.SETPRIORITY,
        rules=(
            _when(_HOME, is_not(0, 0)),
            _when(_HOME, is_not(1, 0), is_not(1, HOME_PID)),
        ),
    ),
    _home(142, "sched_setparam", value, reads(4)),
    _home(143, "sched_getparam", value, writes(4)),
    _home(144, "sched_setscheduler", value, value, reads(4)),
    _home(145, "sched_getscheduler", value),
    _local(146, "sched_get_priority_max"),
    _local(147, "sched_get_priority_min"),
    _home(148, "sched_rr_get_interval", value, writes(_TIMESPEC)),
    _at_home(149, "mlock", "locks memory"),
    _local(150, "munlock"),
    _at_home(151, "mlockall", "locks memory"),
    _local(152, "munlockall"),
    _home(153, "vhangup"),
    _at_home(154, "modify_ldt"),
    _home(155, "pivot_root", path, path),
    _at_home(156, "_sysctl"),
    Row(
        157,
        "prctl",
        _HOME,
        rules=_PRCTL_RULES,
        variants={key: shapes for keys, shapes in _PRCTLS.items() for key in keys},
        key_arg=0,
        reason="prctl",
    ),
    _local(158, "arch_prctl"),
    _home(159, "adjtimex", updates(_TIMEX)),
    # RLIMIT_CPU 0 counts what is used on all nodes: a guest's is made of the process's own
    _home(
        160,
        "setrlimit",
        value,
        reads(_RLIMIT),
        cls=_BOTH,
        special=Special.PRLIMIT,
        rules=(_go_home(is_(0, 0), reason="changes its limit of CPU time"),),
    ),
    _at_home(161, "chroot"),
    _home(162, "sync"),
    _home(163, "acct", path),
    _home(164, "settimeofday", reads(_TIMEVAL), reads(8)),
    _at_home(165, "mount"),
    _home(166, "umount2", path, value),
    _home(167, "swapon", path, value),
    _home(168, "swapoff", path),
    _at_home(169, "reboot"),
    _home(170, "sethostname", reads_n(1), value),
    _home(171, "setdomainname", reads_n(1), value),
    _at_home(172, "iopl"),
    _at_home(173, "ioperm"),
    _at_home(174, "create_module"),
    _at_home(175, "init_module"),
    _home(176, "delete_module", string(256), value),
    _at_home(177, "get_kernel_syms"),
    _at_home(178, "query_module"),
    _at_home(179, "quotactl"),
    _at_home(180, "nfsservctl"),
    _at_home(181, "getpmsg"),
    _at_home(182, "putpmsg"),
    _at_home(183, "afs_syscall"),
    _at_home(184, "tuxcall"),
    _at_home(185, "security"),
    _home(186, "gettid"),
    _home(187, "readahead", fd, value, value),
    # ---- extended attributes ----
    _home(188, "setxattr", path, string(_XATTR_NAME), reads_n(3), value, value),
    _home(189, "lsetxattr", path, string(_XATTR_NAME), reads_n(3), value, value),
    _home(190, "fsetxattr", fd, string(_XATTR_NAME), reads_n(3), value, value),
    _home(191, "getxattr", path, string(_XATTR_NAME), writes_result(3), value),
    _home(192, "lgetxattr", path, string(_XATTR_NAME), writes_result(3), value),
    _home(193, "fgetxattr", fd, string(_XATTR_NAME), writes_result(3), value),
    _home(194, "listxattr", path, writes_result(2), value),
    _home(195, "llistxattr", path, writes_result(2), value),
    _home(196, "flistxattr", fd, writes_result(2), value),
    _home(197, "removexattr", path, string(_XATTR_NAME)),
    _home(198, "lremovexattr", path, string(_XATTR_NAME)),
    _home(199, "fremovexattr", fd, string(_XATTR_NAME)),
    _home(200, "tkill", value, value),
    _home(201, "time", writes(8), special=Special.DATE, cls=_HERE),
    # FUTEX_CLOCK_REALTIME 256: a timeout that is a date, which only home's kernel can wait for
    _local(202, "futex", _go_home(has(1, 256), given(3), reason="waits on a futex until a date")),
    # Which CPUs there are is home's affair: the mask is kept and asked there
    _home(203, "sched_setaffinity", value, value, reads_n(1)),
    _home(204, "sched_getaffinity", value, value, writes_result(1)),
    _at_home(205, "set_thread_area"),
    _at_home(206, "io_setup", "asynchronous input and output"),
    _at_home(207, "io_destroy", "asynchronous input and output"),
    _at_home(208, "io_getevents", "asynchronous input and output"),
    _at_home(209, "io_submit", "asynchronous input and output"),
    _at_home(210, "io_cancel", "asynchronous input and output"),
    _at_home(211, "get_thread_area"),
    _at_home(212, "lookup_dcookie"),
    _home(213, "epoll_create", value),
    _at_home(214, "epoll_ctl_old"),
    _at_home(215, "epoll_wait_old"),
    _at_home(216, "remap_file_pages"),
    _home(217, "getdents64", fd, writes_result(2), value),
    _local(218, "set_tid_address"),
    _local(219, "restart_syscall"),
    _home(
        220,
        "semtimedop",
        value,
        reads_n(2, 6),
        value,
        reads(_TIMESPEC),
        cancel=_REMAINING,
        timeout=(Timeout.TIMESPEC, 3),
    ),
    _home(221, "fadvise64", fd, value, value, value),
    # ---- timers and clocks ----
    _home(222, "timer_create", value, reads(64), writes(4), rules=_CPU_CLOCK),
    _home(223, "timer_settime", value, value, reads(_ITIMER), writes(_ITIMER)),
    _home(224, "timer_gettime", value, writes(_ITIMER)),
    _home(225, "timer_getoverrun", value),
    _home(226, "timer_delete", value),
    _home(227, "clock_settime", value, reads(_TIMESPEC)),
    Row(
        228,
        "clock_gettime",
        _LOCAL,
        (value, writes(_TIMESPEC)),
        rules=_CLOCK,
        special=Special.CPU_CLOCK,
        reason="clock_gettime",
    ),
    Row(
        229,
        "clock_getres",
        _LOCAL,
        (value, writes(_TIMESPEC)),
        rules=(_when(_HOME, has(0, 0x80000000)),),
        reason="clock_getres",
    ),
    # REALTIME 0, MONOTONIC 1, BOOTTIME 7; CPU clocks, alarms and TAI only at home
    Row(
        230,
        "clock_nanosleep",
        _AT_HOME,
        (value, value, value, value),
        _REMAINING,
        rules=tuple(_when(_WAIT, is_(0, clock)) for clock in (0, 1, 7)),
        special=Special.CLOCK_NANOSLEEP,
        reason="sleeps on an unusual clock",
    ),
    _home(231, "exit_group", value, special=Special.EXIT),
    _home(
        232,
        "epoll_wait",
        fd,
        writes_result(2, 12),
        value,
        value,
        cancel=_REMAINING,
        timeout=(Timeout.MILLISECONDS, 3),
    ),
    _home(233, "epoll_ctl", fd, value, fd, reads(12)),
    _home(234, "tgkill", value, value, value),
    _home(235, "utimes", path, reads(32)),
    _at_home(236, "vserver"),
    _at_home(237, "mbind", "NUMA placement"),
    _at_home(238, "set_mempolicy", "NUMA placement"),
    _at_home(239, "get_mempolicy", "NUMA placement"),
    _home(240, "mq_open", string(4096), value, value, reads(64)),
    _home(241, "mq_unlink", string(4096)),
    _home(242, "mq_timedsend", fd, reads_n(2), value, value, reads(_TIMESPEC), cancel=_RESTART),
    _home(
        243,
        "mq_timedreceive",
        fd,
        writes_result(2),
        value,
        writes(4),
        reads(_TIMESPEC),
        cancel=_RESTART,
    ),
    _at_home(244, "mq_notify"),
    _home(245, "mq_getsetattr", fd, reads(64), writes(64)),
    _at_home(246, "kexec_load"),
    _home(
        247,
        "waitid",
        value,
        value,
        updates(_SIGINFO),
        value,
        updates(_RUSAGE),
        cancel=_RESTART,
        special=Special.ON_ERROR,
    ),
    _at_home(248, "add_key", "kernel keys"),
    _at_home(249, "request_key", "kernel keys"),
    _at_home(250, "keyctl", "kernel keys"),
    _home(251, "ioprio_set", value, value, value),
    _home(252, "ioprio_get", value, value),
    _home(253, "inotify_init"),
    _home(254, "inotify_add_watch", fd, path, value),
    _home(255, "inotify_rm_watch", fd, value),
    _at_home(256, "migrate_pages", "NUMA placement"),
    _home(257, "openat", fd, open_path, value, value, cancel=_RESTART),
    _home(258, "mkdirat", fd, path, value),
    _home(259, "mknodat", fd, path, value, value),
    _home(260, "fchownat", fd, path, value, value, value),
    _home(261, "futimesat", fd, path, reads(32)),
    _home(262, "newfstatat", fd, path, writes(_STAT), value),
    _home(263, "unlinkat", fd, path, value),
    _home(264, "renameat", fd, path, fd, path),
    _home(265, "linkat", fd, path, fd, path, value),
    _home(266, "symlinkat", path, fd, path),
    _home(267, "readlinkat", fd, path, writes_result(3), value),
    _home(268, "fchmodat", fd, path, value),
    _home(269, "faccessat", fd, path, value),
    _home(
        270,
        "pselect6",
        value,
        value,
        value,
        value,
        value,
        value,
        cancel=_REMAINING,
        special=Special.PSELECT,
        timeout=(Timeout.TIMESPEC, 4),
    ),
    _home(
        271,
        "ppoll",
        updates_n(1, 8),
        value,
        updates(_TIMESPEC),
        reads(_SIGSET),
        value,
        cancel=_REMAINING,
        timeout=(Timeout.TIMESPEC, 2),
    ),
    _at_home(272, "unshare"),
    _local(273, "set_robust_list"),
    # of another process: only home knows it
    _local(274, "get_robust_list", _go_home(is_not(0, 0), reason="get_robust_list")),
    _home(275, "splice", fd, updates(8), fd, updates(8), value, value, cancel=_RESTART),
    _home(276, "tee", fd, fd, value, value, cancel=_RESTART),
    _home(277, "sync_file_range", fd, value, value, value),
    _at_home(278, "vmsplice"),
    _at_home(279, "move_pages", "NUMA placement"),
    _home(280, "utimensat", fd, path, reads(32), value),
    _home(
        281,
        "epoll_pwait",
        fd,
        writes_result(2, 12),
        value,
        value,
        reads(_SIGSET),
        value,
        cancel=_REMAINING,
        timeout=(Timeout.MILLISECONDS, 3),
    ),
    _home(282, "signalfd", fd, reads_n(2), value),
    _home(283, "timerfd_create", value, value),
    _home(284, "eventfd", value),
    _home(285, "fallocate", fd, value, value, value),
    _home(286, "timerfd_settime", fd, value, reads(_ITIMER), writes(_ITIMER)),
    _home(287, "timerfd_gettime", fd, writes(_ITIMER)),
    _home(288, "accept4", fd, writes_length_at(2), length, value, cancel=_RESTART),
    _home(289, "signalfd4", fd, reads_n(2), value, value),
    _home(290, "eventfd2", value, value),
    _home(291, "epoll_create1", value),
    _home(292, "dup3", fd, value, value),
    _home(293, "pipe2", writes(8), value),
    _home(294, "inotify_init1", value),
    _home(295, "preadv", fd, value, value, value, cancel=_RESTART, special=Special.READV),
    _home(296, "pwritev", fd, value, value, value, cancel=_PARTIAL, special=Special.WRITEV),
    _home(297, "rt_tgsigqueueinfo", value, value, value, reads(_SIGINFO)),
    _at_home(298, "perf_event_open", "performance counters"),
    _home(
        299,
        "recvmmsg",
        fd,
        value,
        value,
        value,
        value,
        cancel=_REMAINING,
        special=Special.RECVMMSG,
        timeout=(Timeout.TIMESPEC, 4),
    ),
    _home(300, "fanotify_init", value, value),
    _home(301, "fanotify_mark", fd, value, value, fd, path),
    _home(
        302,
        "prlimit64",
        value,
        value,
        reads(_RLIMIT),
        writes(_RLIMIT),
        cls=_BOTH,
        special=Special.PRLIMIT,
        rules=(
            _when(_HOME, null(2)),
            _when(_HOME, is_not(0, 0), is_not(0, HOME_PID)),
            _go_home(is_(1, 0), reason="changes its limit of CPU time"),
        ),
    ),
    _at_home(303, "name_to_handle_at"),
    _at_home(304, "open_by_handle_at"),
    _home(305, "clock_adjtime", value, updates(_TIMEX)),
    _home(306, "syncfs", fd),
    _home(
        307,
        "sendmmsg",
        fd,
        value,
        value,
        value,
        special=Special.SENDMMSG,
        rules=(_ZEROCOPY,),
    ),
    _at_home(308, "setns"),
    _local(309, "getcpu"),
    _at_home(310, "process_vm_readv", f"{_OWN} memory"),
    _at_home(311, "process_vm_writev", f"{_OWN} memory"),
    _at_home(312, "kcmp"),
    _at_home(313, "finit_module"),
    _home(314, "sched_setattr", value, reads(48), value),
    _home(315, "sched_getattr", value, updates_n(2, 1), value, value),
    _home(316, "renameat2", fd, path, fd, path, value),
    _at_home(317, "seccomp", "seccomp filter"),
    _local(318, "getrandom"),
    _home(319, "memfd_create", string(250), value),
    _at_home(320, "kexec_file_load"),
    _at_home(321, "bpf"),
    _at_home(322, "execveat", "execve"),
    _at_home(323, "userfaultfd"),
    _local(324, "membarrier"),
    _at_home(325, "mlock2", "locks memory"),
    _home(326, "copy_file_range", fd, updates(8), fd, updates(8), value, value),
    _home(
        327,
        "preadv2",
        fd,
        value,
        value,
        value,
        value,
        value,
        cancel=_RESTART,
        special=Special.READV,
    ),
    _home(
        328,
        "pwritev2",
        fd,
        value,
        value,
        value,
        value,
        value,
        cancel=_PARTIAL,
        special=Special.WRITEV,
    ),
    _at_home(329, "pkey_mprotect", "protection keys"),
    _at_home(330, "pkey_alloc", "protection keys"),
    _at_home(331, "pkey_free", "protection keys"),
    _home(332, "statx", fd, path, value, value, writes(_STATX)),
    _at_home(333, "io_pgetevents", "asynchronous input and output"),
    _local(334, "rseq"),
    _at_home(335, "uretprobe"),
    _at_home(336, "uprobe"),
    # ---- numbers common to all architectures ----
    _home(424, "pidfd_send_signal", fd, value, reads(_SIGINFO), value),
    _at_home(425, "io_uring_setup", "io_uring"),
    _at_home(426, "io_uring_enter", "io_uring"),
    _at_home(427, "io_uring_register", "io_uring"),
    _home(428, "open_tree", fd, path, value),
    _home(429, "move_mount", fd, path, fd, path, value),
    _home(430, "fsopen", string(4096), value),
    _at_home(431, "fsconfig"),
    _home(432, "fsmount", fd, value, value),
    _home(433, "fspick", fd, path, value),
    _home(434, "pidfd_open", value, value),
    _at_home(435, "clone3", "clone"),
    _home(436, "close_range", value, value, value),
    _home(437, "openat2", fd, open_path, reads_n(3), value, cancel=_RESTART),
    _home(438, "pidfd_getfd", fd, value, value),
    _home(439, "faccessat2", fd, path, value, value),
    _at_home(440, "process_madvise", f"{_OWN} memory"),
    _home(
        441,
        "epoll_pwait2",
        fd,
        writes_result(2, 12),
        value,
        reads(_TIMESPEC),
        reads(_SIGSET),
        value,
        cancel=_REMAINING,
        timeout=(Timeout.TIMESPEC, 3),
    ),
    _home(442, "mount_setattr", fd, path, value, reads_n(4), value),
    _at_home(443, "quotactl_fd"),
    _at_home(444, "landlock_create_ruleset", "landlock"),
    _at_home(445, "landlock_add_rule", "landlock"),
    _at_home(446, "landlock_restrict_self", "landlock"),
    _at_home(447, "memfd_secret"),
    _home(448, "process_mrelease", fd, value),
    _local(
        449,
        "futex_waitv",
        _go_home(given(3), is_(4, 0), reason="waits on a futex until a date"),
    ),
    _at_home(450, "set_mempolicy_home_node", "NUMA placement"),
    _home(451, "cachestat", fd, reads(16), writes(40), value),
    _home(452, "fchmodat2", fd, path, value, value),
    _at_home(453, "map_shadow_stack"),
    _local(454, "futex_wake"),
    _local(
        455,
        "futex_wait",
        _go_home(given(4), is_(5, 0), reason="waits on a futex until a date"),
    ),
    _local(456, "futex_requeue"),
    _at_home(457, "statmount"),
    _at_home(458, "listmount"),
    _at_home(459, "lsm_get_self_attr"),
    _at_home(460, "lsm_set_self_attr"),
    _at_home(461, "lsm_list_modules"),
    _at_home(462, "mseal", "seals memory"),
    _at_home(463, "setxattrat"),
    _at_home(464, "getxattrat"),
    _home(465, "listxattrat", fd, path, value, writes_result(4), value),
    _home(466, "removexattrat", fd, path, value, string(_XATTR_NAME)),
    _at_home(467, "open_tree_attr"),
    _home(468, "file_getattr", fd, path, updates_n(3, 1), value, value),
    _home(469, "file_setattr", fd, path, reads_n(3), value, value),
)

BY_NR: dict[int, Row] = {row.nr: row for row in TABLE}
BY_NAME: dict[str, Row] = {row.name: row for row in TABLE}

#: The reasons as the marshaller numbers them; the first four are known to native/redirect.h.
REASONS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            UNKNOWN,
            DESCRIPTORS,
            MEMORY,
            ARGUMENTS,
            PROC_REASON,
            *(reason for row in TABLE for reason in (row.reason, *(r.reason for r in row.rules))),
        )
    )
)

__all__ = [
    "BY_NAME",
    "BY_NR",
    "MASK32",
    "MASK64",
    "NO_ARG",
    "PROC_REASON",
    "REASONS",
    "TABLE",
    "UNKNOWN",
]
