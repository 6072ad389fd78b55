"""Reading small line-oriented files with complaints that name file and line.

Used by the parsers of this package. Never interprets what the fields mean.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mosix.errors import ConfigError

#: More is an accident: the largest file of the manual has 256 short lines.
MAX_FILE_BYTES = 256 << 10

#: MOSIX(7), requirements: addresses of nodes.
FIRST_ADDRESS = ipaddress.IPv4Address("0.1.0.0")
LAST_ADDRESS = ipaddress.IPv4Address("255.254.254.255")


class FileError(ConfigError):
    """A complaint about `path`; `number` is that of the line, 0: about all of it."""

    def __init__(self, path: Path, number: int, reason: str, hint: str = "") -> None:
        where = f"{path}, line {number}" if number else f"{path}"
        super().__init__(f"{where}: {reason}", hint)
        self.path = path
        self.number = number
        self.reason = reason


@dataclass(frozen=True)
class Line:
    """One line that says something. `fields` are separated by white space."""

    path: Path
    number: int
    text: str

    @property
    def fields(self) -> list[str]:
        return self.text.split()

    def error(self, message: str, hint: str = "") -> FileError:
        return FileError(self.path, self.number, message, hint)


def read_text(path: Path, hint: str) -> str:
    """Contents of `path`; ConfigError with `hint` when it is missing, unreadable or not text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileError(path, 0, str(error.strerror), hint) from error
    if len(data) > MAX_FILE_BYTES:
        raise FileError(path, 0, f"larger than {MAX_FILE_BYTES} bytes", hint)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FileError(path, line, "not UTF-8 text", hint) from error


def lines(path: Path, text: str) -> Iterator[Line]:
    """Lines that are neither empty nor a comment ('#')."""
    for number, raw in enumerate(text.split("\n"), start=1):
        stripped = raw.strip()
        if stripped and not stripped.startswith("#"):
            yield Line(path, number, stripped)


def address(line: Line, text: str) -> ipaddress.IPv4Address:
    """IPv4 address of an IP or host name, in the range the manual allows."""
    try:
        found = ipaddress.IPv4Address(text)
    except ValueError:
        if text.replace(".", "").isdigit() or ":" in text:
            raise line.error(f"'{text}' is not an IPv4 address", "write it as a.b.c.d") from None
        try:
            found = ipaddress.IPv4Address(socket.gethostbyname(text))
        except (OSError, UnicodeError) as error:
            raise line.error(
                f"host name '{text}' is not known", "check /etc/hosts, or write the IP"
            ) from error
    if not FIRST_ADDRESS <= found <= LAST_ADDRESS:
        raise line.error(
            f"{found} cannot be a node", f"addresses are from {FIRST_ADDRESS} to {LAST_ADDRESS}"
        )
    return found


def integer(line: Line, text: str, what: str, low: int, high: int) -> int:
    """`text` as a decimal number in low..high."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        raise line.error(f"{what} must be a number, not '{text}'")
    value = int(text)
    if not low <= value <= high:
        raise line.error(f"{what} must be {low} to {high}, not {value}")
    return value
