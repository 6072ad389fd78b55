"""What root may order a node: mosctl's stay, block, expel, drain and their like, and setpe.

Called by `mosix.node.services` for commands and for the mosds of other nodes, whose roots are
trusted as ours is. Who has no right is refused here. What was said is kept by `mosix.node.owner`,
moved by `mosix.node.evacuation`, read from files by `mosix.node.settings`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from mosix.errors import (
    KernelError,
    MosixError,
    MoveFailedError,
    NodeDownError,
    RefusedError,
    from_code,
)
from mosix.node.deputies import NodeNames
from mosix.node.evacuation import Evacuation, Outcome
from mosix.node.gossip import GossipService
from mosix.node.owner import Owner
from mosix.node.peers import Dialer
from mosix.node.registry import Guest, Process
from mosix.node.requests import Configured, Evacuate, Evacuated, Said, Say, Setpe
from mosix.node.rights import Caller, check_root
from mosix.node.settings import Reread, Settings
from mosix.wire.channel import Frames
from mosix.wire.mosd_messages import PeerAccept, PeerEvacuate, PeerEvacuated, PeerHello

_log = logging.getLogger("mosd.owner")

#: How long setpe waits for those who have to go home, seconds; they are asked on behind that.
PARTING_S = 120.0
#: While the node is drained or off, between two looks for somebody who should not be here, seconds.
_KEEP_S = 2.0
#: From a peer that has proved itself to what it wants, seconds.
_ORDER_TIMEOUT_S = 5.0
#: From the answer to a shutdown to the end, seconds.
_LAST_WORDS_S = 0.2

DRAIN, NODRAIN = "drain", "nodrain"


class Administration:
    """Of one node. `end`: has mosd stop, as by SIGTERM."""

    def __init__(
        self,
        settings: Settings,
        owner: Owner,
        evacuation: Evacuation,
        *,
        gossip: GossipService,
        dialer: Dialer,
        names: NodeNames,
        end: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._gossip = gossip
        self._dialer = dialer
        self._names = names
        self._end = end
        self._evacuation = evacuation
        self._empties = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled: as long as the node is drained or off nobody stays who could not leave
        at first."""
        while True:
            said = self._owner.said
            if not (said.drain or said.off):
                self._empties.clear()
                await self._empties.wait()
                continue
            await self._evacuation.run(guests=_any, own=_any, deadline_s=_KEEP_S, settle=False)
            await asyncio.sleep(_KEEP_S)

    def words(self) -> list[str]:
        return self._owner.said.words()

    async def request(
        self, caller: Caller, request: Say | Evacuate | Setpe
    ) -> Said | Evacuated | Configured:
        """MosixError, OSError."""
        match request:
            case Say():
                return self._say(caller, request)
            case Setpe():
                check_root(caller.uid, "change what this node belongs to")
                return await self.reread(off=request.off)
        ip = await self._names.resolve(request.node) if request.node else self._settings.config.ip
        if ip != self._settings.config.ip:
            return await self._drain_there(caller, request, ip)
        return _shown(await self._evacuate(caller.uid, request.what, request.deadline_s))

    # ---- what the owner says ----

    def _say(self, caller: Caller, request: Say) -> Said:
        check_root(caller.uid, f"say {'' if request.so else 'no'}{request.word}")
        new = self._owner.say(**{request.word: request.so})
        if new:
            _log.info("uid %d says %s%s", caller.uid, "" if request.so else "no", request.word)
        return Said(words=self._owner.said.words(), new=new)

    # ---- everybody out ----

    async def _evacuate(self, uid: int, what: str, deadline_s: float | None) -> Outcome:
        """`what` as in `requests.Evacuate`, on this node."""
        check_root(uid, what)
        match what:
            case "expel":
                return await self._evacuation.run(guests=_any, deadline_s=deadline_s)
            case "bring":
                return await self._evacuation.run(own=_any, deadline_s=deadline_s)
            case "nodrain":
                self._owner.say(drain=False)
                return Outcome()
            case "drain":
                self._say_drain()
                return await self._everybody(deadline_s)
        return await self._shut_down(deadline_s)

    def _say_drain(self) -> None:
        if self._owner.say(drain=True):
            _log.info("drained: guests leave, own processes come home")
        self._empties.set()

    async def _everybody(self, deadline_s: float | None) -> Outcome:
        return await self._evacuation.run(guests=_any, own=_any, deadline_s=deadline_s)

    async def _shut_down(self, deadline_s: float | None) -> Outcome:
        """MoveFailedError: somebody could not be sent where he belongs, so mosd goes on."""
        drained = self._owner.said.drain
        self._say_drain()
        outcome = await self._everybody(deadline_s)
        if outcome.left:
            raise MoveFailedError(
                f"mosd goes on, drained, for who could not go: {'; '.join(outcome.left)}",
                "again later, or: mosctl nodrain",
            )
        # The next mosd begins as this one did.
        self._owner.say(drain=drained)
        # Behind the answer, for which mosd would not wait.
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._end)
        return outcome

    # ---- other nodes ----

    async def _drain_there(self, caller: Caller, request: Evacuate, ip: str) -> Evacuated:
        check_root(caller.uid, request.what)
        if request.what not in (DRAIN, NODRAIN):
            raise RefusedError(f"{request.what} is for this node only", "mosctl drain takes a node")
        sock, _ = await self._dialer.dial(ip, "evacuate", uid=caller.uid)
        with sock:
            frames: Frames[PeerEvacuated] = Frames(sock, PeerEvacuated)
            try:
                undo = request.what == NODRAIN
                await frames.send(PeerEvacuate(undo=undo, deadline_s=request.deadline_s))
                done = await frames.receive()
            except (OSError, EOFError) as error:
                raise NodeDownError(
                    f"node {ip} does not answer any more; it is drained by itself if it goes on",
                    f"mosctl status {ip}",
                ) from error
        if done.error:
            raise from_code(done.code, f"node {ip}: {done.error}", done.hint)
        left = list(done.left)
        return Evacuated(guests=done.guests, own=done.own, seconds=done.seconds, left=left)

    async def serve(self, hello: PeerHello, sock: socket.socket) -> None:
        """For root of another node, which may be gone before it is done: it is done all the same.
        MosixError, OSError."""
        check_root(hello.uid, "drain a node")
        frames: Frames[PeerEvacuate] = Frames(sock, PeerEvacuate)
        await frames.send(PeerAccept())
        async with asyncio.timeout(_ORDER_TIMEOUT_S):
            order = await frames.receive()
        what = NODRAIN if order.undo else DRAIN
        try:
            done = await self._evacuate(hello.uid, what, order.deadline_s)
        except (MosixError, OSError) as error:
            failed = error if isinstance(error, MosixError) else KernelError(str(error))
            text, hint = failed.message[:2000], failed.hint[:2000]
            await frames.send(PeerEvacuated(error=text, code=failed.code, hint=hint))
            return
        left = tuple(text[:2000] for text in done.left)
        await frames.send(
            PeerEvacuated(guests=done.guests, own=done.own, seconds=done.seconds, left=left)
        )

    # ---- setpe ----

    async def reread(self, *, off: bool) -> Configured:
        """Takes what the files say, and sends home whoever may not be where he is any more.
        ConfigError: the last good configuration stays in force."""
        found = await self._settings.reread(off=off)
        config = self._settings.config
        self._owner.say(off=off)
        self._gossip.set_config(config, self._settings.secret)
        added, removed = found.counts()
        if self._owner.said.logmap and (added or removed):
            _log.info("the map has changed: %d nodes added, %d removed", added, removed)
        self._empties.set()
        outcome = await self._part(found)
        return Configured(
            nodes=len(config.nodes), added=added, removed=removed, off=off, moved=_shown(outcome)
        )

    async def _part(self, found: Reread) -> Outcome:
        def is_strange(guest: Guest) -> bool:
            return self._settings.off or found.removed(guest.home)

        def is_lost(process: Process) -> bool:
            where = process.where
            outside = not process.attributes.job_class and found.after.outsider(where)
            return self._settings.off or found.removed(where) or outside

        outcome = await self._evacuation.run(guests=is_strange, own=is_lost, deadline_s=PARTING_S)
        if not outcome.left:
            self._settings.parted()
        return outcome


def _any(_: Guest | Process) -> bool:
    return True


def _shown(outcome: Outcome) -> Evacuated:
    return Evacuated(
        guests=outcome.guests, own=outcome.own, seconds=outcome.seconds, left=outcome.left
    )
