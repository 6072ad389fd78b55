"""mosix.ko parks calls that the eBPF program wants redirected, on both kernels.

programs/parking.py does it in the machine, one scenario at a time; here they are named. After each
the module holds no task and no hook, and nothing is on the console.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mosix.lab.drive import Cluster
from mosix.lab.programs import built
from scenarios import PROGRAMS, SERIES, Scenarios

ORPHANS = {"native": 0, "EIO": 1, "SIGKILL": 2}
SA_RESTART = 0x10000000


@pytest.fixture(scope="module", params=[1, 2], ids=list(SERIES))
def parking(request: pytest.FixtureRequest, lab: Cluster) -> Iterator[Scenarios]:
    caller = built(PROGRAMS / "caller.c", "-static", "-pthread")
    parking = Scenarios(lab, request.param, "parking.py", str(caller))
    yield parking
    parking.end()


@pytest.mark.parametrize(
    "scenario",
    [
        "results_and_data_are_the_servers",
        "others_and_other_calls_are_left_alone",
        "signal_does_not_take_away_what_was_done",
        "signal_before_anybody_read_comes_before_the_call",
        "restart_code_never_reaches_the_program",
        "children_inherit_and_exec_keeps",
        "stop_and_continue_while_parked",
        "call_is_made_natively_when_asked",
        "module_stays_while_it_is_used",
        "denied_and_killed",
        "only_special_files_are_caught",
        "local_descriptors_are_native",
        "strangers_may_nothing_but_serve",
        "pages_are_sent_as_they_are",
    ],
)
def test_scenario(scenario: str, parking: Scenarios) -> None:
    parking(scenario)


@pytest.mark.parametrize("flags", [0, SA_RESTART], ids=["EINTR", "SA_RESTART"])
def test_signal_interrupts_a_call_that_was_read(flags: int, parking: Scenarios) -> None:
    parking("signal_interrupts_a_call_that_was_read", flags)


@pytest.mark.parametrize("read", [0, 1], ids=["unread", "read"])
def test_sigkill_while_parked(read: int, parking: Scenarios) -> None:
    parking("sigkill_while_parked", read)


@pytest.mark.parametrize("orphan", ORPHANS.values(), ids=ORPHANS.keys())
def test_calls_go_on_as_their_verdict_says_when_the_server_dies(
    orphan: int, parking: Scenarios
) -> None:
    parking("death_of_the_server", orphan)


def test_several_threads_call_at_once(parking: Scenarios) -> None:
    parking("threads_call_at_once", 4, 50)


def test_nonsense_by_root_and_by_nobody_does_no_harm(parking: Scenarios, full: bool) -> None:
    parking("nonsense_does_no_harm", 100_000 if full else 1000)


def test_no_call_is_lost_or_doubled_under_random_signals(parking: Scenarios, full: bool) -> None:
    parking("calls_under_random_signals", 10_000 if full else 300)
