"""Writes the manual pages in man/ from the commands' own help and tables.

    .venv/bin/python scripts/manpages.py            writes them
    .venv/bin/python scripts/manpages.py --check    says which ones are out of date (status 1)

What options do comes from click, exit codes from `mosix.errors`, system calls from
`mosix.cli.calls`, files and ports from docs/commands.md. Only what none of these says is here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
from mosix.cli import (
    bestnode,
    calls,
    lab,
    migrate,
    mon,
    mosconf,
    mosctl,
    mosd,
    mosps,
    mosrun,
    setpe,
    tune,
)
from mosix.errors import EXIT_CODES, LAUNCH_FAILED, NOT_EXECUTABLE, NOT_FOUND
from mosix.syscalls.shapes import Class

ROOT = Path(__file__).resolve().parent.parent
MAN = ROOT / "man"
_TABLES = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
_ONE_LINE = 2000

OVERVIEW = """\
MOSIX makes one pool of computers out of several: a program started by mosrun(1) runs as an
ordinary process, and moves to another node while it runs: by itself, as load, memory and I/O
demand, or whenever its user says so. It never notices. Its files, terminal, process id, parent,
children and signals stay at its home, the node where it was started; only its memory and
registers go. What it asks of the system while it is away is done at home in its name.

Programs need not be changed, compiled or linked in any way. Programs that were not started by
mosrun(1) are left alone.

What cannot be done from afar is done at home: the process comes home for it, goes on, and may
leave again a second later. mosps --why tells the reason. So a program never behaves differently
because of where it was put.

Every node runs mosd(8). Its nodes trust each other: whoever is root on one of them may do
everything on all of them, and what they say to each other is proved, but not encrypted. They
belong into one closed network.

Owners of processes and root may move them. Everybody may look."""

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "mosrun": [
        ("mosrun xz -9 big.tar", "Runs xz here, ready to be moved."),
        ("mosrun -b ./simulate", "Starts it on the node that is best now."),
        ("mosrun -2 -F ./simulate", "Starts it on node 2, or here if node 2 is not available."),
    ],
    "migrate": [
        ("migrate 4711 2", "Orders process 4711 to node 2 and does not wait for it."),
        ("migrate --wait 4711 home", "Brings it home, and says how long it was frozen."),
    ],
    "mosps": [
        ("mosps -O -h", "Processes that are away, with the names of their nodes."),
        ("mosps --why", "Why each process is where it is."),
    ],
    "bestnode": [
        ("bestnode -n", "The number of the node where `mosrun -b` would start a program now."),
        ("bestnode -w -m4000", "Waits until some node has 4000 MB free, and prints its name."),
    ],
    "tune": [
        ("tune", "Measures the way to every other node that is up."),
        ("tune --write 2 3", "To nodes 2 and 3, and has mosd decide by that."),
    ],
    "mon": [
        ("mon -m", "Watches the cluster; bars show the memory that is used."),
        ("mon --once --json", "The same for a program, once."),
    ],
    "mosctl": [
        ("mosctl status 2", "What node 2 is and does."),
        ("mosctl block; mosctl expel", "Gives this machine back to its owner: no guest stays."),
        ("mosctl drain 2 --deadline 60", "Empties node 2, within a minute."),
        ("mosctl config check", "Whether the files under /etc/mosix are right."),
        ("mosctl syscalls mmap", "What becomes of mmap(2) while a process is away."),
    ],
    "mosconf": [
        ("mosconf", "Asks what it cannot find out, and writes the files."),
        ("mosconf --yes --node '192.168.1.11 2'", "A cluster of two machines, and a secret."),
    ],
    "setpe": [
        ("setpe", "A changed mosix.map counts from now on."),
        ("setpe -off", "This node leaves the cluster."),
    ],
    "mosix-lab": [
        ("mosix-lab up --nodes 3", "Three nodes on this machine."),
        ("mosix-lab run n1 mosrun -2 ./simulate", "Starts a program on n1 that moves to n2."),
        ("mosix-lab down", "Removes every trace of them."),
    ],
}

SEE_ALSO = (
    "mosix(7)",
    "mosrun(1)",
    "migrate(1)",
    "mosps(1)",
    "bestnode(1)",
    "mon(1)",
    "tune(1)",
    "mosctl(1)",
    "mosconf(8)",
    "setpe(8)",
    "mosd(8)",
    "mosix-lab(1)",
)


@dataclass(frozen=True)
class Page:
    """A command's page. `short`: the line of NAME."""

    name: str
    section: int
    short: str
    command: click.Command

    @property
    def file(self) -> str:
        return f"{self.name}.{self.section}"


PAGES = (
    Page("mosrun", 1, "run a program that can move to other nodes", mosrun.command),
    Page("migrate", 1, "move a running process to another node, or home", migrate.main),
    Page("mosps", 1, "list processes of jobs and guests, and where they are", mosps.main),
    Page("mon", 1, "watch the nodes, processes and moves of a cluster", mon.main),
    Page("bestnode", 1, "the node where one more process had better start", bestnode.main),
    Page("mosctl", 1, "ask about nodes and system calls, and order this node", mosctl.main),
    Page("mosconf", 8, "configure a MOSIX node", mosconf.main),
    Page("setpe", 8, "have mosd read its files again, or leave the cluster", setpe.main),
    Page("tune", 1, "measure what networked operations cost", tune.main),
    Page("mosd", 8, "the daemon of a MOSIX node", mosd.main),
    Page("mosix-lab", 1, "a MOSIX cluster on one machine", lab.lab),
)


# ---- roff ----


def escaped(text: str) -> str:
    """`text` for a roff line; man(7), groff_char(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    text = text.replace("…", "\\&...").replace("·", "\\(bu").replace("–", "\\(en")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def head(title: str, section: int) -> list[str]:
    version = metadata.version("mosix")
    made = "from the commands and tables by scripts/manpages.py; change those"
    # Nothing is hyphenated: names of calls and options must be found as they are.
    return [
        f'.\\" Made {made}',
        f'.TH {title.upper()} {section} "" "mosix {version}" "MOSIX"',
        ".nh",
    ]


def paragraphs(text: str) -> Iterator[str]:
    """Blank lines separate paragraphs; one that begins with \\b keeps its lines, as in click."""
    for number, part in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if part.startswith("\b"):
            yield from (".nf", escaped(part.removeprefix("\b").strip("\n")), ".fi")
        else:
            yield escaped(" ".join(part.split()))


def definitions(rows: list[tuple[str, str]], close: bool = False) -> Iterator[str]:
    """`close`: without empty lines in between."""
    if close:
        yield ".PD 0"
    for term, text in rows:
        yield from (".TP", f".B {escaped(term)}", escaped(text))
    if close:
        yield ".PD"


def exit_codes() -> list[tuple[str, str]]:
    return [("0", "done"), *((str(code), text) for code, text in EXIT_CODES.items())]


def launch_codes() -> list[tuple[str, str]]:
    return [
        (str(LAUNCH_FAILED), "mosrun itself failed; nothing ran"),
        (str(NOT_EXECUTABLE), "the program was found, but cannot be executed"),
        (str(NOT_FOUND), "the program was not found"),
    ]


def see_also(own: str) -> list[str]:
    others = ", ".join(page for page in SEE_ALSO if page != own)
    return [".SH SEE ALSO", escaped(others)]


# ---- a page for each command ----


def context(command: click.Command, name: str) -> click.Context:
    return click.Context(
        command, info_name=name, terminal_width=_ONE_LINE, max_content_width=_ONE_LINE
    )


def synopsis(command: click.Command, name: str) -> Iterator[str]:
    with context(command, name) as ctx:
        usage = " ".join(command.get_usage(ctx).removeprefix("Usage:").split())
    yield from (f".B {escaped(name)}", escaped(usage.removeprefix(name).strip()))


def options(command: click.Command, name: str) -> list[tuple[str, str]]:
    with context(command, name) as ctx:
        own = [p for p in command.get_params(ctx) if isinstance(p, click.Option)]
        records = [option.get_help_record(ctx) for option in own]
    return [record for record in records if record is not None]


def subcommands_of(command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """With those of subcommands, by the words that are typed."""
    for name, sub in command.commands.items() if isinstance(command, click.Group) else ():
        yield name, sub
        for more, deeper in subcommands_of(sub):
            yield f"{name} {more}", deeper


def page_of(page: Page) -> list[str]:
    command = page.command
    out = [*head(page.name, page.section), ".SH NAME"]
    out.append(f"{escaped(page.name)} \\- {escaped(page.short)}")
    out.append(".SH SYNOPSIS")
    subcommands = dict(subcommands_of(command))
    if subcommands:
        for number, (name, sub) in enumerate(subcommands.items()):
            out += [".br"] if number else []
            out += synopsis(sub, f"{page.name} {name}")
    else:
        out += synopsis(command, page.name)
    out += [".SH DESCRIPTION", *paragraphs(command.help or "")]
    for name, sub in subcommands.items():
        out += [f".SS {escaped(name)}", *paragraphs(sub.help or "")]
        out += definitions([row for row in options(sub, name) if row[0] != "--help"])
    own = [row for row in options(command, page.name) if not (subcommands and "--help" in row[0])]
    if own:
        out += [".SH OPTIONS", *definitions(own)]
    if page.name == "mosrun":
        later = " ".join(f"-{letter}" for letter in mosrun.LATER)
        text = f"Options of MOSIX that this version refuses by name: {later}."
        out += [".PP", escaped(text)]
    out.append(".SH EXIT STATUS")
    if page.name == "mosrun":
        out += ["That of the program, except:", *definitions(launch_codes(), close=True)]
    else:
        out += definitions(exit_codes(), close=True)
    if page.name == "mosd":
        out += [".SH FILES", *definitions(files())]
        out += [".SH PORTS", *ports()]
    if page.name in EXAMPLES:
        out.append(".SH EXAMPLES")
        out += definitions(EXAMPLES[page.name])
    return [*out, *see_also(f"{page.name}({page.section})")]


# ---- mosix(7) ----


def section_of(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", _TABLES, re.M | re.S)
    assert found, f"docs/commands.md has no section {title}"
    return found[1]


def rows_of(text: str) -> list[list[str]]:
    """Rows of a table in Markdown, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[unmarked(cell) for cell in row] for row in cells[2:]]


def unmarked(text: str) -> str:
    return text.strip().replace("`", "").replace("\\|", "|")


def files() -> list[tuple[str, str]]:
    text = section_of("Files")
    found = [(f"/etc/mosix/{name}", what) for name, what in rows_of(text)]
    run = next(part for part in text.split("\n\n") if part.startswith("`/run/mosix`"))
    return [*found, ("/run/mosix", unmarked(" ".join(run.partition(":")[2].split())))]


def ports() -> Iterator[str]:
    text = section_of("Ports")
    yield from definitions([(port, f"{where}: {what}") for port, where, what in rows_of(text)])
    for part in text.strip().split("\n\n")[1:]:
        yield from (".PP", escaped(unmarked(" ".join(part.split()))))


def programs() -> Iterator[str]:
    text = section_of("Files for programs")
    for part in text.strip().split("\n\n"):
        if part.startswith("|"):
            yield from definitions([(f"{n} ({how})", what) for n, how, what in rows_of(part)])
        else:
            yield from (".PP", escaped(unmarked(" ".join(part.split()))))


def system_calls() -> Iterator[str]:
    known = calls.calls()
    yield escaped(
        "What becomes of a system call while its process is away; mosctl syscalls tells more."
    )
    for cls, (word, meaning) in calls.WHERE.items():
        yield from (".TP", f".B {escaped(word)}", escaped(f"{meaning[0].upper()}{meaning[1:]}:"))
        mine = [call for call in known if call.where == word]
        if cls is not Class.AT_HOME:
            sometimes = [c for c in known if any(case.where == word for case in c.cases)]
            names = ", ".join(call.name for call in mine or sometimes)
            yield escaped(f"{names}{'' if mine else ', as their arguments say'}.")
            continue
        reasons: dict[str, list[str]] = {}
        for call in mine:
            reasons.setdefault("" if call.reason == call.name else call.reason, []).append(
                call.name
            )
        for reason, names in sorted(reasons.items()):
            what = f"{reason}: " if reason else ""
            yield from (".IP", escaped(f"{what}{', '.join(names)}."))
    yield from (".PP", "Where the arguments decide:", ".RS")
    for call in known:
        if call.cases:
            yield from (".TP", f".B {escaped(call.name)}", escaped(f"{call.where}; {call.note()}"))
    yield from (".RE", ".PP", escaped(calls.OTHERS))


def mosix_7() -> list[str]:
    return [
        *head("mosix", 7),
        ".SH NAME",
        "mosix \\- programs that move between computers while they run",
        ".SH DESCRIPTION",
        *paragraphs(OVERVIEW),
        ".SH COMMANDS",
        *definitions([(f"{page.name}({page.section})", page.short) for page in PAGES]),
        ".SH FILES",
        *definitions(files()),
        ".SH ENVIRONMENT",
        *definitions(
            [
                ("MOSIX_CONFIG_DIR", "instead of /etc/mosix; mosd --config wins"),
                ("MOSIX_RUN_DIR", "instead of /run/mosix; --run-dir wins"),
            ]
        ),
        ".SH PORTS",
        *ports(),
        ".SH EXIT STATUS",
        "Of mosrun(1): that of the program, except:",
        *definitions(launch_codes(), close=True),
        ".PP",
        "Of every other command:",
        *definitions(exit_codes(), close=True),
        ".SH INTERFACE FOR PROGRAMS",
        *programs(),
        ".SH SYSTEM CALLS",
        *system_calls(),
        *see_also("mosix(7)"),
    ]


def pages() -> dict[str, str]:
    """File name: content."""
    makers: dict[str, Callable[[], list[str]]] = {"mosix.7": mosix_7}
    found = {page.file: page_of(page) for page in PAGES}
    found |= {name: make() for name, make in makers.items()}
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


def outdated() -> list[str]:
    """Pages that are not what they would be now, missing and left over ones included."""
    wanted = pages()
    have = {path.name: path.read_text(encoding="utf-8") for path in MAN.glob("*.[1-9]")}
    return sorted(name for name in wanted | have if wanted.get(name) != have.get(name))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        old = outdated()
        for name in old:
            print(f"man/{name} is out of date: .venv/bin/python scripts/manpages.py")
        return bool(old)
    MAN.mkdir(exist_ok=True)
    for name, text in pages().items():
        (MAN / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
