"""Load vectors travel by gossip: what each node says reaches all, and the dead are noticed.

A state machine without sockets and clocks: `tick` once a period and `receive` for each datagram,
both with the local monotonic time in seconds; both return the datagrams to send. mosd drives it
over UDP, `gossip_network` in simulated time. Must never do I/O, and never raise because of what
a datagram holds.

Spreading (Amar, Barak, Drezner, Okun 2009): each period a node renews its own entry and pushes
its window, the freshest entries it has, to a random node that is alive; `alternate` makes every
second period a pull from the node of which it has the oldest news, which pays for windows up to
a quarter of the cluster. Nodes believed dead are sent to with a probability such that each gets
about one datagram a period from all others together ("mindead"): that heals partitions. What
changes more than by time (a status, flags) is put first into the window for a while.

Liveness (after SWIM and Lifeguard): the oldest entry, once older than is likely, is asked for
directly, then through three others; then the node is suspected *at the version known*. Any newer
version refutes that, so a node that hears of its own suspicion renews its entry and sends it as
urgent. Unrefuted suspicion becomes death. Who hears of nobody doubts itself first: its limits
grow. A version begins at the wall clock and only ever grows, so a restarted node is newer; one
whose clock went back learns its last version from others and continues from it.

Datagrams carry a MAC of the cluster's secret. Against replay: the sender's session (its first
version) and a sequence number within it, and the receiver's session as the sender knows it from
an authentic datagram. Who does not know it yet, or knows an old one, gets `HELLO` and sends again;
a `HELLO` answers one sequence number of one session and so cannot be replayed either.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from mosix.balancer.gossip_wire import PER_DATAGRAM, Kind, Packet, Peer, RefusedDatagram, Seal
from mosix.balancer.vectors import (
    MAX_VERSION,
    Floats,
    Indices,
    Status,
    VectorTable,
    checked_loads,
    decode_entries,
)
from numpy.typing import NDArray

_INDIRECT: Final = 3
_PROBES_AT_ONCE: Final = 4
#: Periods without any datagram that are ordinary (of 100 nodes two hear nothing for 4), and
#: how many more make a node no more doubtful.
_ORDINARY_SILENCE: Final = 4
_MAX_DOUBT: Final = 8


class Datagram(NamedTuple):
    """`to`: IPv4 address as an integer."""

    to: int
    data: bytes


@dataclass(frozen=True)
class Rules:
    """`window`: entries per push. `alternate`: see above. Times are in periods of `period_s`."""

    window: int
    period_s: float = 1.0
    alternate: bool = False
    probing: bool = True
    #: how long a probed node has to answer, then again through others
    answer_periods: float = 1.0
    #: suspicion lasts this, times log10(n), at least twice itself
    suspicion_periods: float = 4.0


def rules_for(nodes: int, period_s: float = 1.0) -> Rules:
    """Window and mode for a cluster: all of a small one, an eighth (at least 16) of a large one;
    the alternate pull where it is measured to be better: small windows, not too many nodes."""
    window = min(nodes, max(16, nodes // 8), 128)
    return Rules(window, period_s, alternate=4 * window <= nodes <= 256)


def expected_oldest_periods(nodes: int, window: int) -> float:
    """Expected age of the oldest entry of a vector, in periods (formula of the paper)."""
    if nodes < 3:
        return 2.0
    w = min(window, nodes - 1)
    return -(math.log(nodes) + 0.5772) / (w * math.log1p(-1 / (nodes - 1)))


def expected_mean_periods(nodes: int, window: int) -> float:
    """Expected mean age of the entries of a vector with a fixed window < nodes (ibid.)."""
    n, x = nodes, window
    horizon = (n - 1) / n * math.log(x * (n - 1) / (n - x))
    within = horizon - (n - 1) / x * (
        math.log(n - 1 + math.exp(n * horizon / (n - 1))) - math.log(n)
    )
    return 1 / (1 - (1 - 1 / (n - 1)) ** x) + within


@dataclass(slots=True)
class _Probe:
    version: int
    deadline: float
    indirect: bool = False


@dataclass
class Counts:
    """For `mosctl status`: `refused` by reason."""

    sent: int = 0
    received: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Gossip:
    """One node's side. `table` holds what it knows; its own row is set by `set_own`."""

    def __init__(
        self,
        own: int,
        nodes: Iterable[int],
        secret: bytes,
        rules: Rules,
        *,
        wall_ms: int,
        seed: int | None = None,
    ) -> None:
        """`wall_ms`: wall clock, for the first version only. ValueError if `own` is not among
        `nodes`."""
        addresses = np.array(sorted(nodes), np.uint32)
        if own not in addresses:
            raise ValueError("this node is not among the nodes")
        self.table = VectorTable(addresses)
        self.own = own
        self.rules = rules
        self.counts = Counts()
        self._seal = Seal(secret)
        self._random = random.Random(seed)
        self._me = self.table.index(own)
        low = self._random.getrandbits(16)
        self._session = max(1, min((wall_ms << 16) | low, MAX_VERSION >> 1))
        self._peers: dict[int, Peer] = {}
        self._probes: dict[int, _Probe] = {}
        self._suspected_at: dict[int, float] = {}
        self._urgent: dict[int, int] = {}
        self._row = self.table.loads[:, self._me].copy()
        self._row_flags = self._row_features = 0
        self._last_tick: float | None = None
        self._ticks = 0
        self._heard_at: float | None = None
        self.table.version[self._me] = self._session
        self.table.status[self._me] = Status.ALIVE
        self._recount()

    # ---- what mosd says ----

    def set_own(self, loads: Floats, now: float, *, flags: int = 0, features: int = 0) -> None:
        """This node's newest values (a row of `pack_loads`). Other `flags` than before are
        urgent: put first into windows, here and by whoever hears of them."""
        if flags != self._row_flags:
            self._make_urgent([self._me])
        self._row, self._row_flags, self._row_features = checked_loads(loads), flags, features
        self.renew(now)

    def leave(self, now: float) -> list[Datagram]:
        """The last words: others need not wait for suspicion."""
        self.renew(now)
        self.table.status[self._me] = Status.LEFT
        alive = [k for k in self._alive if k != self._me]
        targets = self._random.sample(alive, min(len(alive), 2 * _INDIRECT))
        return [d for k in targets for d in self._send(k, Kind.PUSH, 0, now)]

    def set_secret(self, secret: bytes) -> None:
        """Datagrams carry this one's MAC from now on."""
        self._seal = Seal(secret)

    def set_nodes(self, nodes: Iterable[int], rules: Rules | None = None) -> None:
        """The map was read again: forget removed nodes, keep what is known of the others."""
        self.rules = rules or self.rules
        old = self.table
        table = VectorTable(np.array(sorted(nodes), np.uint32))
        kept = np.isin(table.nodes, old.nodes)
        source = old.nodes.searchsorted(table.nodes[kept])
        for name in ("version", "status", "born", "flags", "features"):
            getattr(table, name)[kept] = getattr(old, name)[source]
        table.loads[:, kept] = old.loads[:, source]
        moved = dict(zip(source.tolist(), np.flatnonzero(kept).tolist(), strict=True))
        self._me = table.index(self.own)
        self.table = table
        for mine in (self._peers, self._probes, self._suspected_at, self._urgent):
            _rename(mine, moved)
        self._recount()

    # ---- the machine ----

    def tick(self, now: float) -> list[Datagram]:
        """Once a period."""
        late = self._last_tick is not None and now - self._last_tick > 3 * self.rules.period_s
        self._last_tick = now
        self.renew(now)
        out: list[Datagram] = []
        if late:
            # Stopped or suspended: that everything is old says nothing about the others.
            self._probes.clear()
            self._suspected_at = dict.fromkeys(self._suspected_at, now)
        elif self.rules.probing:
            out += self._judge(now)
        pull = self._oldest() if self.rules.alternate and self._ticks % 2 else None
        self._ticks += 1
        if pull is not None:
            out += self._send(pull, Kind.PULL, 0, now)
        else:
            others = len(self._alive) - 1
            if others > 0:
                target = self._alive[self._random.randrange(others + 1)]
                while target == self._me:
                    target = self._alive[self._random.randrange(others + 1)]
                out += self._send(target, Kind.PUSH, 0, now)
        dead = self._silent
        if dead and self._random.random() < len(dead) / max(1, len(self._alive)):
            out += self._send(self._random.choice(dead), Kind.PUSH, 0, now)
        self._count_down()
        return out

    def receive(self, now: float, sender: int, data: bytes) -> list[Datagram]:
        """A datagram from address `sender`. What is not authentic, fresh and meant for this node
        changes nothing; the reason is counted."""
        try:
            packet = self._seal.unpack(data)
            index = self._check_names(packet, sender)
            peer = self._peer(index)
            if packet.kind == Kind.HELLO:
                return self._hello(index, peer, packet, now)
            if packet.echo != self._session or packet.session < peer.session:
                self.counts.refused["unproved"] += 1
                return self._introduce(index, peer, packet, now)
            peer.begin(packet.session)
            if not peer.fresh(packet.sequence):
                raise RefusedDatagram("replayed")
        except RefusedDatagram as refused:
            self.counts.refused[refused.args[0]] += 1
            return []
        self._accept(packet, now)
        if packet.kind == Kind.PULL:
            return self._send(index, Kind.PUSH, 0, now)
        return self._pull_for(packet.argument, now) if packet.kind == Kind.ASK else []

    # ---- parts ----

    def _pull_for(self, node: int, now: float) -> list[Datagram]:
        try:
            wanted = self.table.index(node)
        except KeyError:
            return []
        if wanted == self._me:
            return []
        # What comes back is new, so it is at the head of the windows by itself; urgent as well,
        # since somebody is about to suspect it.
        self._make_urgent([wanted])
        return self._send(wanted, Kind.PULL, 0, now)

    def _check_names(self, packet: Packet, sender: int) -> int:
        """Index of the sender; RefusedDatagram."""
        if packet.receiver != self.own or packet.sender != sender or sender == self.own:
            raise RefusedDatagram("not for us")
        try:
            return self.table.index(sender)
        except KeyError:
            raise RefusedDatagram("not in the map") from None

    def _hello(self, index: int, peer: Peer, packet: Packet, now: float) -> list[Datagram]:
        """`index` does not know us as we are, and says who it is; what was sent is repeated."""
        if packet.echo != self._session or not peer.hello_for < packet.argument <= peer.sent:
            raise RefusedDatagram("replayed")
        peer.hello_for = packet.argument
        news = peer.begin(packet.session)
        self._accept(packet, now)
        if self._session < packet.sequence < MAX_VERSION:
            self._begin_session(packet.sequence + 1)
            news = True
        return self._send(index, *peer.last_sent, now) if news else []

    def _accept(self, packet: Packet, now: float) -> None:
        self.counts.received += 1
        self._heard_at = now
        self._take(decode_entries(packet.entries), now)

    def _begin_session(self, version: int) -> None:
        self._session = min(version, MAX_VERSION - 1)
        self.table.version[self._me] = max(int(self.table.version[self._me]), self._session)
        for peer in self._peers.values():
            peer.sent = peer.hello_for = 0

    def _take(self, entries: NDArray[np.void], now: float) -> None:
        """Everything that enters comes through here."""
        mine = entries["node"] == self.own
        if mine.any():
            claim = entries[mine]
            version, own = int(claim["version"].max()), int(self.table.version[self._me])
            if version > own or (version == own and claim["status"].max() > Status.ALIVE):
                # From before our restart, or a suspicion: only something newer refutes it.
                self.table.version[self._me] = min(version, MAX_VERSION - 2)
                self.renew(now)
                self._make_urgent([self._me])
            entries = entries[~mine]
        if not len(entries):
            return
        status, flags = self.table.status.copy(), self.table.flags.copy()
        for index in self.table.merge(entries, now).tolist():
            if status[index] != self.table.status[index]:
                self._status_changed(index, now)
            elif flags[index] != self.table.flags[index]:
                # The owner's word (block, drain) is passed on as it was sent: first.
                self._make_urgent([index])

    def _status_changed(self, index: int, now: float) -> None:
        if self.table.status[index] == Status.SUSPECT:
            self._suspected_at.setdefault(index, now)
        else:
            self._suspected_at.pop(index, None)
        self._make_urgent([index])
        self._recount()

    def renew(self, now: float) -> None:
        """Our own entry is true now."""
        me, table = self._me, self.table
        table.version[me] = min(int(table.version[me]) + 1, MAX_VERSION - 1)
        table.status[me] = Status.ALIVE
        table.born[me] = now
        table.loads[:, me] = self._row
        table.flags[me], table.features[me] = self._row_flags, self._row_features

    def _judge(self, now: float) -> list[Datagram]:
        """Probes that were not answered, suspicions that were not refuted, and the next probe."""
        out: list[Datagram] = []
        table, patience = self.table, self._patience(now)
        for index, probe in list(self._probes.items()):
            if int(table.version[index]) > probe.version or table.status[index] > Status.SUSPECT:
                del self._probes[index]
            elif now < probe.deadline:
                continue
            elif not probe.indirect:
                probe.indirect = True
                probe.deadline = now + 2 * self.rules.answer_periods * patience
                node = int(table.nodes[index])
                helpers = [k for k in self._alive if k not in (self._me, index)]
                for helper in self._random.sample(helpers, min(_INDIRECT, len(helpers))):
                    out += self._send(helper, Kind.ASK, node, now)
            else:
                del self._probes[index]
                if table.status[index] == Status.ALIVE:
                    table.status[index] = Status.SUSPECT
                    self._status_changed(index, now)
        n = max(2, len(self._alive))
        limit = self.rules.suspicion_periods * max(2.0, math.log10(n)) * patience
        expired = [k for k, since in self._suspected_at.items() if now - since > limit]
        for index in expired:
            table.status[index] = Status.DEAD
            self._status_changed(index, now)
        likely = (expected_oldest_periods(n, self.rules.window) + 1) * self.rules.period_s
        for _ in range(_PROBES_AT_ONCE):
            oldest = self._oldest()
            if oldest is None or now - table.born[oldest] <= likely:
                break
            deadline = now + self.rules.answer_periods * patience
            self._probes[oldest] = _Probe(int(table.version[oldest]), deadline)
            out += self._send(oldest, Kind.PULL, 0, now)
        return out

    def _patience(self, now: float) -> float:
        """Seconds that count as a period: more, the longer we have heard of nobody."""
        if self._heard_at is None:
            self._heard_at = now
        silent = (now - self._heard_at) / self.rules.period_s - _ORDINARY_SILENCE
        return self.rules.period_s * (1 + min(max(0.0, silent), _MAX_DOUBT))

    def _oldest(self) -> int | None:
        """The node alive of which the news are oldest, without those being probed."""
        if len(self._alive) < 2:
            return None
        born = np.where(self._alive_mask, self.table.born, np.inf)
        born[self._me] = np.inf
        for index in self._probes:
            born[index] = np.inf
        oldest = int(born.argmin())
        return oldest if born[oldest] < np.inf else None

    def _recount(self) -> None:
        self._alive_mask = self.table.alive()
        self._alive: list[int] = np.flatnonzero(self._alive_mask).tolist()
        silent = ~self._alive_mask
        silent[self._me] = False
        self._silent: list[int] = np.flatnonzero(silent).tolist()

    def _make_urgent(self, indices: Sequence[int]) -> None:
        sends = 3 + math.ceil(math.log2(len(self.table) + 1))
        for index in indices:
            self._urgent[index] = sends

    def _count_down(self) -> None:
        if self._urgent:
            self._urgent = {k: left - 1 for k, left in self._urgent.items() if left > 1}

    def window(self) -> Indices:
        """Urgent entries, then the freshest, at most `window`; always our own."""
        w = min(self.rules.window, len(self.table))
        key = self.table.born.copy()
        key[self._me] = np.inf
        # At most half: what is urgent must not hide what is merely new.
        urgent = list(self._urgent)
        if len(urgent) > w // 2:
            urgent = self._random.sample(urgent, w // 2)
        key[urgent] = np.inf
        if w < len(key):
            chosen = np.argpartition(key, len(key) - w)[len(key) - w :]
        else:
            chosen = np.arange(len(key))
        return chosen[self.table.version[chosen] > 0]

    def _peer(self, index: int) -> Peer:
        peer = self._peers.get(index)
        if peer is None:
            peer = self._peers[index] = Peer()
        return peer

    def _send(self, index: int, kind: Kind, argument: int, now: float) -> list[Datagram]:
        peer = self._peer(index)
        peer.last_sent = (kind, argument)
        chosen = self.window() if kind == Kind.PUSH else np.array([self._me])
        # Who does not know us will only answer HELLO, and gets all of it then.
        end = len(chosen) if peer.session else min(len(chosen), PER_DATAGRAM)
        out = []
        for start in range(0, end, PER_DATAGRAM):
            peer.sent += 1
            entries = self.table.entries(chosen[start : start + PER_DATAGRAM], now).tobytes()
            numbers = (peer.session, peer.sent, argument)
            out.append(self._datagram(kind, index, numbers, entries))
        return out

    def _introduce(self, index: int, peer: Peer, packet: Packet, now: float) -> list[Datagram]:
        """HELLO to a sender that does not know our session, or of which we know a newer one.
        With what we hold of it: a restarted node must go on from there."""
        if self._session < packet.echo < MAX_VERSION:
            # Our clock went back: we once had that session, and must be newer.
            self._begin_session(packet.echo + 1)
        chosen = np.array([self._me, index])
        entries = self.table.entries(chosen[self.table.version[chosen] > 0], now).tobytes()
        numbers = (packet.session, peer.session, packet.sequence)
        return [self._datagram(Kind.HELLO, index, numbers, entries)]

    def _datagram(
        self, kind: Kind, index: int, numbers: tuple[int, int, int], entries: bytes
    ) -> Datagram:
        """`numbers`: echo, sequence, argument."""
        self.counts.sent += 1
        to = int(self.table.nodes[index])
        packet = Packet(kind, self.own, to, self._session, *numbers, entries)
        return Datagram(to, self._seal.pack(packet))


def _rename(mine: dict[int, Any], moved: dict[int, int]) -> None:
    """The same things under the indices of a new table."""
    kept = {moved[index]: thing for index, thing in mine.items() if index in moved}
    mine.clear()
    mine.update(kept)
