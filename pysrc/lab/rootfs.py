"""What a node sees as its file system: the host's, with some directories of its own.

`enter_root` is called by the process that becomes a node's PID 1, in its new namespaces. Own per
node: /etc (host's below, changes stay in the node), /etc/mosix, /run, /tmp, /var/tmp, /dev/shm,
/node, /proc, /sys. Everything else is shared with the host. All of it vanishes with the node's
mount namespace; nothing is ever mounted where the host sees it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import mosix
import msgspec
from mosix.lab import kernel
from mosix.lab.kernel import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, mount

_OWN = ("etc", "node", "proc", "run", "sys", "tmp")
#: a node's directories that hide the host's
_HIDING = ("/run", "/tmp", "/var/tmp")


class Files(msgspec.Struct, frozen=True):
    """Content of the files that make a node a member of its cluster."""

    hostname: str
    ips: tuple[str, ...]
    own: str
    secret: str
    #: whether /etc/mosix is written; else the node has none, as a machine before its installation
    configured: bool = True


def enter_root(state: Path, files: Files) -> None:
    """Build the node's root under `state`/root and make it ours. OSError says what failed."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    root = state / "root"
    root.mkdir(exist_ok=True)
    mount("lab-root", str(root), "tmpfs", MS_NODEV, "mode=755")
    _share(root)
    _own_etc(root)
    _tmpfs(root / "run", "mode=755")
    for name in ("tmp", "node", "var/tmp"):
        _tmpfs(root / name, "mode=1777")
    if (root / "dev/shm").is_dir():
        _tmpfs(root / "dev/shm", "mode=1777")
    if (root / "dev/mqueue").is_dir():
        mount("mqueue", str(root / "dev/mqueue"), "mqueue")
    (root / "run/lab").mkdir()
    (root / "run/lock").mkdir(mode=0o1777)
    mount(str(state), str(root / "run/lab"), flags=MS_BIND)
    (root / "proc").mkdir()
    mount("proc", str(root / "proc"), "proc", MS_NOSUID | MS_NODEV)
    _own_sys(root)
    _show_ourselves(root)
    old = root / ".old"
    old.mkdir()
    kernel.pivot_root(str(root), str(old))
    os.chdir("/")
    kernel.unmount("/.old", MNT_DETACH)
    os.rmdir("/.old")
    kernel.set_hostname(files.hostname)
    write_files(files)


def _share(root: Path) -> None:
    for entry in os.scandir("/"):
        target = root / entry.name
        if entry.name in _OWN:
            continue
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            target.mkdir()
            mount(entry.path, str(target), flags=MS_BIND | MS_REC)
        elif entry.is_file():
            target.touch()
            mount(entry.path, str(target), flags=MS_BIND)


def _tmpfs(where: Path, options: str) -> None:
    where.mkdir(exist_ok=True)
    mount(f"lab-{where.name}", str(where), "tmpfs", MS_NOSUID | MS_NODEV, options)


def _own_etc(root: Path) -> None:
    etc = root / "etc"
    _tmpfs(etc, "mode=755")
    upper, work = etc / "upper", etc / "work"
    upper.mkdir()
    work.mkdir()
    # Mounted over the tmpfs that holds its layers, which are then out of sight.
    mount("lab-etc", str(etc), "overlay", data=f"lowerdir=/etc,upperdir={upper},workdir={work}")


def _own_sys(root: Path) -> None:
    """A sysfs that shows the node's network devices, with the host's mounts (cgroups) in it."""
    target = root / "sys"
    target.mkdir()
    mount("sysfs", str(target), "sysfs", MS_NOSUID | MS_NODEV)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split()[4]
        # In the order of mounting, so that what lies inside another mount comes after it.
        if where.startswith("/sys/") and Path(f"{root}{where}").is_dir():
            mount(where, f"{root}{where}", flags=MS_BIND)


def shown_paths() -> set[Path]:
    """This package and its Python, where a directory of a node's own would hide them."""
    ours = {Path(mosix.__file__).resolve().parent.parent, Path(sys.prefix)}
    hiding = tuple(f"{path}/" for path in _HIDING)
    return {path for path in ours if str(path).startswith(hiding)}


def _show_ourselves(root: Path) -> None:
    for path in shown_paths():
        target = Path(f"{root}{path}")
        target.mkdir(parents=True, exist_ok=True)
        mount(str(path), str(target), flags=MS_BIND | MS_REC)


def write_files(files: Files) -> None:
    """Make the machine or namespace that we are in the node that `files` says."""
    own = Path("/etc/mosix")
    if own.exists():
        shutil.rmtree(own)  # the host's; gone here only
    if files.configured:
        _write_configuration(own, files)
    Path("/etc/hostname").write_text(f"{files.hostname}\n")
    names = [f"{ip}\tn{number}" for number, ip in enumerate(files.ips, 1)]
    Path("/etc/hosts").write_text("\n".join(["127.0.0.1\tlocalhost", *names]) + "\n")
    Path("/node/name").write_text(f"{files.hostname}\n")


def _write_configuration(own: Path, files: Files) -> None:
    own.mkdir(mode=0o755)
    first, count = files.ips[0], len(files.ips)
    (own / "mosix.map").write_text(f"# nodes of this lab\n{first} {count}\n")
    (own / "userview.map").write_text(f"1 {first} {count}\n")
    (own / "mosip").write_text(f"{files.own}\n")
    secret = own / "secret"
    secret.touch(mode=0o600)
    secret.write_text(f"{files.secret}\n")
