"""/etc/mosix/mostune: the first line that fits holds; mistakes are named with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from mosix.config.nodemap import parse_map
from mosix.config.paths import Paths
from mosix.config.tuning import BUILT_IN, Costs, Tuning, load_tuning, parse_tuning, written
from mosix.errors import ConfigError

RESOLVE = parse_map("1 10.0.0.1 9\n").resolve_number_or_ip
PATH = Path("mostune")


def test_the_first_line_that_names_a_node_holds_for_it() -> None:
    text = "# comment\n10.0.0.2 120 100 12.5 300\n3 1 2 3 4\n2 9 9 9 9\n* 80 400 10 500\n"
    tuning = parse_tuning(text, PATH, RESOLVE)
    assert tuning.of("10.0.0.2") == Costs(120, 100, 12.5, 300)
    assert tuning.of("10.0.0.3") == Costs(1, 2, 3, 4)
    assert tuning.of("10.0.0.9") == tuning.others == Costs(80, 400, 10, 500)


def test_without_the_file_or_a_line_the_built_in_constants_hold(tmp_path: Path) -> None:
    assert load_tuning(Paths(tmp_path), RESOLVE) == Tuning()
    assert Tuning().of("10.0.0.2") == BUILT_IN
    assert parse_tuning("2 1 1 1 1\n", PATH, RESOLVE).others == BUILT_IN


def test_what_tune_writes_is_read_again() -> None:
    costs = Costs(123.4, 56.7, 8.9, 1234.5)
    assert parse_tuning(written("10.0.0.4", costs), PATH, RESOLVE).of("10.0.0.4") == costs


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 1 2 3", "line 1: 4 fields"),
        ("2 1 2 3 x", "line 1: PAGES_MB_S must be a number from 0.01 to 1e+06, not 'x'"),
        ("2 0 2 3 4", "CALL_US must be a number from 1"),
        ("2 nan 2 3 4", "CALL_US must be a number"),
        ("99 1 2 3 4", "there is no node number 99"),
        ("name 1 2 3 4", "'name' is not a number or an IP"),
    ],
)
def test_mistakes_are_named(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tuning(f"{line}\n", PATH, RESOLVE)
    assert f"{PATH}, line 1" in caught.value.message
    assert said in caught.value.message
