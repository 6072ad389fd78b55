"""Virtual machines of the lab: QEMU started, watched and judged from outside.

`cluster` starts one for each node of a lab brought up with --vm. A machine runs a stock kernel
(`mosix.lab.kernels`) on the host's root, read-only, with a layer of its own in memory. It tells
that it is up through a virtio-serial port whose other end is a file, so nothing on its network
can say it instead; its console goes to a file, in which `splats` finds what a kernel prints when
something is wrong with it. A machine that ends by itself is lost (`MachineLostError`): that is
never the failure of what ran in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosix.errors import KernelError, MachineLostError
from mosix.lab import kernels
from mosix.lab.kernels import Kernel
from mosix.lab.rootfs import shown_paths
from mosix.lab.state import Process

QEMU = "qemu-system-x86_64"
#: guests idle in the lab for most of their life; beyond this translated code is thrown away
_TRANSLATION_MB = 512
_KVM_DEADLINE_S = 8.0
_READY = "ready"
_POLL_S = 0.02
_SPLAT = re.compile(
    r"BUG:|WARNING:|Oops|general protection fault|Kernel panic|Call Trace|refcount_t|use-after-free"
    r"|INFO: task .* blocked|rcu.*stall|soft lockup|unchecked MSR"
)
#: printed by every boot of a stock kernel in such a machine; no fault of anybody's
_HARMLESS = re.compile(r"Spectre|mitigations|x2apic")
_COMMAND_LINE = (
    # Console messages of level warning and worse; the machine ends when its kernel panics.
    "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable "
    "no_timer_check rcupdate.rcu_expedited=1 net.ifnames=0 random.trust_cpu=on"
)


@dataclass(frozen=True)
class Device:
    """A network device: the host's tap, and the address the guest has on it (A.B.C.D/24)."""

    tap: str
    mac: str
    address: str


def acceleration(kernel: Kernel) -> str:
    """What a guest runs with: "kvm" if one really does (/dev/kvm may be there, and every guest
    hang), else "tcg".

    Tried once per boot of the host, for at most `_KVM_DEADLINE_S`.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = kernels.cache() / f"acceleration-{boot}"
    if known.exists():
        return known.read_text()
    found = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _runs_with_kvm(kernel) else "tcg"
    for old in kernels.cache().glob("acceleration-*"):
        old.unlink(missing_ok=True)
    known.write_text(found)
    return found


def _runs_with_kvm(kernel: Kernel) -> bool:
    command = [*_machine("kvm", 256), *_boot(kernel, "lab.probe"), "-serial", "stdio"]
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_KVM_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return b"lab: a guest runs" in done.stdout


def _machine(accel: str, memory_mb: int) -> list[str]:
    # One CPU: with several, each wake-up between them costs 2.4 ms without hardware acceleration.
    accelerator = accel if accel == "kvm" else f"tcg,thread=multi,tb-size={_TRANSLATION_MB}"
    words = f"-nodefaults -no-user-config -display none -no-reboot -cpu max -smp 1 -m {memory_mb}"
    return [QEMU, "-M", "q35", "-accel", accelerator, *words.split()]


def _boot(kernel: Kernel, more: str) -> list[str]:
    initramfs = str(kernel.initramfs())
    append = f"{_COMMAND_LINE} {more}"
    return ["-kernel", str(kernel.vmlinux), "-initrd", initramfs, "-append", append]


def command(
    where: Path, kernel: Kernel, accel: str, memory_mb: int, devices: Sequence[Device]
) -> list[str]:
    """Command line of a machine whose directory, shared with it, is `where`."""
    line = _machine(accel, memory_mb)
    for tag, path, options in (("root", "/", ",readonly=on"), ("lab", f"{where}", "")):
        line += [
            "-fsdev",
            f"local,id={tag},path={path},security_model=none,multidevs=remap{options}",
        ]
        line += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    for number, device in enumerate(devices):
        line += ["-netdev", f"tap,id=n{number},ifname={device.tap},script=no,downscript=no"]
        line += ["-device", f"virtio-net-pci,netdev=n{number},mac={device.mac},romfile="]
    line += ["-chardev", f"file,id=console,path={where.parent}/{where.name}.console"]
    line += ["-serial", "chardev:console"]
    line += ["-chardev", f"file,id=status,path={where.parent}/{where.name}.status"]
    line += ["-device", "virtio-serial-pci"]
    line += ["-device", "virtserialport,chardev=status,name=mosix.status"]
    names = ("lab.address", "lab.control")
    words = [f"{name}={each.address}" for name, each in zip(names, devices, strict=False)]
    return line + _boot(kernel, " ".join(words))


def prepare(where: Path, kernel: Kernel, first: Sequence[str], environment: dict[str, str]) -> None:
    """Write into the shared directory what the initramfs reads; `first`: the machine's PID 1."""
    (where / "modules").write_text(f"{kernel.modules}\n")
    (where / "shown").write_text("".join(f"{path}\n" for path in sorted(shown_paths())))
    words = [f"{name}={value}" for name, value in environment.items()]
    quoted = " ".join(
        "'" + word.replace("'", "'\\''") + "'" for word in ["env", "-i", *words, *first]
    )
    (where / "boot").write_text(f"exec {quoted}\n")


class Watch:
    """A machine seen from outside."""

    def __init__(self, where: Path, process: Process) -> None:
        self._where = where
        self._process = process

    def _file(self, kind: str) -> str:
        path = self._where.with_name(f"{self._where.name}.{kind}")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def console(self) -> str:
        return self._file("console")

    def splats(self) -> list[str]:
        """Lines on the console that say that something is wrong with the machine's kernel."""
        lines = self.console.splitlines()
        return [line for line in lines if _SPLAT.search(line) and not _HARMLESS.search(line)]

    def check(self) -> None:
        """MachineLostError if it has ended."""
        if not self._process.alive():
            said = (self.splats() or self.console.strip().splitlines()[-1:]) + self._file(
                "qemu"
            ).strip().splitlines()[-1:]
            raise MachineLostError(
                f"the virtual machine {self._where.name} is lost: {'; '.join(said) or 'silent'}",
                hint=f"its console: {self._where}.console",
            )

    def wait_until_ready(self, deadline_s: float) -> None:
        """Until its PID 1 says so; MachineLostError, or KernelError after the deadline."""
        end = time.monotonic() + deadline_s
        while _READY not in self._file("status").split():
            self.check()
            if time.monotonic() > end:
                raise KernelError(
                    f"the virtual machine {self._where.name} is not up within {deadline_s:.0f} s",
                    hint=f"its console: {self._where}.console",
                )
            time.sleep(_POLL_S)
