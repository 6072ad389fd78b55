"""Every error a user can meet, and the exit code of its class.

Raised anywhere, turned into one line by the commands: ``mosrun: what: why (hint)``.
The table of exit codes in the manual pages and in ``--help`` is made from `EXIT_CODES`.
This module must never import another one of the package.
"""

from __future__ import annotations

from typing import ClassVar


class MosixError(Exception):
    """Base: what failed and why in ``args[0]``, what to do about it in `hint`.

    `code` is the exit status of a command (mosrun: always 125, so that the program's own
    statuses stay free; see ``LAUNCH_FAILED``).
    """

    code: ClassVar[int] = 1
    summary: ClassVar[str] = "any other failure"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """The one line a user sees, without the command's name. Part of it may come from another
        node: nothing in it moves the cursor."""
        text, hint = (
            "".join(c if c.isprintable() else "?" for c in " ".join(words.split()))
            for words in (self.message, self.hint)
        )
        return f"{text} ({hint})" if hint else text


class UsageError(MosixError):
    code = 2
    summary = "wrong usage of a command"


class NotRunningError(MosixError):
    code = 3
    summary = "mosd does not run here, or does not answer"


class PermissionDeniedError(MosixError):
    code = 4
    summary = "not yours: neither owner nor root"


class NoSuchProcessError(MosixError):
    code = 5
    summary = "no such process, or not part of a job"


class UnknownNodeError(MosixError):
    code = 6
    summary = "the node is not in mosix.map"


class NodeDownError(MosixError):
    code = 7
    summary = "the node does not answer"


class RefusedError(MosixError):
    code = 8
    summary = "the node refused (wrong secret, other version, not allowed, out of memory)"


class CannotMoveError(MosixError):
    code = 9
    summary = "the process cannot move, and why"


class MoveFailedError(MosixError):
    code = 10
    summary = "the move was begun and failed; the process goes on where it was"


class TransferCutError(MoveFailedError):
    """The connection ended or stood still in the middle of an image: the other side may know
    more."""


class ConfigError(MosixError):
    code = 11
    summary = "a file under /etc/mosix is missing, unsafe or wrong"


class KernelError(MosixError):
    code = 12
    summary = "this kernel lacks something that is needed"


class ProtocolError(MosixError):
    code = 13
    summary = "a peer sent something that is not allowed"


class MachineLostError(MosixError):
    code = 14
    summary = "a virtual machine of the lab is lost: what ran in it has no result"


#: mosrun's own failures; 126 and 127 are env(1)'s: found but not executable, not found.
LAUNCH_FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127

EXIT_CODES: dict[int, str] = {
    cls.code: cls.summary
    for cls in (
        MosixError,
        UsageError,
        NotRunningError,
        PermissionDeniedError,
        NoSuchProcessError,
        UnknownNodeError,
        NodeDownError,
        RefusedError,
        CannotMoveError,
        MoveFailedError,
        ConfigError,
        KernelError,
        ProtocolError,
        MachineLostError,
    )
}


def from_code(code: int, message: str, hint: str = "") -> MosixError:
    """The error of class `code`, for errors that travelled over a socket."""
    for cls in MosixError.__subclasses__():
        if cls.code == code:
            return cls(message, hint)
    return MosixError(message, hint)
