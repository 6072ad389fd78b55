"""/etc/mosix/secret: what nodes of one cluster share. Only mosd calls this, as root.

The secret never leaves mosd: not to workers, not into messages, not into logs.
"""

from __future__ import annotations

import os
import stat

from mosix.config.lines import FileError
from mosix.config.paths import Paths

MIN_SECRET_BYTES = 16
MAX_SECRET_BYTES = 4096


def load_secret(paths: Paths) -> bytes:
    """The single line of the secret file.

    ConfigError when it is missing, not root's, accessible to others, not a plain file, shorter
    than 16 characters or more than one line."""
    path = paths.secret
    make = "make one for all nodes: head -c 32 /dev/urandom | base64; owner root, chmod 600"
    try:
        # The checks are about the opened file, so that it cannot be exchanged in between.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FileError(path, 0, str(error.strerror), make) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileError(path, 0, "not a plain file", make)
        if status.st_uid != 0:
            raise FileError(path, 0, f"belongs to uid {status.st_uid}", f"chown root {path}")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise FileError(path, 0, f"mode {mode:03o} lets others in", f"chmod 600 {path}")
        data = os.read(fd, MAX_SECRET_BYTES + 1)
    finally:
        os.close(fd)
    secret = data.strip()
    if len(data) > MAX_SECRET_BYTES:
        raise FileError(path, 0, f"longer than {MAX_SECRET_BYTES} bytes", make)
    if b"\n" in secret:
        raise FileError(path, 0, "more than one line", make)
    if len(secret) < MIN_SECRET_BYTES:
        raise FileError(path, 0, f"shorter than {MIN_SECRET_BYTES} characters", make)
    return secret
