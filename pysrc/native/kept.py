"""Small files of the kernel that are read every second: opened once, then read from the beginning.

Used by who measures a node (`mosix.balancer.measure`, `mosix.remote.cgroup`). Opening, asking what
was opened and closing cost several times what the text itself does. Only for files whose content
the kernel makes anew for each read at offset 0 (/proc, cgroup, PSI). Never writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

#: Larger texts are read in parts.
_PART: Final = 1 << 13
#: The descriptor's file is gone; there may be another one of that name.
_GONE: Final = (errno.ENODEV, errno.ESRCH, errno.ENOENT)


class KeptFiles:
    """Descriptors by path, closed with `close` or with it. For any thread, one at a time a path."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def read(self, path: str) -> str:
        """The text now. OSError, as of open(2) and read(2)."""
        fd = self._fds.get(path)
        if fd is not None:
            try:
                return _text(fd)
            except OSError as error:
                self._forget(path)
                if error.errno not in _GONE:
                    raise
        fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _text(fd)
        except OSError:
            self._forget(path)
            raise

    def keep(self, paths: set[str]) -> None:
        """Closes all others."""
        for path in self._fds.keys() - paths:
            self._forget(path)

    def _forget(self, path: str) -> None:
        fd = self._fds.pop(path, None)
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def close(self) -> None:
        self.keep(set())

    def __del__(self) -> None:
        self.close()


def _text(fd: int) -> str:
    data = part = os.pread(fd, _PART, 0)
    while len(part) == _PART:
        part = os.pread(fd, _PART, len(data))
        data += part
    return data.decode("utf-8", "replace")
