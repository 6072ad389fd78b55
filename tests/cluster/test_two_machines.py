"""docs/two-machines.md, typed word by word into machines that nobody configured."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mosix.config import DEFAULT_PEER_PORT
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.terminal import Terminal, terminal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "two-machines.md").read_text()
BLOCK = re.compile(r"^```sh\n# (.*?)\n(.*?)\n```$", re.M | re.S)
#: Title: its blocks, each with where it is typed.
SECTIONS: dict[str, list[tuple[str, str]]] = {
    section.split("\n")[0]: BLOCK.findall(section) for section in PAGE.split("\n## ")
}
BLOCKS = [block for blocks in SECTIONS.values() for block in blocks]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: scripts/setup of this tree makes this tree's environment; other ones are not its business.
SET_UP_HERE = Path(sys.prefix) == ROOT / ".venv"


class Machine:
    """A root shell at a terminal of a node, in the folder of the source."""

    def __init__(self, node: NodeHandle, screen: Terminal) -> None:
        self.node = node
        self.screen = screen
        self._typed = 0
        # So that only what commands say is on the screen.
        screen.type("PS1= PS2=; stty -echo\n")
        # Its own, as on a machine of its own: in the lab it would be the host's.
        self.type("mount -t tmpfs none /usr/local/bin")
        self.type(f"export PATH={SYSTEM_PATH}")

    def type(self, text: str, typed_in: str = "") -> str:
        """What is said until all of it is done; every line must succeed. `typed_in`: what a
        person types while the last line reads the terminal, before ^D."""
        said = ""
        lines = text.split("\n")
        for line in lines:
            self._typed += 1
            self.screen.type(f"{line}\n")
            if typed_in and line == lines[-1]:
                self.screen.type(f"{typed_in}\n\x04")
            # Typed so, the mark is not mistaken for its own echo.
            self.screen.type(f"echo @'@'{self._typed}:$?@@\n")
            answer = self.screen.expect(f"@@{self._typed}:")
            status = self.screen.expect("@@").removesuffix("@@")
            answer = answer.removesuffix(f"@@{self._typed}:").replace("\r", "")
            assert status == "0", f"{line}: status {status}: {answer}"
            said += answer
        return said

    def leave(self, text: str) -> None:
        """Stop mosd as the page says, and see it end."""
        self.type(text)
        pid_file = self.node.path("/run/mosix/mosd.pid")
        drive.wait_for("mosd ends", lambda: not pid_file.read_text().strip())
        self.node.close()


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """Three machines without /etc/mosix."""
    name = f"t{os.getpid()}-bare"
    try:
        yield Cluster.up(name, 3, "--no-config")
    finally:
        drive.down(name)


@pytest.fixture(scope="module")
def machines(bare: Cluster) -> Iterator[dict[str, Machine]]:
    with ExitStack() as stack:
        found = {}
        for where, node in zip(("here", "there", "alone"), bare.nodes, strict=True):
            shell = node.argv(
                ["bash", "--norc", "--noprofile", "--noediting"], cwd=str(ROOT), setsid=True
            )
            found[where] = Machine(node, stack.enter_context(terminal(shell)))
        yield found


def install(machine: Machine, here: NodeHandle, there: NodeHandle) -> None:
    """Steps 1 and 2."""
    ((_, addresses),) = SECTIONS["1. Addresses"]
    ((_, commands),) = SECTIONS["2. Install"]
    own = {"HERE": here.ip, "THERE": there.ip}
    machine.type(
        re.sub(r"^(\w+)=.*$", lambda line: f"{line[1]}={own[line[1]]}", addresses, flags=re.M)
    )
    if SET_UP_HERE:
        machine.type(commands)
    else:
        links = commands.partition("\n")[2].replace('"$PWD"/.venv', sys.prefix)
        machine.type(links)
    assert machine.node.path("/usr/local/bin/mosd").is_symlink()


def test_the_page_leads_to_a_cluster_in_which_a_program_moves(
    machines: dict[str, Machine], bare: Cluster
) -> None:
    here, there = machines["here"], machines["there"]
    assert not any(machine.node.path("/etc/mosix").exists() for machine in (here, there))
    for machine in (here, there):
        install(machine, here.node, there.node)
    shown = ""
    steps = [block for title in ("3. Join", "5. Start", "6. Try it") for block in SECTIONS[title]]
    for where, text in steps:
        if "with systemd" in where:
            continue
        if where == "there":
            there.type(text, typed_in=shown.strip())
        elif where == "both":
            shown = here.type(text) + there.type(text)
        elif "migrate --wait" in text:
            # Its reader has seen the job in the list.
            drive.wait_for("the job is listed", lambda: here.node.jobs() != [] or None)
            shown = here.type(text)
            rows = [line.split() for line in shown.splitlines() if "sleep 600" in line]
            assert [row[2] for row in rows if row[0].isdigit()][:2] == ["2", "home"]
            assert len(re.findall(r"^moved: frozen for .* ms", shown, re.M)) == 2
        else:
            assert where == "here"
            shown = here.type(text)
            if "rstatus" in text:
                assert f"node 2, {there.node.ip}" in shown
                assert shown.splitlines()[-1] == "3"
    assert f"{sum(range(3000000))} n1" in shown
    assert there.node.jobs() == []
    ((where, text),) = SECTIONS["Leaving"]
    assert where == "both"
    for machine in (here, there):
        machine.leave(text)


def test_a_cluster_of_one_machine_works(machines: dict[str, Machine], bare: Cluster) -> None:
    alone = machines["alone"]
    install(alone, alone.node, alone.node)
    ((where, text),) = SECTIONS["One machine"]
    assert where == "alone"
    assert "it works\n" in alone.type(text)
    assert f"node 1, {alone.node.ip}, n3\n" in alone.type("mosctl whois")
    alone.type("mosrun -1 sh -c 'exit 0'")
    alone.type("mosrun sleep 600 &")
    drive.wait_for("the job is listed", lambda: alone.node.jobs() != [] or None)
    alone.type("migrate --wait $! home")
    alone.type("migrate --wait $! 1")
    assert [row["where"] for row in alone.node.jobs()] == ["home"]
    done = alone.node.run(["migrate", str(alone.node.jobs()[0]["pid"]), "2"])
    assert (done.returncode, "no node number 2" in done.stderr) == (6, True)
    alone.type("kill $!")
    alone.leave(SECTIONS["Leaving"][0][1])


def test_the_firewall_lets_the_port_through() -> None:
    ((_, text),) = SECTIONS["4. Firewall"]
    for line in text.replace("\\\n", "").splitlines():
        assert re.search(rf"\b{DEFAULT_PEER_PORT}\b", line)
        assert "$THERE" in line
        # ufw opens a port for both where neither is named
        assert ("tcp" in line) == ("udp" in line) == ("ufw" not in line)


def test_every_block_says_where_it_is_typed() -> None:
    assert len(BLOCKS) == PAGE.count("```sh\n")
    known = {"here", "there", "both", "alone"}
    assert {re.split(r"[ ,]", where)[0] for where, _ in BLOCKS} == known
