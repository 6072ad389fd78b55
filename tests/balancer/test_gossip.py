"""Gossip between simulated nodes: who learns what, who is believed dead, what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.balancer.gossip import (
    Datagram,
    Gossip,
    Rules,
    expected_mean_periods,
    expected_oldest_periods,
    rules_for,
)
from mosix.balancer.gossip_network import SECRET, Network, measure_ages, measure_spreading
from mosix.balancer.gossip_wire import MAX_DATAGRAM, Kind, Seal
from mosix.balancer.vectors import COLUMN, ENTRY, Flags, Status, pack_loads

A, B, C = 10 << 24 | 1, 10 << 24 | 2, 10 << 24 | 3


def all_believe(network: Network, about: int, status: Status) -> bool:
    return all(network.believes(k, about) == status for k in network.running() if k != about)


def until(network: Network, limit_periods: float, about: Iterable[int], status: Status) -> float:
    """Periods until all who run believe that; fails beyond the limit."""
    start, targets = network.now, list(about)
    while not all(all_believe(network, target, status) for target in targets):
        network.run(0.5)
        assert network.now - start <= limit_periods, f"{targets} not {status.name}"
    return network.now - start


def nobody_else_dead(network: Network, dead: Iterable[int]) -> bool:
    gone = set(dead)
    return all(
        network.believes(k, j) in (Status.ALIVE, Status.SUSPECT)
        for k in network.running()
        for j in range(len(network.nodes))
        if j not in gone
    )


# ---- spreading ----


@pytest.mark.parametrize("n", [2, 3, 16, 40])
def test_everybody_soon_knows_everybody(n: int) -> None:
    network = Network(n, rules_for(n))
    network.run(10 + 2 * expected_oldest_periods(n, rules_for(n).window))
    for k in range(n):
        table = network.node(k).table
        assert table.alive().all()
        assert table.column("running").tolist() == list(range(n))


@pytest.mark.parametrize(("n", "window"), [(16, 4), (24, 6)])
def test_ages_are_what_the_published_formula_says(n: int, window: int) -> None:
    for mean, oldest in (
        measure_ages(n, Rules(window), samples=60),
        measure_spreading(n, window, samples=120),
    ):
        assert mean <= 1.04 * expected_mean_periods(n, window)
        # bench asks 1.09 of longer runs
        assert oldest <= 1.12 * expected_oldest_periods(n, window)


def test_alternate_pull_pays_where_the_rules_use_it() -> None:
    assert rules_for(64).alternate
    assert not rules_for(40).alternate
    assert not rules_for(1024).alternate
    pushed = measure_ages(64, Rules(16), samples=3)
    pulled = measure_ages(64, Rules(16, alternate=True), samples=3)
    assert pulled < pushed
    assert pulled[1] < pushed[1]


def test_the_owners_word_overtakes_what_is_merely_fresh() -> None:
    def periods_until_known(flags: Flags) -> float:
        network = Network(48, Rules(4, probing=False), seed=3)
        network.run(40)
        row = pack_loads(running=999, cores=1)
        network.node(5).set_own(row, network.local(5), flags=flags)
        start = network.now
        while not all(network.node(k).table.column("running")[5] == 999 for k in range(48)):
            network.run(0.25)
        return network.now - start

    assert periods_until_known(Flags.BLOCK) < 12 < periods_until_known(Flags(0))


def test_datagrams_fit_an_ethernet_frame_whatever_the_window() -> None:
    largest = 0

    def wire(_: int, datagram: Datagram) -> list[Datagram]:
        nonlocal largest
        largest = max(largest, len(datagram.data))
        return [datagram]

    network = Network(40, Rules(40))
    network.wire = wire
    network.run(10)
    assert 1000 < largest <= MAX_DATAGRAM


# ---- liveness ----


def test_a_dead_node_is_noticed_by_all_and_nobody_else_is_taken_for_dead() -> None:
    network = Network(16, rules_for(16))
    network.run(15)
    network.stop(7)
    assert until(network, 40, [7], Status.DEAD) > 3
    assert nobody_else_dead(network, [7])


def test_half_of_the_nodes_killed_at_once_are_noticed() -> None:
    network = Network(32, rules_for(32), seed=4)
    network.run(20)
    for k in range(0, 32, 2):
        network.stop(k)
    until(network, 60, range(0, 32, 2), Status.DEAD)
    assert nobody_else_dead(network, range(0, 32, 2))


@pytest.mark.parametrize("seed", range(2))
def test_ten_percent_loss_kills_nobody(seed: int) -> None:
    network = Network(16, rules_for(16), loss=0.1, seed=seed)
    network.run(20)
    for _ in range(30):
        network.run(5)
        assert nobody_else_dead(network, [])
    assert network.ages().mean() < 6


def test_a_partition_heals_by_itself() -> None:
    network = Network(20, rules_for(20))
    network.run(20)
    for k in range(8):
        network.side[k] = 1
    network.run(60)
    assert {network.believes(0, k) for k in range(8, 20)} == {Status.DEAD}
    assert {network.believes(19, k) for k in range(8)} == {Status.DEAD}
    assert {network.believes(0, k) for k in range(8)} == {Status.ALIVE}
    network.side = [0] * 20
    until(network, 15, range(20), Status.ALIVE)


def test_a_node_cut_off_alone_comes_back() -> None:
    network = Network(5, rules_for(5))
    network.run(15)
    network.side[2] = 1
    network.run(100)
    assert network.believes(0, 2) == Status.DEAD
    network.side[2] = 0
    until(network, 15, range(5), Status.ALIVE)


@pytest.mark.parametrize("backwards_s", [0, 3600])
def test_a_restarted_node_is_alive_again_even_if_its_clock_went_back(backwards_s: int) -> None:
    network = Network(10, rules_for(10))
    network.run(20)
    network.stop(4)
    network.run(60)
    network.wall_skew_ms[4] = -1000 * backwards_s
    network.start(4)
    until(network, 20, [4], Status.ALIVE)
    network.run(10)
    assert network.ages()[:, 4].max() < 8


@pytest.mark.parametrize("backwards_s", [0, 3600])
def test_a_restart_that_nobody_noticed_is_survived(backwards_s: int) -> None:
    network = Network(6, rules_for(6))
    network.run(20)
    network.stop(4)
    network.wall_skew_ms[4] = -1000 * backwards_s
    network.start(4)
    network.run(15)
    node = network.node(4)
    node.set_own(pack_loads(running=77, cores=1), network.local(4))
    network.run(10)
    for k in range(6):
        assert network.node(k).table.column("running")[4] == 77
    assert nobody_else_dead(network, [])


def test_a_node_that_leaves_is_not_suspected_but_gone() -> None:
    network = Network(8, rules_for(8))
    network.run(15)
    network.send(3, network.node(3).leave(network.local(3)))
    network.stop(3)
    until(network, 8, [3], Status.LEFT)


def test_a_node_that_hears_of_its_suspicion_refutes_it() -> None:
    network = Network(8, rules_for(8))
    network.run(15)
    slanderer = network.node(0)
    entry = np.zeros(1, ENTRY)
    entry["node"] = network.addresses[5]
    entry["version"] = slanderer.table.version[5] + 3
    entry["status"] = Status.DEAD
    slanderer.table.merge(entry, network.local(0))
    network.run(12)
    assert all_believe(network, 5, Status.ALIVE)


def test_a_suspended_node_accuses_nobody_when_it_wakes() -> None:
    network = Network(8, rules_for(8))
    network.run(15)
    sleeper = network.node(2)
    network.stop(2)
    network.run(200)
    network.nodes[2] = sleeper
    network.send(2, sleeper.tick(network.local(2)))
    network.run(0.5)
    assert (sleeper.table.status == Status.ALIVE).all()
    for _ in range(20):
        network.send(2, sleeper.tick(network.local(2)))
        network.run(1)
    assert (sleeper.table.status == Status.ALIVE).all()
    assert all_believe(network, 2, Status.ALIVE)


# ---- what is refused ----


def pair() -> tuple[Gossip, Gossip]:
    """Two nodes that have met."""
    network = Network(2, Rules(8))
    network.run(6)
    return network.node(0), network.node(1)


def snapshot(node: Gossip) -> tuple[bytes, ...]:
    table = node.table
    return (table.version.tobytes(), table.status.tobytes(), table.loads.tobytes())


def genuine(sender: Gossip) -> Datagram:
    (datagram,) = sender.tick(50.0 + sender.counts.sent)
    return datagram


def test_a_replayed_datagram_changes_nothing() -> None:
    one, two = pair()
    datagram = genuine(one)
    two.receive(100.0, A, datagram.data)
    before, ages = snapshot(two), two.table.born.copy()
    for _ in range(3):
        assert two.receive(500.0, A, datagram.data) == []
    assert two.counts.refused["replayed"] == 3
    assert snapshot(two) == before
    assert (two.table.born == ages).all()


def test_a_datagram_recorded_before_a_restart_is_worthless_after_it() -> None:
    network = Network(3, Rules(8))
    tape: list[tuple[int, Datagram]] = []

    def wire(source: int, datagram: Datagram) -> list[Datagram]:
        tape.append((source, datagram))
        return [datagram]

    network.wire = wire
    network.run(10)
    recorded = list(tape)
    network.stop(0)
    network.run(1)
    network.start(0)
    fresh = network.node(0)
    before = snapshot(fresh)
    answers = []
    for source, datagram in recorded:
        if datagram.to == A:
            answers += fresh.receive(network.local(0), network.addresses[source], datagram.data)
    # It only says who it is now; the sender of a tape cannot answer that.
    assert snapshot(fresh)[1:] == before[1:]
    assert all(len(answer.data) < 300 for answer in answers)
    # Nor is the sender's old session believed by those who know its new one.
    network.run(10)
    other = network.node(1)
    before = snapshot(other)
    for source, datagram in recorded:
        if datagram.to == B:
            other.receive(network.local(1), network.addresses[source], datagram.data)
    assert snapshot(other) == before


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_altered_datagram_is_believed(data: st.DataObject) -> None:
    one, two = pair()
    original = genuine(one).data
    how = data.draw(st.sampled_from(("flip", "cut", "extend", "noise")))
    if how == "flip":
        position = data.draw(st.integers(0, len(original) - 1))
        changed = bytearray(original)
        changed[position] ^= data.draw(st.integers(1, 255))
        sent = bytes(changed)
    elif how == "cut":
        sent = original[: data.draw(st.integers(0, len(original) - 1))]
    elif how == "extend":
        sent = original + data.draw(st.binary(min_size=1, max_size=2000))
    else:
        sent = data.draw(st.binary(max_size=2000))
    before = snapshot(two)
    assert two.receive(100.0, A, sent) == []
    assert snapshot(two) == before
    assert two.counts.refused["forged"] + two.counts.refused["size"] == 1


def test_another_clusters_secret_is_not_ours() -> None:
    _, two = pair()
    stranger = Gossip(A, [A, B], b"another secret, longer", Rules(8), wall_ms=1)
    assert two.receive(1.0, A, genuine(stranger).data) == []
    assert two.counts.refused["forged"] == 1


def test_only_the_address_that_it_names_may_send_it_and_only_to_its_receiver() -> None:
    one, two = pair()
    three = Gossip(C, [A, B, C], SECRET, Rules(8), wall_ms=1)
    for_two = genuine(one)
    assert three.receive(1.0, A, for_two.data) == []
    assert three.counts.refused["not for us"] == 1
    assert two.receive(1.0, C, for_two.data) == []
    assert two.counts.refused["not for us"] == 1
    stranger = Gossip(C, [A, B, C], SECRET, Rules(8), wall_ms=1)
    sent = [d for _ in range(20) for d in stranger.tick(1.0) if d.to == B]
    assert two.receive(1.0, C, sent[0].data) == []
    assert two.counts.refused["not in the map"] == 1


def test_an_unproved_sender_gets_one_short_answer_and_no_loop() -> None:
    network = Network(2, Rules(2))
    count = 0

    def wire(_: int, datagram: Datagram) -> list[Datagram]:
        nonlocal count
        count += 1
        return [datagram]

    network.wire = wire
    network.run(3)
    assert count < 20


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_nothing_that_bears_our_seal_makes_a_node_fail(body: bytes) -> None:
    _, two = pair()
    seal = Seal(SECRET)
    two.receive(1.0, A, body + seal.mac(body))
    for kind in Kind:
        header = b"mxg1" + bytes([kind, 0])
        padded = header + body.ljust(40, b"\0")[:40]
        two.receive(1.0, A, padded + seal.mac(padded))


def test_lying_vectors_are_clamped_before_they_are_passed_on() -> None:
    network = Network(4, rules_for(4))
    network.run(8)
    liar = network.node(0)
    liar._row = np.full(len(COLUMN), np.nan, np.float32)
    liar._row[COLUMN["free_mb"]] = np.inf
    liar._row[COLUMN["speed"]] = -5
    network.run(10)
    for k in range(1, 4):
        loads = network.node(k).table.loads[:, 0]
        assert np.isfinite(loads).all()
        assert loads[COLUMN["free_mb"]] == 0
        assert loads[COLUMN["speed"]] == 100


# ---- the map changes ----


def test_a_removed_node_is_forgotten_and_an_added_one_is_met() -> None:
    network = Network(5, rules_for(5))
    network.run(10)
    node = network.node(1)
    known = node.table.version[2]
    node.set_nodes([B, C, C + 40])
    assert node.table.nodes.tolist() == [B, C, C + 40]
    assert node.table.version[1] == known
    assert node.table.alive().tolist() == [True, True, False]
    sent = [d.to for _ in range(8) for d in node.tick(network.local(1))]
    assert set(sent) == {C, C + 40}


def test_a_random_history_ends_in_agreement() -> None:
    """Kills, restarts, partitions, loss; afterwards all agree on who is alive."""
    for seed in range(2):
        chance = random.Random(seed)
        network = Network(12, rules_for(12), seed=seed, loss=0.05)
        for _ in range(12):
            network.run(chance.randint(1, 15))
            k = chance.randrange(12)
            action = chance.choice(("stop", "start", "side", "heal"))
            if action == "stop" and len(network.running()) > 3:
                network.stop(k)
            elif action == "start" and network.nodes[k] is None:
                network.wall_skew_ms[k] = chance.randint(-(10**7), 10**7)
                network.start(k)
            elif action == "side":
                network.side[k] = 1
            elif action == "heal":
                network.side = [0] * 12
        network.side, network.loss = [0] * 12, 0.0
        network.run(90)
        running = set(network.running())
        for k in running:
            table = network.node(k).table
            assert {int(j) for j in np.flatnonzero(table.alive())} == running


def test_another_secret_is_heard_by_who_has_it_too() -> None:
    one, two = (Gossip(own, (A, B), SECRET, Rules(2), wall_ms=1000) for own in (A, B))
    two.set_secret(b"the next one")

    def heard() -> bool:
        """What comes of a push and of the introductions that it brings about."""
        letters = [(datagram, A) for datagram in one.tick(1.0)]
        letters += [(datagram, A) for datagram in one._send(1, Kind.PUSH, 0, 1.0)]
        while letters:
            datagram, sender = letters.pop()
            receiver, other = (two, B) if datagram.to == B else (one, A)
            letters += [(d, other) for d in receiver.receive(1.0, sender, datagram.data)]
        return bool(two.table.version[two.table.index(A)])

    assert not heard()
    assert set(two.counts.refused) == {"forged"}
    one.set_secret(b"the next one")
    assert heard()
