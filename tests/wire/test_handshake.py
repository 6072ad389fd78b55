"""The handshake as a script: bytes from one side to the other, and what may not pass."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.errors import ProtocolError, RefusedError
from mosix.wire.frames import frame
from mosix.wire.handshake import (
    ABI_VERSION,
    MAX_HANDSHAKE_FRAME,
    NONCE_BYTES,
    Claim,
    Initiator,
    Responder,
)
from mosix.wire.messages import PROTOCOL_VERSION, decode, encode
from mosix.wire.mosd_messages import PeerHello

SECRET = b"known on all nodes"
HERE, THERE = "10.0.0.1", "10.0.0.2"
HELLO = PeerHello(
    version=PROTOCOL_VERSION,
    sender=HERE,
    receiver=THERE,
    purpose="guest",
    uid=1000,
    gid=1000,
    job="0123456789abcdef",
    pid=77,
    epoch=3,
)


def give(side: Initiator | Responder, data: bytes) -> bytes:
    """`data`, as far as `side` wants it, in pieces."""
    answer = b""
    while data and side.wanted:
        piece, data = data[: side.wanted], data[side.wanted :]
        answer += side.feed(piece)
    return answer


def converse(initiator: Initiator, responder: Responder) -> list[bytes]:
    """Until nobody has anything to say; the four messages."""
    said = [initiator.start()]
    sides: list[Initiator | Responder] = [responder, initiator]
    while said[-1]:
        side = sides[(len(said) - 1) % 2]
        said.append(give(side, said[-1]))
    return said[:-1]


def test_both_sides_end_proved_and_the_hello_arrives() -> None:
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)
    assert len(converse(initiator, responder)) == 4
    assert initiator.done
    assert responder.done
    assert responder.hello == HELLO
    assert initiator.wanted == responder.wanted == 0


def test_the_secret_and_what_could_be_tried_against_it_stay_unsaid() -> None:
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)
    said = converse(initiator, responder)
    assert SECRET not in b"".join(said)
    # Who merely connects gets 32 random bytes and nothing keyed.
    assert len(said[1]) == 10 + NONCE_BYTES


def test_a_wrong_secret_is_refused_with_that_reason() -> None:
    initiator, responder = Initiator(b"x" * 16, HELLO), Responder(SECRET, THERE, HERE)
    converse(initiator, responder)
    assert isinstance(responder.error, RefusedError)
    assert isinstance(initiator.error, RefusedError)
    assert initiator.error.message == f"node {THERE} refuses: wrong secret"
    assert not initiator.done
    assert not responder.done


def test_versions_are_named_on_both_sides_before_any_proof() -> None:
    initiator = Initiator(SECRET, HELLO, version=7)
    responder = Responder(SECRET, THERE, HERE)
    said = converse(initiator, responder)
    assert len(said) == 2
    for side in (initiator, responder):
        assert isinstance(side.error, RefusedError)
        assert f"7.{ABI_VERSION}" in side.error.message
        assert f"{PROTOCOL_VERSION}.{ABI_VERSION}" in side.error.message


def test_who_is_not_in_the_map_is_told_so() -> None:
    refuse = RefusedError("10.0.0.1 is not in its mosix.map")
    initiator = Initiator(SECRET, HELLO)
    converse(initiator, Responder(SECRET, THERE, HERE, refuse=refuse))
    assert isinstance(initiator.error, RefusedError)
    assert "not in its mosix.map" in initiator.error.message


@pytest.mark.parametrize(("own", "peer"), [(THERE, "10.0.0.9"), ("10.0.0.9", HERE)])
def test_a_proof_for_other_addresses_is_refused(own: str, peer: str) -> None:
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, own, peer)
    converse(initiator, responder)
    assert isinstance(responder.error, RefusedError)
    assert not initiator.done


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "move"},
        {"uid": 0},
        {"gid": 0},
        {"job": "f" * 16},
        {"pid": 78},
        {"epoch": 4},
        {"token": bytes(16)},
        {"sender": "10.0.0.3"},
        {"receiver": "10.0.0.3"},
        {"version": PROTOCOL_VERSION + 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_proof_is_for_what_it_names_and_nothing_else(other: dict[str, object]) -> None:
    """Somebody on the way changes what the connection is for."""
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)
    claim = give(initiator, give(responder, initiator.start()))
    good = decode(claim[4:], Claim)
    changed = Claim(encode(msgspec.structs.replace(HELLO, **other)), good.proof)
    give(responder, frame(encode(changed), MAX_HANDSHAKE_FRAME))
    assert isinstance(responder.error, RefusedError)
    assert responder.error.message == "wrong secret"
    assert not responder.done


def test_a_recorded_claim_is_worthless_on_another_connection() -> None:
    recorded = converse(Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE))
    responder = Responder(SECRET, THERE, HERE)
    give(responder, recorded[0])
    give(responder, recorded[2])
    assert isinstance(responder.error, RefusedError)


def test_a_recorded_proof_does_not_make_a_false_responder() -> None:
    recorded = converse(Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE))
    initiator = Initiator(SECRET, HELLO)
    give(initiator, recorded[1])
    give(initiator, recorded[3])
    assert isinstance(initiator.error, RefusedError)
    assert "does not know the secret" in initiator.error.message


def test_what_is_reflected_is_not_taken() -> None:
    initiator = Initiator(SECRET, HELLO)
    give(initiator, initiator.start())
    assert isinstance(initiator.error, ProtocolError)
    # With two connections: the claim of one as the proof of the other.
    one = Initiator(SECRET, HELLO, nonce=b"1" * NONCE_BYTES)
    other = Initiator(SECRET, HELLO, nonce=b"2" * NONCE_BYTES)
    claim = give(one, other.start())
    give(other, one.start())
    give(other, claim)
    assert other.error is not None
    assert not other.done


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096), st.integers(1, 64))
def test_arbitrary_bytes_end_a_handshake_without_a_proof(data: bytes, piece: int) -> None:
    for side in (Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)):
        rest = data
        while rest and side.wanted:
            taken = rest[: min(piece, side.wanted)]
            side.feed(taken)
            rest = rest[len(taken) :]
        side.eof()
        assert not side.done
        assert side.error is not None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)
    flipped = data.draw(st.integers(0, 3))
    message = initiator.start()
    for number in range(4):
        if number == flipped:
            bit = data.draw(st.integers(0, len(message) * 8 - 1))
            changed = bytearray(message)
            changed[bit // 8] ^= 1 << bit % 8
            message = bytes(changed)
        side = responder if number % 2 == 0 else initiator
        message = give(side, message)
        if not message:
            break
    assert not (initiator.done and responder.done)
    # A changed nonce or claim fools nobody, a changed proof not the initiator.
    assert not initiator.done


@given(st.integers(MAX_HANDSHAKE_FRAME + 1, 2**32 - 1))
def test_an_announced_size_above_the_limit_ends_it_at_once(size: int) -> None:
    initiator, responder = Initiator(SECRET, HELLO), Responder(SECRET, THERE, HERE)
    give(responder, initiator.start())
    give(responder, size.to_bytes(4, "little"))
    assert isinstance(responder.error, ProtocolError)


def test_it_binds_the_version_of_the_native_protocol() -> None:
    header = Path(__file__).parents[2] / "pysrc" / "native" / "abi.h"
    found = re.search(r"#define MX_ABI_VERSION (\d+)", header.read_text())
    assert found is not None
    assert int(found[1]) == ABI_VERSION
