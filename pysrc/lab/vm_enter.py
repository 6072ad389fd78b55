"""Run a command in a virtual machine of the lab: `mosix-lab run` and `shell`, on the host's side.

Like `mosix.lab.enter` for nodes made of namespaces: the caller stands in for the command, hands on
signals and ends as it ends. Different, since the command is no child of ours: it leads a session
of its own, with a terminal of its own if standard input is one. A machine that is lost while the
command runs is `MachineLostError`, never a status of the command. `vm_agent` is the other side.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import termios
import threading
import tty
from collections.abc import Iterator
from typing import NoReturn, TypeVar

import msgspec
from mosix.errors import MachineLostError, MosixError
from mosix.lab import enter, network, vm_agent
from mosix.lab.state import Lab, Node
from mosix.lab.vm_agent import Ended, FromAgent, Kill, Listens, OrderInit, Resize, Run, Streams
from mosix.lab.vm_nodes import watch

T = TypeVar("T", bound=FromAgent)
_CONNECT_S = 20.0


def _connect(lab: Lab, node: Node, port: int) -> socket.socket:
    assert node.machine is not None
    watch(lab, node).check()
    if lab.switch is None or not lab.switch.alive():
        raise MosixError(f"the switch of lab {lab.name!r} is dead", hint="mosix-lab down, then up")
    with network.inside(lab.switch.pid):
        try:
            sock = socket.create_connection((node.machine.control, port), _CONNECT_S)
        except OSError as error:
            watch(lab, node).check()
            raise MosixError(f"cannot reach the agent in {node.name}: {error}") from error
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _answer(lab: Lab, node: Node, connection: socket.socket, kind: type[T]) -> T:
    """The next message, or MachineLostError: nothing closes the connections of a machine that
    has ended, so that is watched for."""
    watch(lab, node).check()
    pidfd = node.init.open()
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ready = dict(poll.poll())
    finally:
        os.close(pidfd)
    data = vm_agent.receive(connection) if connection.fileno() in ready else None
    if data is None:
        watch(lab, node).check()
        raise MachineLostError(f"the agent in the virtual machine {node.name} has ended")
    return msgspec.msgpack.decode(data, type=kind)


def order_init(lab: Lab, node: Node, number: int) -> None:
    """Send the machine's PID 1 a signal."""
    with _connect(lab, node, vm_agent.PORT) as connection:
        vm_agent.send(connection, OrderInit(number))
        _answer(lab, node, connection, vm_agent.Yes)


def listens(lab: Lab, node: Node, path: str) -> bool:
    """Whether something accepts connections at the unix socket `path` in the machine."""
    with _connect(lab, node, vm_agent.PORT) as connection:
        vm_agent.send(connection, Listens(path))
        return _answer(lab, node, connection, vm_agent.Yes).yes


def run(
    lab: Lab, node: Node, command: list[str], *, user: str | None = None, directory: str | None
) -> NoReturn:
    """Run `command` in the machine and end as it ends. MosixError before anything ran, and when
    the machine is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, enter.HANDED_ON)
    try:
        on_terminal = os.isatty(0)
        connection = _connect(lab, node, vm_agent.PORT)
        order = Run(
            command,
            list(enter.own_environment().items()),
            user,
            directory,
            enter.working_directory(),
            _size() if on_terminal else None,
            os.getpid(),
        )
        vm_agent.send(connection, order)
        port = _answer(lab, node, connection, Streams).port
        streams = [_connect(lab, node, port) for _ in range(1 if on_terminal else 3)]
        for number, stream in enumerate(streams):
            stream.sendall(bytes([number]))
        with _raw() if on_terminal else contextlib.nullcontext():
            outward = [(streams[0], 1)] if on_terminal else [(streams[1], 1), (streams[2], 2)]
            pumps = [threading.Thread(target=_pump_out, args=pair, daemon=True) for pair in outward]
            for pump in pumps:
                pump.start()
            threading.Thread(target=_pump_in, args=(streams[0],), daemon=True).start()
            threading.Thread(target=_hand_on, args=(connection,), daemon=True).start()
            status = _answer(lab, node, connection, Ended).status
            for pump in pumps:
                pump.join()
    except MosixError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    enter.die_by(os.WTERMSIG(status))


def _size() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(0)
    return rows, columns


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The caller's terminal hands every byte to the one in the machine."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is for the command
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _pump_in(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 65536):
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)


def _pump_out(stream: socket.socket, target: int) -> None:
    try:
        while data := stream.recv(65536):
            while data:
                data = data[os.write(target, data) :]
    except OSError:
        stream.close()  # the command learns that nobody reads any more


def _hand_on(connection: socket.socket) -> None:
    """Signals sent to us are for the command. Those of a terminal come to it as characters."""
    while True:
        info = signal.sigwaitinfo(enter.HANDED_ON)
        if info.si_signo == signal.SIGWINCH:
            if os.isatty(0):
                vm_agent.send(connection, Resize(*_size()))
        elif info.si_code <= 0 or info.si_signo == signal.SIGHUP:
            vm_agent.send(connection, Kill(info.si_signo))
