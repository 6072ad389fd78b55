"""Every process of mosix may fail at every named point: one body, each effect once, one line.

A third of the matrix; all of it with --full, which also writes docs/faults.md.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import matrix
import pytest
from matrix import Cell, Result
from mosix import failpoints
from mosix.errors import PermissionDeniedError, UsageError
from mosix.lab.drive import Cluster
from test_faults import restore

ROOT = Path(__file__).resolve().parents[2]


def test_matrix_has_every_point_of_the_source() -> None:
    used = set()
    for file in (ROOT / "pysrc").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("hit", "_hit")):
                used |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    in_c = {name for name in failpoints.POINTS if name.startswith(("redirect.", "agent."))}
    assert used | in_c == set(failpoints.POINTS)
    assert {cell.point for cell in matrix.cells(whole=False)} == set(failpoints.POINTS)


@pytest.mark.parametrize("spec", ["nowhere=kill", "mosd.dial=bite", "mosd.dial=kill@x"])
def test_spec_of_failpoints_is_checked(spec: str) -> None:
    with pytest.raises(UsageError):
        failpoints.parse(spec)


def test_nobody_but_root_arms_failpoints(lab: Cluster) -> None:
    question = json.dumps(["failpoints", ""]) + "\n"
    asked = [sys.executable, "-m", "mosix.lab.orders"]
    said = lab[1].check(asked, user="nobody", input=question)
    assert json.loads(said)["code"] == PermissionDeniedError.code


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        cells = matrix.cells(whole=metafunc.config.getoption("--full"))
        metafunc.parametrize("cell", cells, ids=str)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[Cell, Result]]:
    """A run of the whole matrix says in docs/faults.md what it has seen."""
    found: dict[Cell, Result] = {}
    yield found
    if set(found) == set(matrix.cells(whole=True)):
        (ROOT / "docs/faults.md").write_text(matrix.document(found))


def test_outcome_is_the_promised_one(cell: Cell, lab: Cluster, results: dict[Cell, Result]) -> None:
    try:
        result = matrix.play(lab, cell)
    finally:
        restore(lab)
    assert result.outcome in matrix.promised(cell), result
    results[cell] = result
