"""Channels between mosd and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from mosix.wire.channel import Packets
from mosix.wire.mosd_messages import Arm, NodeToWorker


def test_all_who_wait_for_room_on_one_socket_send_when_there_is() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            packets: Packets[NodeToWorker] = Packets(ours, NodeToWorker)
            others: Packets[NodeToWorker] = Packets(theirs, NodeToWorker)
            full = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    packets.send_now(Arm(spec=""))
                    full += 1
            senders = [asyncio.create_task(packets.send(Arm(spec=word))) for word in "abc"]
            await asyncio.sleep(0)  # all of them have tried
            async with asyncio.timeout(10):
                received = [(await others.receive())[0] for _ in range(full + len(senders))]
                await asyncio.gather(*senders)
            assert received[full:] == [Arm(spec=word) for word in "abc"]

    asyncio.run(main())
