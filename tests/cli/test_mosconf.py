"""mosconf: asks only what it cannot find out, writes everything or nothing, breaks nothing."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mosix.config import Paths, load, load_secret
from mosix.config.node import interface_ips
from mosix.config.proposal import Wishes, propose

ROOT = Path(__file__).resolve().parents[2]
MOSCONF = [sys.executable, "-m", "mosix.cli.mosconf"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "etc", tmp_path / "run")


def environment(paths: Paths) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}/build/typed",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MOSIX_CONFIG_DIR": str(paths.config_dir),
        "MOSIX_RUN_DIR": str(paths.run_dir),
        "LC_ALL": "C.UTF-8",
    }


def mosconf(paths: Paths, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    given = {"input": "", **more}
    return subprocess.run(
        [*MOSCONF, *options],
        env=environment(paths),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **given,  # type: ignore[call-overload]
    )


def guided(paths: Paths, *answers: str) -> tuple[int, str]:
    """Types each answer when something is asked; status, and what was on the terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        MOSCONF, env=environment(paths), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = ""
        waiting = list(answers)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.2)[0]:
                if waiting and said.endswith(": "):
                    os.write(ours, f"{waiting.pop(0)}\n".encode())
                continue
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            said += more.decode()
        os.close(ours)
        process.kill() if process.poll() is None and time.monotonic() >= end else None
        status = process.wait(60)
    assert not waiting, (waiting, said)
    return status, said


def test_options_alone_make_a_cluster(paths: Paths) -> None:
    done = mosconf(paths, "--node", "127.0.0.1 2", "--node", "127.0.1.1", "--alias",
                   "10.99.0.1=127.0.0.2", "--ip", "127.0.0.1", "--max-guests", "7", "--log",
                   "--port", "2490", "--speed", "12345", "--features", "red,blue")  # fmt: skip
    assert done.returncode == 0, done
    config = load(paths)
    assert (config.ip, len(config.nodes), config.max_guests) == ("127.0.0.1", 3, 7)
    assert (config.peer_port, config.speed, config.features) == (2490, 12345, ("red", "blue"))
    assert [config.nodes.number_of(ip) for ip in ("127.0.0.2", "127.0.1.1")] == [2, 3]
    assert config.nodes.canonical("10.99.0.1") == "127.0.0.2"
    assert len(load_secret(paths)) > 40
    assert load_secret(paths).decode() not in done.stdout
    assert paths.secret.stat().st_mode & 0o777 == 0o600
    assert paths.log_mosrun.exists()
    assert paths.partners.is_dir()
    assert "mosd does not run here" in done.stdout
    assert f"the same on all nodes: {paths.map}" in done.stdout


def test_what_no_option_says_stays_as_it_is(paths: Paths) -> None:
    assert mosconf(paths, "--node", "127.0.0.1 2", "--ip", "127.0.0.1").returncode == 0
    secret = load_secret(paths)
    paths.map.write_text("# ours\n127.0.0.1 2\n")
    done = mosconf(paths)
    assert (done.returncode, done.stdout) == (0, f"{paths.config_dir}: nothing to change\n")
    assert mosconf(paths, "--max-guests", "3").returncode == 0
    assert paths.map.read_text() == "# ours\n127.0.0.1 2\n"
    assert load_secret(paths) == secret
    assert mosconf(paths, "--new-secret").returncode == 0
    assert load_secret(paths) != secret
    done = mosconf(paths, "--secret-file", "-", input="a secret of other nodes\n")
    assert done.returncode == 0
    assert load_secret(paths) == b"a secret of other nodes"
    # New nodes get numbers behind those that there are, which stay.
    nodes = ("--node", "127.0.2.1", "--node", "127.0.0.1 2")
    assert mosconf(paths, *nodes).returncode == 0
    assert [load(paths).nodes.number_of(ip) for ip in ("127.0.0.1", "127.0.2.1")] == [1, 3]


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (("--node", "127.0.0.1 2", "--node", "127.0.0.2"), "mosix.map, line 3: overlaps", 11),
        (("--node", "10.99.0.1"), "none of these nodes is this machine", 11),
        (("--node", "127.0.0.1 2 q"), "unknown flag", 11),
        (("--node", "127.0.0.1", "--ip", "127.0.0.9"), "mosip, line 1: 127.0.0.9 is not in", 11),
        (("--node", "127.0.0.1", "--features", "a,a"), "myfeatures, line 1: 'a' twice", 11),
        (("--new-secret", "--secret-file", "/dev/null"), "either", 2),
        (("--max-guests", "many"), "max-guests", 2),
    ],
)
def test_a_mistake_changes_nothing(
    options: tuple[str, ...], said: str, code: int, paths: Paths
) -> None:
    assert mosconf(paths, "--node", "127.0.0.1").returncode == 0
    before = {entry: entry.stat().st_mtime_ns for entry in paths.config_dir.iterdir()}
    done = mosconf(paths, *options)
    assert done.returncode == code, done
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert {entry: entry.stat().st_mtime_ns for entry in paths.config_dir.iterdir()} == before


def test_only_root_configures(paths: Paths) -> None:
    paths.config_dir.mkdir()
    done = mosconf(paths, "--node", "127.0.0.1", user=65534)
    assert done.returncode == 4
    assert list(paths.config_dir.iterdir()) == []


def test_a_dry_run_only_tells(paths: Paths) -> None:
    done = mosconf(paths, "--node", "127.0.0.1", "--dry-run")
    assert done.returncode == 0
    assert f"{paths.map}: new, mode 644\n" in done.stdout
    assert "    127.0.0.1 1\n" in done.stdout
    assert not paths.config_dir.exists()


def test_step_by_step_it_asks_what_it_cannot_find_out(paths: Paths) -> None:
    status, said = guided(paths, "127.0.0.1", "10.99.0.0 2 p", "", "", "12", "y", "n", "y")
    assert status == 0, said
    assert "This machine's addresses:" in said
    assert "There is no secret that can be used" in said
    config = load(paths)
    assert (len(config.nodes), config.max_guests) == (3, 12)
    assert paths.log_mosrun.exists()
    load_secret(paths)
    assert not paths.own_ip.exists()  # nobody has to say which of them this is
    # Once more: everything is there, and Enter keeps it.
    status, said = guided(paths, "", "", "", "")
    assert status == 0, said
    assert "is kept" in said
    assert "nothing to change" in said


def test_a_mistake_is_asked_again_and_an_interruption_writes_nothing(paths: Paths) -> None:
    status, said = guided(paths, "127.0.0.1 x", "", "127.0.0.1", "", "", "12", "n", "n", "n")
    assert "line 1: the number of nodes must be a number" in said
    assert status == 130
    assert not paths.config_dir.exists()


def test_which_of_several_own_nodes_this_is_must_be_said(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["10.1.1.1", "10.1.1.2", *interface_ips()]
    monkeypatch.setattr("mosix.config.proposal.interface_ips", lambda: own)
    wishes = Wishes(nodes=("10.1.1.1 2",))
    with pytest.raises(Exception, match=r"several of these nodes are this machine.*10\.1\.1\.2"):
        propose(paths, wishes)
    files = propose(paths, Wishes(nodes=("10.1.1.1 2",), ip="10.1.1.2"))
    assert files["mosip"].text == "10.1.1.2\n"
