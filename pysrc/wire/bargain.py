"""What mosds say to each other about where a process should run: purpose `balance`.

After `PeerAccept` the one that connected asks one question of `Asking` and gets one of `Answering`;
only after `Found` may it go on, with `Take`. Each speaks for itself with its own, newest numbers;
every number is bounded here, so that nothing another node says is more than a number too high.
This module only describes; it never sends. Used by `mosix.node.bargain`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from mosix.wire.messages import Amount, Ip, JobId, Pid, Tagged, Text


class NodeTruth(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it is now. `running`: processes that run or will soon, promised ones included;
    `slow`: how many times slower it is for want of memory; `takes`: why it takes no guest, ""
    if it does; sizes in MB, less what is promised."""

    running: Amount
    cores: Annotated[float, msgspec.Meta(ge=0.01, le=8192)]
    speed: Annotated[float, msgspec.Meta(ge=100, le=1e7)]
    free_mb: Amount
    memory_mb: Amount
    slow: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    takes: Text = ""


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """A process as decisions weigh it (`mosix.balancer.policy.PROCESS`). `pid`: at its home."""

    job: JobId
    pid: Pid
    home: Ip
    age_s: Amount
    need_mb: Amount
    move_s: Amount
    calls: Amount
    transfer_s: Amount


class Probe(Tagged, frozen=True, kw_only=True):
    """How are you?"""


class Offer(Tagged, frozen=True, kw_only=True):
    """Would it be better off with you than here? Then keep a place for it."""

    weight: Weight
    truth: NodeTruth


class Reserve(Tagged, frozen=True, kw_only=True):
    """A program is about to start at your node, as process `pid` of its home."""

    pid: Pid
    need_mb: Amount


class Pull(Tagged, frozen=True, kw_only=True):
    """I have a core to spare: whom would you give me?"""

    truth: NodeTruth


class Consider(Tagged, frozen=True, kw_only=True):
    """Home asks: where should my process `pid` be, which runs at your node?"""

    job: JobId
    pid: Pid


class Explain(Tagged, frozen=True, kw_only=True):
    """Home asks: why is my process `pid` at your node?"""

    job: JobId
    pid: Pid


class Take(Tagged, frozen=True, kw_only=True):
    """Send it: there is a place for it."""


Asking = Probe | Offer | Reserve | Pull | Consider | Explain | Take


class Truth(Tagged, frozen=True, kw_only=True):
    """Answer to `Probe`; to `Pull`: nobody."""

    truth: NodeTruth


class Agreed(Tagged, frozen=True, kw_only=True):
    """Answer to `Offer` and `Reserve`. `gain`: CPU seconds; 0: the process stays out."""

    truth: NodeTruth
    gain: Amount
    reason: Text = ""


class Found(Tagged, frozen=True, kw_only=True):
    """Answer to `Pull`: this one, if you have a place; else close."""

    truth: NodeTruth
    weight: Weight
    gain: Amount


class Sending(Tagged, frozen=True, kw_only=True):
    """Answer to `Take`: it is ordered to come, or why it is not."""

    error: Text = ""


class Considered(Tagged, frozen=True, kw_only=True):
    """Answer to `Consider`. `target` None: where it is."""

    target: Ip | None = None


class Explained(Tagged, frozen=True, kw_only=True):
    """Answer to `Explain`."""

    text: Text


Answering = Truth | Agreed | Found | Sending | Considered | Explained

#: For `mosix.wire.channel.Frames`, which wants a type.
ASKING: Any = Asking
ANSWERING: Any = Answering
