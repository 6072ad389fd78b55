"""What a remote says too late does nothing to a ghost that a move has."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from mosix.deputy.process import JobProcess, Place
from mosix.wire.attributes import JobAttributes


@pytest.mark.parametrize(("obeying", "paused"), [(True, False), (False, True)])
def test_a_cancel_that_comes_late_does_not_touch_a_ghost_in_a_move(
    obeying: bool, paused: bool
) -> None:
    process = JobProcess(Mock(), 1, JobAttributes())
    process.tracee, process.link = Mock(), Mock()
    process.agent = Mock(obeying=obeying, paused=paused)
    process.place = Place.MOVING
    process.cancel(7)
    assert not process.tracee.method_calls
    assert not process.link.method_calls
