"""What other nodes say of themselves and of processes is within bounds, or is not heard."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.errors import ProtocolError
from mosix.wire.bargain import ANSWERING, ASKING, NodeTruth, Offer, Truth, Weight
from mosix.wire.messages import decode, encode

TRUTH = {"running": 1.0, "cores": 2.0, "speed": 1e4, "free_mb": 10.0, "memory_mb": 20.0}
WEIGHT = {"age_s": 1.0, "need_mb": 1.0, "move_s": 1.0, "calls": 1.0, "transfer_s": 1.0}


def weight(**changes: float) -> Weight:
    return Weight(job="0" * 16, pid=1, home="10.0.0.1", **{**WEIGHT, **changes})


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("lie", [-1.0, math.nan, math.inf, -math.inf, 1e30])
def test_an_impossible_node_is_not_heard(name: str, lie: float) -> None:
    said = encode(Truth(truth=NodeTruth(**{**TRUTH, name: lie})))
    with pytest.raises(ProtocolError):
        decode(said, ANSWERING)


@pytest.mark.parametrize("name", WEIGHT)
@pytest.mark.parametrize("lie", [-1.0, math.nan, math.inf])
def test_an_impossible_process_is_not_heard(name: str, lie: float) -> None:
    said = encode(Offer(weight=weight(**{name: lie}), truth=NodeTruth(**TRUTH)))
    with pytest.raises(ProtocolError):
        decode(said, ASKING)


@given(st.binary(max_size=200))
def test_noise_is_a_malformed_message_and_nothing_else(data: bytes) -> None:
    for kind in (ASKING, ANSWERING):
        with pytest.raises(ProtocolError):
            decode(data, kind)
