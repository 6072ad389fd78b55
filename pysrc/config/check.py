"""Everything that is wrong in /etc/mosix, with file and line: `mosctl config check`, mosconf.

Reads the files with the very functions that mosd starts with, but does not stop at the first
complaint. Needs no mosd and asks none; never writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mosix.config.features import load_features
from mosix.config.lines import FileError
from mosix.config.node import load_grace, load_max_guests, load_port, load_speed, own_ip
from mosix.config.nodemap import read_map
from mosix.config.paths import Paths
from mosix.config.secret import load_secret
from mosix.config.tuning import load_tuning
from mosix.errors import ConfigError

#: Of the manual, but nothing reads them yet.
_UNREAD = {
    "ecsecret": "batch jobs",
    "essecret": "batch jobs",
    "freeze.conf": "freezing",
    "private.conf": "private temporary files",
    "queue.conf": "the queue",
    "retainpri": "other clusters",
}
_DIRECTORIES = ("partners", "grid")


@dataclass(frozen=True)
class Finding:
    """`line` 0: about all of the file. Not `wrong`: mosd starts, but somebody may be surprised."""

    path: str
    line: int
    reason: str
    hint: str = ""
    wrong: bool = True

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        note = "" if self.wrong else "note: "
        return f"{where}: {note}{self.reason}" + (f" ({self.hint})" if self.hint else "")


def check(paths: Paths) -> list[Finding]:
    """In the order of the files; those that are right say nothing."""
    if not paths.config_dir.is_dir():
        return [Finding(str(paths.config_dir), 0, "no such directory", "mosconf makes it")]
    found = list(_check_map(paths))
    readers: list[Callable[[Paths], object]] = [
        load_port,
        load_max_guests,
        load_grace,
        load_speed,
        load_features,
    ]
    for read in readers:
        found += _check(read, paths)
    found += _check_secret(paths)
    found += _check_others(paths)
    return found


def first_error(findings: list[Finding]) -> ConfigError | None:
    """What makes it impossible to use these files."""
    for finding in findings:
        if finding.wrong:
            where = f"{finding.path}, line {finding.line}" if finding.line else finding.path
            return ConfigError(f"{where}: {finding.reason}", finding.hint)
    return None


def files_in(paths: Paths) -> list[str]:
    """The files that mosd reads and that are there."""
    read = (
        paths.map,
        paths.userview,
        paths.own_ip,
        paths.ports,
        paths.max_guests,
        paths.grace,
        paths.speed,
        paths.tuning,
        paths.features,
        paths.own_features,
        paths.secret,
        paths.log_mosrun,
    )
    return [path.name for path in read if path.exists()]


def _check_map(paths: Paths) -> Iterator[Finding]:
    nodes, errors = read_map(paths)
    yield from map(_finding, errors)
    if nodes.ranges and not any(error.path == paths.map for error in errors):
        yield from _check(lambda paths: own_ip(paths, nodes), paths)
        yield from _check(lambda paths: load_tuning(paths, nodes.resolve_number_or_ip), paths)
    for number, ip, line in nodes.nowhere():
        reason = f"{ip} is not in mosix.map: number {number} is no node"
        yield Finding(str(line.path), line.number, reason, wrong=False)


def _check(read: Callable[[Paths], object], paths: Paths) -> Iterator[Finding]:
    try:
        read(paths)
    except FileError as error:
        yield _finding(error)
    except ConfigError as error:
        yield Finding(str(paths.map), 0, error.message, error.hint)


def _check_secret(paths: Paths) -> Iterator[Finding]:
    if os.geteuid():
        if not paths.secret.exists():
            yield Finding(str(paths.secret), 0, "No such file or directory", "mosconf makes one")
        else:
            yield Finding(str(paths.secret), 0, "only root can check it", wrong=False)
        return
    yield from _check(load_secret, paths)


def _check_others(paths: Paths) -> Iterator[Finding]:
    known = set(files_in(paths))
    for name in _DIRECTORIES:
        path = paths.config_dir / name
        if path.exists() and not path.is_dir():
            yield Finding(str(path), 0, "not a directory", f"rm {path}; mkdir {path}")
        elif not path.exists():
            yield Finding(str(path), 0, "no such directory", "mosconf makes it", wrong=False)
        elif name == "partners" and any(path.iterdir()):
            yield Finding(str(path), 0, "other clusters: this version reads none", wrong=False)
    for entry in sorted(paths.config_dir.iterdir()):
        if entry.name in known or entry.name in _DIRECTORIES:
            continue
        what = _UNREAD.get(entry.name)
        reason = f"{what}: this version does not read it" if what else "nobody reads it"
        yield Finding(str(entry), 0, reason, wrong=False)


def _finding(error: FileError) -> Finding:
    return Finding(str(error.path), error.number, error.reason, error.hint)
