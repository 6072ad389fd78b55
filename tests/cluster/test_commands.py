"""mosps, mosctl and the numbers of userview.map, as a user sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from jobs import Job
from mosix.errors import MosixError
from mosix.lab.drive import Cluster

USER = "nobody"


@pytest.fixture
def scene(lab: Cluster, start: Callable[..., Job]) -> tuple[Job, Job]:
    """One job at home and one on n2; n1 is home."""
    away = start(["cat"])
    away.move("2")
    return start(["cat"]), away


def table(text: str) -> list[dict[str, str]]:
    header, *lines = text.splitlines()
    names = header.split()
    return [dict(zip(names, line.split(None, len(names) - 1), strict=True)) for line in lines]


def pids(lab: Cluster, number: int, *options: str) -> set[int]:
    return {int(row["PID"]) for row in table(lab[number].check(["mosps", *options]))}


def test_mosps_selects_by_place(lab: Cluster, scene: tuple[Job, Job]) -> None:
    home, away = (job.pid for job in scene)
    guest = lab[2].jobs()[0]["pid"]
    assert pids(lab, 1) == pids(lab, 1, "-M") == pids(lab, 1, "aux") == {home, away}
    assert pids(lab, 1, "-O") == {away}
    assert pids(lab, 1, "-L") == {home}
    assert pids(lab, 1, "-V") == set()
    assert pids(lab, 2, "-V") == pids(lab, 2, "-L") == {guest}
    assert pids(lab, 2, "-M") == pids(lab, 2, "-O") == set()
    assert pids(lab, 1, str(away)) == {away}


def test_mosps_shows_nodes_as_asked(lab: Cluster, scene: tuple[Job, Job]) -> None:
    for options, here, there in (
        ((), "1", "2"),
        (("-I",), lab[1].ip, lab[2].ip),
        (("-h",), "n1", "n2"),
    ):
        row = table(lab[1].check(["mosps", "-O", *options]))[0]
        assert (row["WHERE"], row["FROM"]) == (there, "here")
        row = table(lab[2].check(["mosps", *options]))[0]
        assert (row["WHERE"], row["FROM"]) == ("here", here)


def test_mosps_has_the_columns_of_the_manual(lab: Cluster, scene: tuple[Job, Job]) -> None:
    away = scene[1].pid
    header = lab[1].check(["mosps", "-n"]).split("\n")[0].split()
    assert header == ["PID", "USER", "WHERE", "FROM", "NMIGS", "WHY", "CMD"]
    assert "ORIGPID" not in header
    row = table(lab[2].check(["mosps", "-P"]))[0]
    assert (row["ORIGPID"], row["NMIGS"]) == (str(away), "1")
    own = table(lab[1].check(["mosps", "-l", str(away)]))[0]
    assert (own["CLASS"], own["FRZ"], own["ORIGPID"]) == ("0", "-", "0")
    assert own["PPID"].isdigit()
    assert table(lab[2].check(["mosps", "l"]))[0]["FRZ"] == "N/A"


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["-D"], "expected run times: not supported yet", 1),
        (["-I", "-h"], "only one of -I and -h", 2),
        (["1", "2"], "one PID", 2),
        (["x1"], "not a process id", 2),
    ],
)
def test_mosps_says_what_it_cannot(options: list[str], said: str, code: int, lab: Cluster) -> None:
    done = lab[1].run(["mosps", *options])
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_migrate_takes_a_number_an_ip_a_host_name_and_home(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    for target, where in (
        ("2", lab[2].ip),
        (lab[3].ip, lab[3].ip),
        ("n2", lab[2].ip),
        ("home", "home"),
        ("3", lab[3].ip),
        ("n1", "home"),
    ):
        lab[1].check(["migrate", "--wait", str(job.pid), target])
        assert job.where() == where
    lab[1].check(["migrate", str(job.pid), "2"])  # without --wait it is only ordered
    job.wait_until_at(lab[2].ip)


def test_everybody_may_look(lab: Cluster, scene: tuple[Job, Job]) -> None:
    for command in (
        ["mosps"],
        ["mosps", "--why"],
        ["mosctl", "whois"],
        ["mosctl", "status", "2"],
        ["mosctl", "localstatus"],
        ["mosctl", "rstatus", "2"],
        ["mosctl", "syscalls"],
    ):
        assert lab[1].check(command, user=USER)


def test_localstatus_counts_own_processes_and_guests(lab: Cluster, scene: tuple[Job, Job]) -> None:
    own = json.loads(lab[1].check(["mosctl", "localstatus", "--json"]))
    assert own["processes"] == {"home": 1, "away": 1, "moving": 0}
    assert (own["nodes"], own["numbered"], own["port"], own["stopping"]) == (3, 3, 249, False)
    assert own["status"]["ip"] == lab[1].ip
    other = json.loads(lab[2].check(["mosctl", "localstatus", "--json"]))
    assert other["guests"] == {lab[1].ip: 1}
    text = lab[1].check(["mosctl", "localstatus"])
    assert "1 home, 1 away, 0 moving" in text
    assert "249/tcp" in text


def test_rstatus_is_a_number_for_programs(lab: Cluster) -> None:
    assert lab[1].check(["mosctl", "rstatus"]) == "3\n"
    assert lab[1].check(["mosctl", "rstatus", "3", "--json"]) == '{"status":3}\n'
    lab[3].mosd("stop")
    try:
        assert lab[1].check(["mosctl", "rstatus", "3"]) == "1\n"
    finally:
        lab[3].mosd("start")
    assert lab[1].check(["mosctl", "rstatus", "9"]) == "0\n"


def test_whereami_tells_of_a_process_and_of_this_node(lab: Cluster, scene: tuple[Job, Job]) -> None:
    home, away = (job.pid for job in scene)
    assert f"node 2, {lab[2].ip}" in lab[1].check(["mosctl", "whereami", str(away)])
    assert "(its home)" in lab[1].check(["mosctl", "whereami", str(home)])
    said = json.loads(lab[1].check(["mosctl", "whereami", "--json", str(away)]))
    assert said == {"pid": away, "where": lab[2].ip, "number": 2}
    assert "not in a job" in lab[1].check(["mosctl", "whereami"])
    assert lab[1].run(["mosctl", "whereami", "1"]).returncode == 5
    assert "(its home): process" in lab[1].check(["mosrun", "mosctl", "whereami"])


@pytest.fixture
def renumbered(lab: Cluster) -> Iterator[Cluster]:
    """userview.map of n1 starts at 41, for n2 and n3 only; n2 by its name."""
    files = lab[1].path("/etc/mosix/userview.map")
    before = files.read_text()
    files.write_text(f"# two of three\n41 n2 1\n65535 {lab[3].ip} 1\n")
    lab[1].mosd("stop")
    lab[1].mosd("start")
    try:
        yield lab
    finally:
        files.write_text(before)
        lab[1].mosd("stop")
        lab[1].mosd("start")


def test_every_command_takes_the_numbers_of_userview_map(
    renumbered: Cluster, start: Callable[..., Job]
) -> None:
    lab = renumbered
    with start(["cat"], options=("-41",)) as job:
        job.wait_until_at(lab[2].ip)
        lab[1].migrate(job.pid, "65535")
        assert job.where() == lab[3].ip
        assert table(lab[1].check(["mosps", "-O"]))[0]["WHERE"] == "65535"
    with start(["cat"], options=("-j65535-65535",)) as job:
        job.wait_until_at(lab[3].ip)
    assert json.loads(lab[1].check(["mosctl", "whois", "41", "--json"]))["ip"] == lab[2].ip
    assert json.loads(lab[1].check(["mosctl", "status", "41", "--json"]))["number"] == 41
    assert lab[1].check(["mosctl", "rstatus", "41"]) == "3\n"
    assert "no number" in lab[1].check(["mosctl", "whois"])
    with pytest.raises(MosixError, match="no node number 2"):
        lab[1].check(["mosctl", "whois", "2"])
