"""Stock Debian kernels for the lab's virtual machines: found, downloaded, unpacked, kept.

Called by `mosix.lab.vm` and by whoever builds the module for them. A kernel is named by its
series (6.1, 6.12); the newest that apt knows is taken, unless one of the series is here already.
It lies with its modules, the headers that modules are built with, and an initramfs that mounts
the host's root in `cache()`/RELEASE. Never installs a package, never touches /boot or /lib/modules.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mosix.errors import MosixError, UsageError

_INIT = Path(__file__).with_name("initramfs.sh")
_BUSYBOX = Path("/bin/busybox")
#: what a guest needs before it has a root; their dependencies come along
_BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net", "virtio_console")
_SERIES = re.compile(r"[0-9]+\.[0-9]+")
#: x86 boot protocol (Documentation/arch/x86/boot.rst): setup_sects, payload_offset and _length
_SETUP_SECTS, _PAYLOAD = 0x1F1, 0x248
_SECTOR = 512


def cache() -> Path:
    """Where kernels are kept: $MOSIX_CACHE, or /var/cache/mosix."""
    return Path(os.environ.get("MOSIX_CACHE", "/var/cache/mosix"))


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel."""

    release: str
    tree: Path

    @property
    def vmlinux(self) -> Path:
        """The uncompressed kernel: a guest without hardware acceleration starts it much sooner."""
        return self.tree / "vmlinux"

    @property
    def modules(self) -> Path:
        return self.tree / "lib/modules" / self.release

    @property
    def headers(self) -> Path:
        """What `make -C` takes to build a module."""
        return self.tree / "usr/src" / f"linux-headers-{self.release}"

    def initramfs(self) -> Path:
        """The small root that mounts the real one; made anew when what goes into it changed."""
        content = hashlib.sha256(_INIT.read_bytes() + _BUSYBOX.read_bytes()).hexdigest()[:12]
        path = self.tree / f"initramfs-{content}.cpio"
        if not path.exists():
            with _locked():
                for old in self.tree.glob("initramfs-*.cpio"):
                    old.unlink()
                _write_initramfs(self, path)
        return path


def kernel(series: str) -> Kernel:
    """The kernel of a series such as "6.1"; MosixError says why there is none."""
    if not _SERIES.fullmatch(series):
        raise UsageError(f"{series!r} is no kernel series", hint="for example --kernel 6.1,6.12")
    with _locked():
        here = [path.parent.name for path in cache().glob(f"{series}.*/complete")]
        if here:
            release = _newest(here)
        else:
            release = _known_to_apt(series)
            _fetch(release)
    return Kernel(release, cache() / release)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One process at a time fills the cache."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        fd = os.open(cache(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MosixError(f"cannot keep kernels in {cache()}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _newest(releases: list[str]) -> str:
    def older(left: str, right: str) -> int:
        compare = ["dpkg", "--compare-versions", left, "lt", right]
        return -1 if subprocess.run(compare, check=False).returncode == 0 else 1

    return max(releases, key=functools.cmp_to_key(older))


def _known_to_apt(series: str) -> str:
    pattern = re.compile(rf"linux-image-({re.escape(series)}\.[0-9][0-9a-z.+~-]*-amd64)")
    for fresh in (False, True):
        if fresh:
            _run(["apt-get", "-q", "update"])
        names = _run(["apt-cache", "pkgnames", f"linux-image-{series}."]).split()
        found = [
            match[1]
            for name in names
            if (match := pattern.fullmatch(name)) and not re.search("-(cloud|rt)-", name)
        ]
        if found:
            return _newest(found)
    raise MosixError(
        f"apt knows no stock kernel {series}",
        hint="Debian 12 with bookworm-security has 6.1 and 6.12",
    )


def _run(command: list[str], where: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=where,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError as error:
        raise MosixError(
            f"{command[0]} is not installed", hint="scripts/setup installs it"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise MosixError(
            f"{' '.join(command)} ended with {done.returncode}: {said[-1] if said else ''}"
        )
    return done.stdout


def _packages(release: str) -> list[str]:
    headers = f"linux-headers-{release}"
    depends = _run(["apt-cache", "depends", headers])
    wanted = re.findall(r"Depends: (linux-headers-\S+-common|linux-kbuild-\S+)", depends)
    return [f"linux-image-{release}", headers, *wanted]


def _fetch(release: str) -> None:
    """Download and unpack; the release's directory appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".new-") as name:
        new = Path(name)
        debs, tree = new / "debs", new / "tree"
        debs.mkdir()
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *_packages(release)],
             debs)  # fmt: skip
        for deb in sorted(debs.iterdir()):
            _run(["dpkg-deb", "-x", str(deb), str(tree)])
        if not (tree / "lib/modules").exists():
            (tree / "lib").symlink_to("usr/lib")
        final = cache() / release
        _point_headers_at(tree, release, final)
        (tree / "vmlinux").write_bytes(_uncompressed(tree / "boot" / f"vmlinuz-{release}"))
        _run(["depmod", "-b", str(tree), release])
        (tree / "complete").touch()
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)


def _point_headers_at(tree: Path, release: str, final: Path) -> None:
    """Debian's headers name each other as they lie when installed: under /usr/src."""
    makefile = tree / "usr/src" / f"linux-headers-{release}" / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{final}/usr/src/"))
    for name in ("build", "source"):
        link = tree / "lib/modules" / release / name
        target = os.readlink(link)
        link.unlink()
        link.symlink_to(f"{final}{target}")


def _uncompressed(bzimage: Path) -> bytes:
    data = bzimage.read_bytes()
    begin = ((data[_SETUP_SECTS] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    payload = data[begin + offset : begin + offset + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the size, which is no part of the stream.
        decompress = ["zstd", "-dcq"]
        elf = subprocess.run(
            decompress, input=payload[:-4], stdout=subprocess.PIPE, check=True
        ).stdout
    else:
        raise MosixError(f"{bzimage.name} is compressed in an unknown way: {payload[:6].hex()}")
    if not elf.startswith(b"\x7fELF"):
        raise MosixError(f"{bzimage.name} holds no ELF image")
    return elf


def _boot_order(made: Kernel) -> list[Path]:
    """Files of the modules for the initramfs, each after what it depends on."""

    def module(file: str) -> str:
        return Path(file).name.split(".ko")[0].replace("-", "_")

    builtin = {module(line) for line in (made.modules / "modules.builtin").read_text().split()}
    files: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in (made.modules / "modules.dep").read_text().splitlines():
        file, _, wanted = line.partition(":")
        files[module(file)] = file
        needs[module(file)] = [module(other) for other in wanted.split()]
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise MosixError(f"kernel {made.release} has no module {name}")
        for other in needs[name]:
            add(other)
        order.append(name)

    for name in _BOOT_MODULES:
        add(name)
    return [made.modules / files[name] for name in order]


def _write_initramfs(made: Kernel, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".new-") as name:
        root = Path(name) / "root"
        for directory in ("bin", "dev", "mod", "new", "proc", "ro", "sys", "up"):
            (root / directory).mkdir(parents=True)
        shutil.copy(_BUSYBOX, root / "bin/busybox")
        shutil.copy(_INIT, root / "init")
        (root / "init").chmod(0o755)
        order = _boot_order(made)
        for number, file in enumerate(order):
            data = file.read_bytes()
            if file.suffix == ".xz":
                data = lzma.decompress(data)
            (root / "mod" / f"{number:02}.ko").write_bytes(data)
        names = sorted(str(each.relative_to(root)) for each in root.rglob("*"))
        new = Path(name) / "cpio"
        with new.open("wb") as archive:
            subprocess.run(
                [str(_BUSYBOX), "cpio", "-o", "-H", "newc"],
                cwd=root,
                input="\n".join(names).encode(),
                stdout=archive,
                stderr=subprocess.DEVNULL,
                check=True,
            )
        new.rename(path)
