"""Jobs are moved about at random while everything fails at random: each is right all the same, or
ended as it is told; nothing is left of any. The seed is printed."""

from __future__ import annotations

import random

from jobs import visit_all
from mosix.lab import drive
from mosix.lab.drive import Cluster
from storm_of_faults import Storm, footprint, grown
from test_faults import restore

#: with --full
MOVES = 1000
FEW = 8


def test_every_job_is_right_whatever_fails_while_it_moves(lab: Cluster, full: bool) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    visit_all(lab)  # the test before may have started daemons anew
    before = [footprint(node) for node in lab.nodes]
    storm = Storm(lab, random.Random(seed))
    try:
        while storm.moves < (MOVES if full else FEW):
            print(f"{storm.moves}: {storm.strike()}", flush=True)
        for name, kind in storm.jobs.items():
            assert kind.finish() == "done", name
    finally:
        storm.end()
        restore(lab)
    print(f"{storm.moves} moves, {storm.failed} failed, {storm.ended} jobs ended")
    for node, was in zip(lab.nodes, before, strict=True):
        drive.wait_for(
            f"nothing to be left in {node.name}: {grown(was, footprint(node))}",
            lambda node=node, was=was: not grown(was, footprint(node)),
        )
