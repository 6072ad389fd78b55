"""The conversation of purpose `balance` between two mosds (`mosix.wire.bargain`), both sides of it.

`ask` puts one question to another node; `Parley` is a connection on which that may go on; `serve`
answers with what a `Partner` (mosix.node.decider) says. Never waits long: whoever does not answer
at once is no target.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from mosix.errors import MosixError, NodeDownError, ProtocolError
from mosix.node.peers import Dialer
from mosix.wire.bargain import (
    ANSWERING,
    ASKING,
    Agreed,
    Answering,
    Asking,
    Consider,
    Considered,
    Explain,
    Explained,
    Found,
    NodeTruth,
    Offer,
    Probe,
    Pull,
    Reserve,
    Sending,
    Take,
    Truth,
    Weight,
)
from mosix.wire.channel import Frames
from mosix.wire.mosd_messages import PeerAccept, PeerAnswer, PeerHello

#: For the connection, its proof and an answer, seconds.
ANSWER_S = 4.0
#: How long the one that was asked waits for what follows.
_NEXT_S = 10.0


class Partner(Protocol):
    """What is asked of this node."""

    def truth(self) -> NodeTruth: ...

    def agree(self, sender: str, offer: Offer) -> Agreed: ...

    def reserve(self, sender: str, order: Reserve) -> Agreed: ...

    def give(self, sender: str, pull: Pull) -> tuple[Weight, float] | None:
        """Whom this node would give it, and what is gained."""
        ...

    def send(self, target: str, pull: Pull, weight: Weight, gain: float) -> str:
        """Orders what was found; why not, "" if it is ordered."""
        ...

    async def consider(self, sender: str, question: Consider) -> str | None: ...

    def explain(self, sender: str, question: Explain) -> str: ...


class Parley:
    """A connection to another node's mosd; to be closed."""

    def __init__(self, sock: socket.socket, ip: str) -> None:
        self._sock = sock
        self.ip = ip
        self._frames: Frames[Answering] = Frames(sock, ANSWERING)

    @classmethod
    async def begin(cls, dialer: Dialer, ip: str) -> Parley:
        """NodeDownError, RefusedError, UnknownNodeError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                sock, _ = await dialer.dial(ip, "balance")
        except TimeoutError as error:
            raise NodeDownError(f"node {ip} does not answer within {ANSWER_S:.0f} s") from error
        return cls(sock, ip)

    async def ask(self, question: Asking) -> Answering:
        """NodeDownError; ProtocolError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._frames.send(question)
                return await self._frames.receive()
        except (OSError, EOFError, TimeoutError) as error:
            raise NodeDownError(f"node {self.ip} does not answer") from error

    def close(self) -> None:
        self._sock.close()


async def ask(dialer: Dialer, ip: str, question: Asking) -> Answering:
    """One question. As `Parley.begin` and `Parley.ask`."""
    parley = await Parley.begin(dialer, ip)
    try:
        return await parley.ask(question)
    finally:
        parley.close()


async def serve(partner: Partner, hello: PeerHello, sock: socket.socket) -> None:
    """A proved peer asks. OSError, EOFError, TimeoutError, ProtocolError: it is gone, or talks
    nonsense."""
    await Frames[PeerAnswer](sock, PeerAnswer).send(PeerAccept())
    frames: Frames[Asking] = Frames(sock, ASKING)
    async with asyncio.timeout(_NEXT_S):
        question = await frames.receive()
    sender = hello.sender
    match question:
        case Probe():
            await _say(frames, Truth(truth=partner.truth()))
        case Offer():
            await _say(frames, partner.agree(sender, question))
        case Reserve():
            await _say(frames, partner.reserve(sender, question))
        case Consider():
            target = await partner.consider(sender, question)
            await _say(frames, Considered(target=target))
        case Explain():
            text = partner.explain(sender, question)
            await _say(frames, Explained(text=text[:2000]))
        case Pull():
            await _give(partner, frames, sender, question)
        case Take():
            raise ProtocolError("nothing was found that could be taken")


async def _give(partner: Partner, frames: Frames[Asking], sender: str, pull: Pull) -> None:
    found = partner.give(sender, pull)
    if found is None:
        await _say(frames, Truth(truth=partner.truth()))
        return
    weight, gain = found
    await _say(frames, Found(truth=partner.truth(), weight=weight, gain=gain))
    try:
        async with asyncio.timeout(_NEXT_S):
            if not isinstance(await frames.receive(), Take):
                raise ProtocolError("only that one can be taken")
    except (EOFError, TimeoutError):
        return  # it has found a better one
    await _say(frames, Sending(error=partner.send(sender, pull, weight, gain)[:2000]))


async def _say(frames: Frames[Asking], answer: Answering) -> None:
    async with asyncio.timeout(_NEXT_S):
        await frames.send(answer)


async def truth_of(dialer: Dialer, ip: str) -> NodeTruth | None:
    """How a node is; None: it does not answer."""
    try:
        answer = await ask(dialer, ip, Probe())
    except (MosixError, OSError):
        return None
    return answer.truth if isinstance(answer, Truth) else None
