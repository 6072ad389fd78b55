"""mosix.ko finds and sends a process's memory, and tells everyone of processes, on both kernels.

programs/capturing.py does it in the machine, one scenario at a time; here they are named. In the
end the module is unloaded with somebody still in /proc/mosix, and nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mosix.lab.drive import Cluster
from scenarios import SERIES, Scenarios


@pytest.fixture(scope="module", params=[1, 2], ids=list(SERIES))
def capturing(request: pytest.FixtureRequest, lab: Cluster) -> Iterator[Scenarios]:
    capturing = Scenarios(lab, request.param, "capturing.py")
    yield capturing
    capturing.end()


@pytest.mark.parametrize(
    "scenario",
    [
        "mappings_are_those_of_proc",
        "pages_are_those_of_proc",
        "images_are_those_of_proc",
        "signals_do_not_cut_what_is_sent",
        "only_the_tracer_may_look",
        "everyone_reads_what_root_has_told",
    ],
)
def test_scenario(scenario: str, capturing: Scenarios) -> None:
    capturing(scenario)


def test_rounds_of_dirty_pages_miss_nothing(capturing: Scenarios, full: bool) -> None:
    capturing("rounds_of_dirty_pages_miss_nothing", 30 if full else 3)


def test_nonsense_about_memory_does_no_harm(capturing: Scenarios, full: bool) -> None:
    capturing("nonsense_about_memory_does_no_harm", 100_000 if full else 1000)
