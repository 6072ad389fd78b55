"""Every message arrives as it was sent; whatever else comes is one error, never a wrong message."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.errors import ProtocolError
from mosix.wire import messages, mosd_messages
from mosix.wire.messages import decode, encode
from msgspec import inspect

CONVERSATIONS = (
    messages.ToRemote,
    messages.ToDeputy,
    mosd_messages.NodeToWorker,
    mosd_messages.WorkerToNode,
    mosd_messages.PeerAnswer,
    mosd_messages.PeerHello,
    mosd_messages.PeerMove,
    mosd_messages.PeerMoved,
)
_INT = 2**63


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: PLR0911, PLR0912
    """Values that a field of this type may have."""
    match kind:
        case inspect.StructType():
            return structs(kind.cls)
        case inspect.IntType():
            low, high = kind.ge if kind.ge is not None else -_INT, kind.le
            return st.integers(low, high if high is not None else _INT - 1)
        case inspect.FloatType():
            return st.floats(kind.ge, kind.le, allow_nan=False, allow_infinity=False)
        case inspect.StrType() if kind.pattern:
            return st.from_regex(kind.pattern.replace(r"\d", "[0-9]").removesuffix("$") + r"\Z")
        case inspect.StrType():
            return st.text(max_size=min(kind.max_length or 20, 20))
        case inspect.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=kind.max_length or 20)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.ListType():
            return st.lists(values(kind.item_type), max_size=3)
        case inspect.VarTupleType():
            return st.lists(values(kind.item_type), max_size=3).map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(values, kind.item_types))
        case inspect.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of(*map(values, kind.types))
    raise AssertionError(kind)


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return st.fixed_dictionaries({f.name: values(f.type) for f in info.fields}).map(
        lambda fields: cls(**fields)
    )


def kinds(conversation: Any) -> tuple[type[msgspec.Struct], ...]:
    return typing.get_args(conversation) or (conversation,)


ANY = st.sampled_from(CONVERSATIONS).flatmap(
    lambda talk: st.tuples(st.just(talk), st.one_of(*map(structs, kinds(talk))))
)


@given(ANY)
def test_what_is_sent_is_received(sent: tuple[Any, msgspec.Struct]) -> None:
    conversation, message = sent
    assert decode(encode(message), conversation) == message


def decoded(data: bytes, conversation: Any) -> msgspec.Struct | None:
    """None: it was refused, in the one way that callers know."""
    try:
        return typing.cast(msgspec.Struct, decode(data, conversation))
    except ProtocolError:
        return None


@given(ANY, st.data())
def test_a_damaged_message_is_refused_or_another_valid_one(
    sent: tuple[Any, msgspec.Struct], data: st.DataObject
) -> None:
    conversation, message = sent
    raw = bytearray(encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(("flip", "cut", "add"))):
        case "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del raw[at:]
        case "add":
            raw += data.draw(st.binary(min_size=1, max_size=4))
    found = decoded(bytes(raw), conversation)
    if found is not None:  # then it obeys all that is promised of a field
        assert decode(encode(found), conversation) == found


@given(st.binary(max_size=200), st.sampled_from(CONVERSATIONS))
def test_arbitrary_bytes_are_refused(data: bytes, conversation: Any) -> None:
    found = decoded(data, conversation)
    assert found is None or decode(encode(found), conversation) == found


@given(ANY)
def test_a_message_of_another_conversation_is_refused(sent: tuple[Any, msgspec.Struct]) -> None:
    """The deputy is a user's: what only mosd may say cannot be said to a remote by it."""
    conversation, message = sent
    for other in CONVERSATIONS:
        if other is not conversation and type(message) not in kinds(other):
            assert decoded(encode(message), other) is None


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert decoded(b"\x91" * depth, messages.ToRemote) is None
