"""The table of system calls in words: what becomes of each when the process is away.

For `mosctl syscalls` and the manual page mosix(7); everything comes from `mosix.syscalls.table`.
"""

from __future__ import annotations

import msgspec
from mosix.syscalls.shapes import Class, Kind, Row
from mosix.syscalls.table import PROC_REASON, TABLE, UNKNOWN

#: Class: one word for it, and what it means.
WHERE: dict[Class, tuple[str, str]] = {
    Class.LOCAL: ("there", "executed where the process is, at full speed"),
    Class.HOME: ("home", "executed at home in the name of the process, which stays where it is"),
    Class.BOTH: ("both", "executed at home and, when that succeeds, where the process is"),
    Class.WAIT: ("waited", "waited for where the process is; signals come from home"),
    Class.HERE: ("counted", "answered where the process is: home's date, CPU time used anywhere"),
    Class.AT_HOME: ("comes-home", "the process comes home for it, and may leave again later"),
}
#: What happens to a call without a row.
OTHERS = f"Any other call: the process comes home for it ({UNKNOWN})."
_OTHER_REQUESTS = "other requests than those listed in the table"


class Case(msgspec.Struct, frozen=True):
    """What some arguments change. `reason`: only when the process comes home for it."""

    where: str
    reason: str = ""


class Call(msgspec.Struct, frozen=True):
    """One system call. `cases`: other outcomes than `where`, which the arguments decide."""

    nr: int
    name: str
    where: str
    reason: str = ""
    cases: tuple[Case, ...] = ()

    def note(self) -> str:
        """`reason` and `cases` as one text, without what only repeats the name."""
        parts = [self.reason] if self.reason not in ("", self.name) else []
        for case in self.cases:
            if case.reason in ("", self.name):
                parts.append(f"or {case.where}")
            elif case.where == self.where:
                parts.append(case.reason)
            else:
                parts.append(f"{case.where}: {case.reason}")
        return "; ".join(dict.fromkeys(parts))


def calls() -> list[Call]:
    """Every row, in the order of `WHERE` and then of numbers."""
    order = list(WHERE)
    return [_call(row) for row in sorted(TABLE, key=lambda row: (order.index(row.cls), row.nr))]


def _call(row: Row) -> Call:
    cases = [_case(rule.then, rule.reason or row.reason) for rule in row.rules]
    if any(shape.kind is Kind.OPEN_PATH for shape in row.args):
        cases.append(_case(Class.AT_HOME, PROC_REASON))
    if row.variants and not row.args and row.cls is not Class.AT_HOME:
        cases.append(_case(Class.AT_HOME, _OTHER_REQUESTS))
    own = _case(row.cls, row.reason)
    different = tuple(case for case in dict.fromkeys(cases) if case != own)
    return Call(row.nr, row.name, own.where, own.reason, different)


def _case(cls: Class, reason: str) -> Case:
    return Case(WHERE[cls][0], reason if cls is Class.AT_HOME else "")
