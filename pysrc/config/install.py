"""Puts changed files into /etc/mosix: all that are right, or none. Called by mosconf, as root.

They are written beside the others, checked together with them as mosd would read them, and each
takes its place in one step: whoever reads meanwhile finds the old or the new one, and after a
crash no half of one is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mosix.config.check import Finding, check, first_error
from mosix.config.paths import Paths
from mosix.errors import ConfigError

#: The last to change: it is what others act upon.
_LAST = "mosix.map"


@dataclass(frozen=True)
class Content:
    """Of one file. `text` None: it is to be removed."""

    text: str | None
    mode: int = 0o644


def install(paths: Paths, files: Mapping[str, Content]) -> list[Finding]:
    """Writes `files`, by name, and makes the directories of the manual. What might surprise is
    returned. ConfigError: nothing was changed."""
    try:
        paths.config_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=paths.config_dir) as made:
            staged = Path(made)
            _stage(paths, staged, files)
            findings = [
                replace(finding, path=finding.path.replace(made, str(paths.config_dir)))
                for finding in check(Paths(staged, paths.run_dir))
            ]
            error = first_error(findings)
            if error is not None:
                raise ConfigError(error.message.replace(made, str(paths.config_dir)), error.hint)
            for directory in (paths.partners, paths.grid):
                directory.mkdir(mode=0o755, exist_ok=True)
            for name in sorted(files, key=lambda name: (name == _LAST, name)):
                if files[name].text is None:
                    (paths.config_dir / name).unlink(missing_ok=True)
                else:
                    (staged / name).rename(paths.config_dir / name)
            _sync(paths.config_dir)
    except OSError as error:
        raise ConfigError(f"{error.filename or paths.config_dir}: {error.strerror}") from error
    return findings


def _stage(paths: Paths, staged: Path, files: Mapping[str, Content]) -> None:
    """In `staged`, which only root can enter: what there will be."""
    for entry in paths.config_dir.iterdir():
        if entry.is_file() and not entry.is_symlink() and entry.name not in files:
            shutil.copy2(entry, staged / entry.name)
            status = entry.stat()
            os.chown(staged / entry.name, status.st_uid, status.st_gid)
        elif entry.is_symlink() and entry.name not in files:
            (staged / entry.name).symlink_to(entry)
    for directory in (paths.partners, paths.grid):
        (staged / directory.name).mkdir()
    for name, content in files.items():
        if content.text is None:
            continue
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(staged / name, flags, content.mode)
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), content.mode)
            file.write(content.text)
            file.flush()
            os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
