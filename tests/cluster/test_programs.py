"""A program never behaves differently because of where it was put.

Unmodified programs, and small ones for every family of system calls, run plainly and then under
mosrun while every process of the job is moved about at random (programs/roam.py; the seed is
printed). What they write to their standard descriptors and files, and how they end, must be the
same, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built
from mosix.lab.terminal import terminal

_PAUSES_MS = ("0", "60")


@dataclass(frozen=True)
class Ended:
    status: int
    output: bytes
    complaints: bytes
    files: dict[str, Any] = field(default_factory=dict)


def tree(top: Path) -> dict[str, Any]:
    """What the program left in its directory: kinds, modes, contents."""
    found: dict[str, Any] = {}
    for path in sorted(top.rglob("*")):
        name, mode = str(path.relative_to(top)), oct(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = (mode, os.readlink(path))
        else:
            found[name] = (mode, path.read_bytes() if path.is_file() else b"")
    return found


def both_ways(lab: Cluster, command: list[str], given: bytes = b"") -> tuple[Ended, dict[str, Any]]:
    """Run it plainly and moved; both must end alike. How, and what roam.py reports."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    work, report = lab[1].path("/node/work"), lab[1].path("/node/roamed")
    roam = [sys.executable, str(PROGRAMS / "roam.py"), "/node/roamed", str(seed), "3", *_PAUSES_MS]
    ends: list[Ended] = []
    for front in ([], roam):
        work.mkdir()
        try:
            done = lab[1].run(
                [*front, *command], cwd="/node/work", input=given, text=False, timeout_s=120
            )
            out, err = done.stdout, done.stderr
            ends.append(Ended(done.returncode, out, err, tree(work)))  # type: ignore[arg-type]
        finally:
            shutil.rmtree(work)
    said = json.loads(report.read_text())
    plain, moved = ends
    assert moved.complaints == plain.complaints, f"seed {seed}"
    assert said["status"] == plain.status, f"seed {seed}"
    assert moved.output == plain.output, f"seed {seed}"
    assert moved.files == plain.files, f"seed {seed}"
    return plain, said


def families() -> list[str]:
    return [str(built(PROGRAMS / "families.c"))]


@pytest.mark.parametrize(
    "family",
    [
        *("at_files", "listing", "appending", "locks", "watching", "where"),
        *("multiplexing", "special", "pipes", "messages", "network"),
        *("clocks", "sleeping", "timers", "signals", "storm", "faults", "restarting"),
        *("identity", "children", "exec", "daemon", "memory", "shared", "vectors", "proc"),
    ],
)
def test_family_of_calls(family: str, lab: Cluster, full: bool) -> None:
    ms = "4000" if full else "600"
    command = ["env", f"HERE={'/node/work'}", *families(), family, ms]
    ended, _ = both_ways(lab, command)
    assert (ended.status, ended.complaints, ended.files) == (0, b"", {})


def test_cpu_time_never_runs_back_between_nodes(lab: Cluster, start: Callable[..., Job]) -> None:
    """Clocks, times and getrusage count on where the body goes on."""
    job = start([*families(), "cpu", "0", "/node/stop-families-cpu"], options=("-2",))
    job.wait_until_at(lab[2].ip)
    for target in ("3", "2", "3"):
        job.move(target)
    job.home.check(["touch", "/node/stop-families-cpu"])
    assert job.finish() == (0, "CPU clocks\n", "")


def test_every_way_to_its_own_proc_files_leads_home(start: Callable[..., Job]) -> None:
    """Relative paths, links and descriptors of directories too show the body, not the ghost."""
    job = start([*families(), "paths"])
    for number in range(8):
        assert job.line() == f"ready {number}"
        job.move("2")
        job.write("\n")
    assert job.finish() == (0, "paths\n", "")


def test_it_leaves_again_by_itself(start: Callable[..., Job]) -> None:
    """Home for a fork, and mosps --why says so; back by itself, again and again."""
    code = (
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    os.wait(); print('forked', flush=True)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    job.move("2")
    away = job.where()
    for moves in (3, 5):
        job.write("\n")
        assert job.line() == "forked"
        if job.where() == "home":
            assert "home: clone" in job.home.check(["mosps", "--why", str(job.pid)])
        job.wait_until_at(away)
        assert job.row()["nmigs"] == moves
    assert job.finish() == (0, "", "")


@pytest.fixture(scope="session")
def real_input(lab: Cluster) -> str:
    """Directory with a tar of a real tree, text, and a program to compile; only on n1."""
    script = (
        "mkdir /node/material && cd /node/material && "
        "{ tar -C /usr/lib -c python3.11 2>/dev/null | head -c 8388608 > t.tar; } && "
        "find /usr/include -name '*.h' | sort | head -300 | xargs cat > text && "
        "head -c 2000000 t.tar > bytes && "
        r"printf '#include <stdio.h>\nint main(void) { puts(\"made\"); return 3; }\n' > a.c"
    )
    lab[1].check(["bash", "-c", script])
    return "/node/material"


_SQL = b"""create table t(a integer primary key, b text);
with recursive c(x) as (select 1 union all select x+1 from c where x<40000)
  insert into t select x, hex(x*7919) from c;
create index i on t(b); select count(*), min(b), max(b) from t;
begin; update t set b=b||'x' where a%3=0; commit; vacuum; select sum(length(b)) from t;
pragma integrity_check;
"""
_SHELL = r"""exec 2>&1; trap 'echo usr1' USR1; trap 'echo bye' EXIT
for i in 1 2 3 4 5; do echo "$i a b"; done | while read -r n r; do echo "$r-$n"; done
(sleep 0.3; kill -USR1 $$) & wait; echo "w $?"; wait
read -t 0.2 x < <(sleep 1); echo "r $?"
coproc cat; echo co >&${COPROC[1]}; read -u ${COPROC[0]} y; echo "$y"
for f in /usr/include/*.h; do s=$((s + $(wc -c < "$f"))); done; echo $s
set -o pipefail; false | true; exit $((6 + $?))"""
_MAKE = r"""cp /node/material/a.c .; cp a.c b.c
printf 'all: a b\n%%: %%.c\n\t$(CC) -O1 $< -o $@\n' > Makefile
make && make -B -j2 && ./a; echo $?; rm -f a b"""
_GIT = r"""export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
git init -q -b m r && cd r && for i in 1 2 3; do
cp /usr/include/linux/[a-c]*.h .; echo $i > f; git add -A; git commit -qm $i; done
git log --stat; git gc -q && git fsck && git rev-parse HEAD; cd ..; rm -rf r"""
_PERL = (
    'my %h; open F, "<", "/node/material/text"; while (<F>) { $h{$_}++ for split /\\W+/ } '
    'print "$_ $h{$_}\\n" for sort keys %h; print `echo hi`; exit 5'
)
_AWK_END = ' END { for (w in c) print w, c[w] | "sort" }'
_REAL: dict[str, tuple[list[str], bytes]] = {
    "gzip": (["gzip", "-9nc", "/node/material/t.tar"], b""),
    "bzip2": (["bzip2", "-kc", "/node/material/bytes"], b""),
    "zstd": (["zstd", "--single-thread", "-15", "-c", "-q", "/node/material/bytes"], b""),
    "tar": (["tar", "-C", "/usr/include", "-cvf", "a.tar", "linux"], b""),
    "sort": (
        ["bash", "-c", "cat /node/material/{text,text,text} | sort --parallel=1 -S 4M -T . -o s"],
        b"",
    ),
    "awk": (
        ["awk", "{ for (i = 1; i <= NF; i++) c[$i]++ }" + _AWK_END, "/node/material/text"],
        b"",
    ),
    "sed": (["sed", "-E", r"s/([a-z]+)_([a-z]+)/\2_\1/g", "/node/material/text"], b""),
    "grep": (["grep", "-rnE", "(struct|union) [a-z]+", "/usr/include/linux"], b""),
    "find": (["find", "/usr/lib/python3.11", "-printf", "%p %s %m %u %T@\\n"], b""),
    "sha256sum": (["sha256sum", *["/node/material/t.tar"] * 6], b""),
    "dd": (["dd", "if=/node/material/t.tar", "of=o", "bs=777", "skip=3", "status=none"], b""),
    "bc": (["bc", "-l"], b"scale=900\n4*a(1)\nfor(i=0;i<20000;i++) x+=i\nx\n"),
    "perl": (["perl", "-e", _PERL], b""),
    "sqlite3": (["sqlite3", "db"], _SQL),
    "bash": (["bash", "-c", _SHELL], b""),
    "make": (["bash", "-c", _MAKE], b""),
    "git": (["bash", "-c", _GIT], b""),
    "openssl": (
        [
            "bash",
            "-c",
            "openssl dgst -sha512 /node/material/t.tar; openssl genrsa 2048 2>&1 | wc -l",
        ],
        b"",
    ),
    "ssh-keygen": (
        ["bash", "-c", "ssh-keygen -qt rsa -N '' -f k && ssh-keygen -lf k | wc -l; rm k*"],
        b"",
    ),
    "node": (
        ["node", "-e", "let s=0; for (let i=0; i<4e7; i++) s += i%3; console.log(s)"],
        b"",
    ),
}
_FAST = {"gzip", "sort", "awk", "find", "bc", "perl", "sqlite3", "bash", "make", "git"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in _FAST else [pytest.mark.full]) for n in _REAL]
)
def test_real_program(name: str, real_input: str, lab: Cluster) -> None:
    command, given = _REAL[name]
    if shutil.which(command[0] if command[0] != "bash" else name) is None:
        pytest.skip(f"{name} is not installed")
    both_ways(lab, command, given)


@pytest.mark.parametrize(
    "name",
    [
        *("files", "processes", "sockets", "signals", "threads"),
        pytest.param("multiprocessing", marks=pytest.mark.full),
        pytest.param("library", marks=pytest.mark.full),
    ],
)
def test_python(name: str, real_input: str, lab: Cluster) -> None:
    ended, _ = both_ways(lab, [PYTHON, str(PROGRAMS / "library.py"), name])
    assert (ended.status, ended.complaints) == (0, b"")


def test_program_on_a_whole_screen(lab: Cluster) -> None:
    """less under a terminal: keys, size and modes of the terminal are home's."""
    lab[1].check(["sh", "-c", "seq 1 5000 > /node/lines"])
    screens = []
    for moved in (False, True):
        command = ["env", "TERM=xterm", "LESS=", "less", "/node/lines"]
        if moved:
            command = ["mosrun", *command]
        with terminal(lab[1].argv(command, setsid=True)) as screen:
            screen.expect("/node/lines")
            for target, key, seen in (
                ("2", "G", "5000"),
                ("3", "?777\n", "777"),
                ("home", "g", "1"),
            ):
                if moved:
                    (row,) = drive.wait_for("the job", lambda: lab[1].jobs() or None)
                    lab[1].migrate(row["pid"], target)
                screen.type(key)
                screen.expect(seen)
            screen.type("q")
            screens.append(screen.wait())
    assert screens == [0, 0]
