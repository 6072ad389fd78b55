"""What an owner says of his node, and that it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from mosix.balancer.vectors import Flags
from mosix.node.owner import Owner, OwnerFlags


def test_what_the_owner_says_outlives_mosd(tmp_path: Path) -> None:
    path = tmp_path / "owner"
    owner = Owner(path)
    assert owner.said == OwnerFlags()
    assert owner.say(block=True, logmap=False)
    assert not owner.say(block=True), "it was said already"
    again = Owner(path)
    assert again.said == OwnerFlags(block=True, logmap=False)
    assert again.said.words() == ["block", "nologmap"]
    assert again.say(block=False)
    assert Owner(path).said.takes_guests
    path.write_text("{")
    assert Owner(path).said == OwnerFlags()


def test_what_cannot_be_kept_is_not_said(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "none" / "owner")
    with pytest.raises(FileNotFoundError):
        owner.say(stay=True)
    assert owner.said == OwnerFlags()


@pytest.mark.parametrize(
    ("said", "takes", "own", "guests", "flags"),
    [
        (OwnerFlags(), True, True, True, Flags(0)),
        (OwnerFlags(block=True), False, True, True, Flags.BLOCK),
        (OwnerFlags(stay=True), True, False, False, Flags.STAY),
        (OwnerFlags(lstay=True), True, False, True, Flags.LOCAL_STAY),
        (OwnerFlags(drain=True), False, False, True, Flags.DRAIN),
        (OwnerFlags(drain=True, stay=True), False, False, True, Flags.DRAIN | Flags.STAY),
    ],
)
def test_each_word_means_what_the_manual_says(
    said: OwnerFlags, takes: bool, own: bool, guests: bool, flags: Flags
) -> None:
    assert said.takes_guests is takes
    assert said.may_leave(own=True) is own
    assert said.may_leave(own=False) is guests
    assert said.flags == flags
