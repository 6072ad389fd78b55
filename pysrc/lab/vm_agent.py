"""Inside a virtual machine of the lab: runs commands for `mosix-lab run`, as root, for the host.

Started by `vm_init`. Listens on the network that only the host and the machines' agents use, and
takes orders from the host's address alone, so no user of the machine can give any. One process
per order. A command's standard streams are pipes here, or a terminal when the caller has one;
each has a connection of its own, so that a reader that does not read holds up nothing else.
`vm_enter` is the other side.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
from mosix.errors import LAUNCH_FAILED, MosixError
from mosix.lab import enter
from mosix.wire.frames import FrameDecoder, frame

PORT = 1022
#: PIDs of running commands, named after the PID of what stands in for them on the host
RUNNING = "running"
_STATE = Path("/run/lab")
_LIMIT = 8 << 20  # of a message: arguments and environment of a command


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run a command; answered by `Streams`, and at its end by `Ended`."""

    command: list[str]
    environment: list[tuple[bytes, bytes]]
    user: str | None
    directory: str | None
    here: str | None
    #: rows and columns of the caller's terminal; None: three pipes
    terminal: tuple[int, int] | None
    #: PID, on the host, of who asks
    caller: int


class Kill(msgspec.Struct, tag=True, frozen=True):
    """Send the command a signal."""

    number: int


class Resize(msgspec.Struct, tag=True, frozen=True):
    """The caller's terminal has another size now."""

    rows: int
    columns: int


class OrderInit(msgspec.Struct, tag=True, frozen=True):
    """Send PID 1 a signal; answered by `Yes`."""

    number: int


class Listens(msgspec.Struct, tag=True, frozen=True):
    """Whether something accepts connections at this unix socket; answered by `Yes`."""

    path: str


class Streams(msgspec.Struct, tag=True, frozen=True):
    """Connect here once for each stream, and say first which it is (one byte)."""

    port: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """Wait status of the command."""

    status: int


class Yes(msgspec.Struct, tag=True, frozen=True):
    yes: bool


ToAgent = Run | Kill | Resize | OrderInit | Listens
FromAgent = Streams | Ended | Yes


def send(sock: socket.socket, message: ToAgent | FromAgent) -> None:
    sock.sendall(frame(msgspec.msgpack.encode(message), _LIMIT))


def receive(sock: socket.socket) -> bytes | None:
    """The next message, encoded; None at the end of the connection."""
    decoder = FrameDecoder(_LIMIT)
    while True:
        try:
            data = sock.recv(decoder.wanted)
        except ConnectionResetError:
            return None
        if not data:
            return None
        if (message := decoder.feed(data)) is not None:
            return message


def listen(address: str) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, PORT))
    listener.listen(64)
    return listener


def serve(listener: socket.socket, host: str) -> NoReturn:
    """Take orders from `host` until the machine ends."""
    os.setsid()
    (_STATE / RUNNING).mkdir(exist_ok=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who serve one order
    while True:
        connection, (peer, _) = listener.accept()
        if peer == host and os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            try:
                _obey(connection, host)
            finally:
                sys.stderr.flush()
                os._exit(0)
        connection.close()


def _obey(connection: socket.socket, host: str) -> None:
    order = receive(connection)
    if order is None:
        return
    match msgspec.msgpack.decode(order, type=ToAgent):
        case Run() as run:
            _Command(connection, host, run).serve()
        case OrderInit(number):
            os.kill(1, number)
            send(connection, Yes(True))
        case Listens(path):
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.connect(path)
                send(connection, Yes(True))
                return
            send(connection, Yes(False))


class _Command:
    """One command, from its start to its end."""

    def __init__(self, connection: socket.socket, host: str, run: Run) -> None:
        self.connection = connection
        self.run = run
        self.streams = self._accept(host)
        self.terminal = -1
        self.ended = threading.Event()
        #: readable from the end of the command on
        self.end_fd = os.eventfd(0)

    def _accept(self, host: str) -> list[socket.socket]:
        """Connections of standard input, output and error; with a terminal only the first."""
        count = 1 if self.run.terminal else 3
        streams: dict[int, socket.socket] = {}
        with socket.socket() as listener:
            listener.bind((self.connection.getsockname()[0], 0))
            listener.listen(count)
            send(self.connection, Streams(listener.getsockname()[1]))
            while len(streams) < count:
                stream, (peer, _) = listener.accept()
                if peer == host:
                    streams[stream.recv(1)[0]] = stream
        return [streams[number] for number in range(count)]

    def serve(self) -> None:
        if self.run.terminal:
            child, self.terminal = self._start_on_terminal(self.run.terminal)
            inward, outward = self.terminal, [(self.terminal, self.streams[0])]
        else:
            child, (inward, *outs) = self._start_on_pipes()
            outward = list(zip(outs, self.streams[1:], strict=True))
        pid_file = _STATE / RUNNING / str(self.run.caller)
        pid_file.write_text(str(child))
        pumps = [threading.Thread(target=self._pump_out, args=pair) for pair in outward]
        threading.Thread(target=self._pump_in, args=(inward,), daemon=True).start()
        for pump in pumps:
            pump.start()
        status = self._follow(child)
        os.eventfd_write(self.end_fd, 1)
        for pump in pumps:
            pump.join()
        pid_file.unlink(missing_ok=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.connection, Ended(status))

    def _start_on_pipes(self) -> tuple[int, list[int]]:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        child = os.fork()
        if child == 0:
            self._become(theirs)
        for fd in theirs:
            os.close(fd)
        return child, ours

    def _start_on_terminal(self, size: tuple[int, int]) -> tuple[int, int]:
        master, slave = os.openpty()
        _resize(slave, *size)
        child = os.fork()
        if child == 0:
            self._become([slave] * 3, terminal=True)
        os.close(slave)
        return child, master

    def _become(self, descriptors: list[int], terminal: bool = False) -> NoReturn:
        try:
            for number, fd in enumerate(descriptors):
                os.dup2(fd, number)
            os.closerange(3, 256)
            os.setsid()
            if terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            environment = enter.with_own_path(dict(self.run.environment))
            if self.run.user is not None:
                enter.become(self.run.user, environment)
            enter.go_to(self.run.directory, self.run.here)
            enter.execute(self.run.command, environment, set())
        except MosixError as error:
            enter.complain(error.line())
        except OSError as error:
            enter.complain(f"cannot start {self.run.command[0]}: {error}")
        finally:
            os._exit(LAUNCH_FAILED)

    def _pump_in(self, target: int) -> None:
        with contextlib.suppress(OSError):  # the command reads no more, or has ended
            while data := self.streams[0].recv(65536):
                _write_all(target, data)
        if self.run.terminal is None:
            os.close(target)

    def _pump_out(self, source: int, target: socket.socket) -> None:
        """Until nobody has the other end, or the command has ended and all it wrote is read."""
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(self.end_fd, select.POLLIN)
        with contextlib.suppress(OSError):
            while True:
                ready = dict(poll.poll())
                if source not in ready:
                    break
                data = os.read(source, 65536)  # EIO of a terminal that nobody has open any more
                if not data:
                    break
                target.sendall(data)
        if self.run.terminal is None:
            os.close(source)  # whoever writes on gets what a reader's end gives
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _follow(self, child: int) -> int:
        """Hand on what the caller sends until the child ends; its wait status."""
        pidfd = os.pidfd_open(child)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if pidfd in ready:
                return os.waitpid(child, 0)[1]
            message = receive(self.connection)
            if message is None:  # the caller is gone
                poll.unregister(self.connection)
                os.kill(child, signal.SIGKILL)
                continue
            match msgspec.msgpack.decode(message, type=ToAgent):
                case Kill(number):
                    os.kill(child, number)
                case Resize(rows, columns) if self.terminal >= 0:
                    _resize(self.terminal, rows, columns)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
