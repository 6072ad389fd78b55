"""PID 1 of a virtual machine of the lab: makes it the node that the host says, and keeps it.

Started by the initramfs as ``python -m mosix.lab.vm_init``. What the host wants lies in
/run/lab/guest.json (`Guest`). It starts the agent that runs commands for the host, tells through
the virtio-serial port that the machine is up, and goes on as PID 1 of any other node does
(`mosix.lab.init`). When it ends, the kernel panics and the machine is lost: that is meant.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
from mosix.lab import kernel, vm_agent
from mosix.lab.init import STATE, Init
from mosix.lab.rootfs import Files, write_files

_PORTS = Path("/sys/class/virtio-ports")


class Guest(msgspec.Struct, frozen=True):
    """What a machine is to be."""

    files: Files
    #: command line of mosd; empty: none is started
    mosd: list[str]
    #: the machine's and the host's addresses on the network that only commands use
    control: str
    host: str
    #: the kernel module to be loaded before mosd is started; empty: none
    module: str = ""


def main() -> int:
    guest = msgspec.json.decode((STATE / "guest.json").read_bytes(), type=Guest)
    if guest.module:
        subprocess.run(["insmod", guest.module], check=True)
    kernel.set_hostname(guest.files.hostname)
    write_files(guest.files)
    # As a service manager leaves them to what it starts.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 524288))
    listener = vm_agent.listen(guest.control)
    if os.fork() == 0:
        vm_agent.serve(listener, guest.host)
    listener.close()
    go_read, go_write = os.pipe()
    os.write(go_write, b"m" if guest.mosd else b"-")
    os.close(go_write)
    _tell("ready")
    return Init(guest.mosd).run(go_read)


def _tell(word: str) -> None:
    for port in _PORTS.iterdir():
        if (port / "name").read_text().strip() == "mosix.status":
            Path(f"/dev/{port.name}").write_text(f"{word}\n")


if __name__ == "__main__":
    sys.exit(main())
