"""Run a command in a node as if it had been started there: `mosix-lab run` and `shell`.

The caller forks into the node's PID namespace, the child joins the other namespaces and the
cgroups and execs. The caller stays outside, for a process cannot change its own PID namespace,
and stands in for the child towards whoever started it: it ends as the child ends (status or
signal), stops when the terminal stops the child, and hands on signals that were sent to it. What
the terminal sends (^C, ^\\, ^Z) reaches the child by itself: both are in one process group; only
that it was closed is told to a session's leader alone, and handed on.
Must be called from a process with one thread (a time namespace takes no other); never returns.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

from mosix.errors import LAUNCH_FAILED, NOT_EXECUTABLE, NOT_FOUND, MosixError, UsageError
from mosix.lab import cgroups, kernel
from mosix.lab.state import Lab, Node

_TERMINAL_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
#: faults are ours if they happen to us
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
#: signals a caller may send us for the child; not SIGKILL and SIGSTOP, which nobody can hand on
HANDED_ON = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD} - _FAULTS


def run(
    lab: Lab,
    node: Node,
    command: list[str],
    *,
    user: str | None = None,
    directory: str | None = None,
    session: bool = False,
) -> NoReturn:
    """Run `command` in `node` and end as it ends.

    `user`: name or number (root). `directory`: where (the caller's, if the node has it, or else
    /node). `session`: in a new session whose terminal is standard input. Raises MosixError
    before anything ran; afterwards the exit status is the command's, or 127, 126, 125 as env(1).
    """
    try:
        pidfd = node.init.open()
        kernel.setns(pidfd, kernel.CLONE_NEWPID)
    except ProcessLookupError as error:
        raise MosixError(f"node {node.name} is dead", hint="mosix-lab down, then up") from error
    here = working_directory()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON | {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        try:
            cgroups.join(cgroups.groups(lab.name, node.name))
            kernel.setns(pidfd, kernel.NODE_NAMESPACES & ~kernel.CLONE_NEWPID)
            os.close(pidfd)
            environment = with_own_path(own_environment())
            if user is not None:
                become(user, environment)
            go_to(directory, here)
            if session:
                _lead_session()
            execute(command, environment, before)
        except MosixError as error:
            complain(error.line())
        except OSError as error:
            complain(f"cannot enter node {node.name}: {error}")
        finally:
            os._exit(LAUNCH_FAILED)
    os.close(pidfd)
    _stand_in(child)


def working_directory() -> str | None:
    """The caller's; None if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def complain(line: str) -> None:
    os.write(2, f"mosix-lab: {line}\n".encode())


def own_environment() -> dict[bytes, bytes]:
    """The environment we were started with: Python may have added LC_CTYPE (PEP 538)."""
    pairs = Path(f"/proc/{os.getpid()}/environ").read_bytes().split(b"\0")
    return dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)


def with_own_path(environment: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """`environment` (changed) with the commands of this package first on its PATH."""
    own = os.fsencode(Path(sys.executable).parent)
    path = environment.get(b"PATH", b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    environment[b"PATH"] = own + b":" + path
    return environment


def become(user: str, environment: dict[bytes, bytes]) -> None:
    """Take the identity of `user` (name or number) and tell it in `environment`. UsageError."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError as error:
        if not user.isdecimal():
            raise UsageError(f"no user {user!r}") from error
        uid = int(user)
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        return
    groups = [group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem]
    os.setgroups([entry.pw_gid, *groups])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    for name in (b"USER", b"LOGNAME"):
        environment[name] = os.fsencode(entry.pw_name)
    environment[b"HOME"] = os.fsencode(entry.pw_dir)


def go_to(directory: str | None, here: str | None) -> None:
    """To `directory`; without one to the caller's own, if the node has it, or else to /node."""
    if directory is not None:
        os.chdir(directory)
        return
    try:
        os.chdir(here or "/node")
    except OSError:
        os.chdir("/node")


def _lead_session() -> None:
    import fcntl  # noqa: PLC0415 - only here, and run starts often
    import termios  # noqa: PLC0415

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def execute(command: list[str], environment: dict[bytes, bytes], mask: set[int]) -> NoReturn:
    """Become `command` with the signal mask `mask`; 127 and 126 as env(1) if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python's own doing
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        complain(f"{command[0]}: not found")
        os._exit(NOT_FOUND)
    except OSError as error:
        complain(f"{command[0]}: {error.strerror}")
        os._exit(NOT_EXECUTABLE)


def _stand_in(child: int) -> NoReturn:
    waited = HANDED_ON | {signal.SIGCHLD}
    while True:
        info = signal.sigwaitinfo(waited)
        if info.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                continue
            if os.WIFSTOPPED(status):
                # Not for a SIGSTOP sent to the child alone: whoever continues it later does not
                # know of us.
                if os.WSTOPSIG(status) in _TERMINAL_STOPS:
                    _stop_as(os.WSTOPSIG(status))
                    # Whoever continued our process group has continued it as well.
                    if _is_stopped(child):
                        os.kill(child, signal.SIGCONT)
            elif os.WIFEXITED(status):
                os._exit(os.WEXITSTATUS(status))
            else:
                die_by(os.WTERMSIG(status))
        elif info.si_signo == signal.SIGCONT:
            if _is_stopped(child):
                os.kill(child, signal.SIGCONT)
        elif info.si_code <= 0:  # sent by a process (SI_USER, SI_TKILL, SI_QUEUE)
            os.kill(child, info.si_signo)
        elif info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid():
            # The terminal was closed: the kernel tells that to the leader of the session alone.
            os.kill(child, signal.SIGHUP)


def _is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _stop_as(number: int) -> None:
    # ^Z sent us one as well: stopping twice would take two `fg`.
    signal.sigtimedwait({number}, 0)
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})


def die_by(number: int) -> NoReturn:
    """End as something that signal `number` killed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's core is enough
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)
