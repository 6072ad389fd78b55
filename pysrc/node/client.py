"""The commands' side of the control socket: one request, one answer, blocking."""

from __future__ import annotations

import socket
from typing import TypeVar

from mosix.config.paths import Paths
from mosix.errors import NotRunningError, ProtocolError, from_code
from mosix.node.requests import MAX_ANSWER, MAX_REQUEST, Answer, Failure, Request
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import decode, encode

T = TypeVar("T")


def ask(paths: Paths, request: Request, kind: type[T], timeout_s: float | None = 60.0) -> T:
    """mosd's answer, which must be a `kind`. NotRunningError, or the error that mosd answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(paths.control))
            sock.sendall(frame(encode(request), MAX_REQUEST))
            answer = _receive(sock)
        except TimeoutError as error:
            raise NotRunningError("mosd does not answer", "see its log") from error
        except OSError as error:
            raise NotRunningError(
                f"mosd does not run here: {paths.control}: {error.strerror}",
                "start it as root: mosd --detach",
            ) from error
    if isinstance(answer, Failure):
        raise from_code(answer.code, answer.message, answer.hint)
    if not isinstance(answer, kind):
        raise ProtocolError(f"mosd answers {type(answer).__name__}")
    return answer


def _receive(sock: socket.socket) -> Answer:
    decoder = FrameDecoder(MAX_ANSWER)
    while True:
        data = sock.recv(min(decoder.wanted, 1 << 20))
        if not data:
            raise NotRunningError("mosd closed the connection", "it is stopping; see its log")
        complete = decoder.feed(data)
        if complete is not None:
            answer: Answer = decode(complete, Answer)
            return answer
