"""Hostile input for a live mosd: frames that are random, damaged, or valid and senseless.

`Maker` makes them, for `bench/fuzz` (through `main`, in a node of a lab) and for tests; `Thrower`
throws them at one door of a mosd and says what became of the connections. A connection that mosd
neither answers nor closes in time is a failure. Nothing here is meant to do damage: what is
thrown at the control socket comes from an ordinary user, and starts no job.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from mosix.balancer.gossip_wire import MAX_DATAGRAM
from mosix.config.secret import MAX_SECRET_BYTES
from mosix.errors import MosixError
from mosix.node.peers import PURPOSES, drive
from mosix.node.requests import Failpoints, LocalStatus, Migrate, Processes, Request, Status, Whois
from mosix.wire.handshake import ABI_VERSION, Claim, Initiator
from mosix.wire.messages import PROTOCOL_VERSION, encode
from mosix.wire.mosd_messages import Move, PeerHello, PeerMove, Returned

DOORS = ("peer", "proved", "control", "workers", "gossip")

#: Longer than mosd's own deadline for a handshake or a request (s).
_PATIENCE_S = 40.0
_AT_ONCE = 48
#: One of so many connections says nothing more when it has begun.
_SLOW = 2000
_PREAMBLE = struct.Struct("<6sHH32s")
_LENGTHS = (0, 1, 2, 0x7F, 0x1000, 0x10000, 0x100000, 1 << 31, 0xFFFFFFFF)
#: Beginnings of MessagePack: huge arrays, maps and strings, deep nests.
_PACKED = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff",
)


class Maker:
    """Input of one kind after the other, the same for the same seed."""

    def __init__(self, seed: int, own_ip: str = "127.0.0.3", target_ip: str = "127.0.0.2") -> None:
        self.random = random.Random(seed)
        self._own, self._target = own_ip, target_ip

    # ---- pieces ----

    def _value(self) -> Any:
        chance = self.random
        return chance.choice(
            (
                chance.getrandbits(chance.choice((1, 8, 31, 63))),
                -chance.getrandbits(40),
                chance.random(),
                None,
                True,
                chance.randbytes(chance.randrange(64)),
                "".join(chr(chance.randrange(1, 0x3000)) for _ in range(chance.randrange(40))),
                [0] * chance.randrange(40),
                {"a": 1},
            )
        )

    def damaged(self, message: msgspec.Struct) -> bytes:
        """Encoded, with something wrong: a field, some bits, its end, or nothing at all."""
        chance = self.random
        data = bytearray(encode(message))
        what = chance.randrange(6)
        if what == 0:
            fields = msgspec.msgpack.decode(bytes(data))
            if isinstance(fields, dict):
                fields[chance.choice([*fields, "more"])] = self._value()
                data = bytearray(msgspec.msgpack.encode(fields))
        elif what == 1:
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif what == 2:
            del data[chance.randrange(len(data)) :]
        elif what == 3:
            at = chance.randrange(len(data))
            data[at:at] = chance.choice((*_PACKED, chance.randbytes(9), b"\x91" * 2000))
        elif what == 4:
            data = bytearray(chance.randbytes(chance.randrange(1, 200)))
        return bytes(data)

    def framed(self, data: bytes) -> bytes:
        """With its length, or another one, before it."""
        chance = self.random
        length = len(data)
        if not chance.randrange(8):
            length = chance.choice(_LENGTHS)
        return struct.pack("<I", length) + data

    # ---- what each door is for ----

    def hello(self) -> PeerHello:
        chance = self.random
        return PeerHello(
            version=PROTOCOL_VERSION,
            sender=self._own,
            receiver=self._target,
            # An empty guest costs a process: not a hundred thousand of them.
            purpose=chance.choice([*sorted(PURPOSES - {"guest"}), "", "guests"]),
            uid=chance.choice((0, 1000, 2**32 - 2)),
            job=chance.choice((None, "0" * 16)),
            pid=chance.choice((None, 1, 4_000_000)),
            token=chance.choice((None, chance.randbytes(16))),
        )

    def peer(self) -> bytes:
        """At the peer port, from somebody who does not know the secret."""
        chance = self.random
        kind = chance.randrange(5)
        if kind == 0:
            return chance.randbytes(chance.randrange(1, 300))
        version = chance.choice((PROTOCOL_VERSION, PROTOCOL_VERSION, 0, 9, 65535))
        preamble = _PREAMBLE.pack(b"mosix\0", version, ABI_VERSION, chance.randbytes(32))
        if kind == 1:
            return preamble[: chance.randrange(1, len(preamble) + 1)]
        claim = Claim(encode(self.hello()), chance.randbytes(32))
        return preamble + self.framed(self.damaged(claim))

    def order(self) -> bytes:
        """At the peer port, behind the proof."""
        target = self.random.choice((None, self._own))
        return self.framed(self.damaged(PeerMove(target=target, wait=False)))

    def request(self) -> bytes:
        """At the control socket."""
        chance = self.random
        examples: tuple[Request, ...] = (
            Migrate(pid=chance.choice((1, 0, -1, 2**22)), target=chance.choice(("home", "1", "x"))),
            Whois(node="1"),
            Status(),
            LocalStatus(),
            Processes(pid=chance.choice((0, 1))),
            Failpoints(spec="mosd.move=exit"),
        )
        data = self.framed(self.damaged(chance.choice(examples)))
        return data + (chance.randbytes(9) if not chance.randrange(9) else b"")

    def word(self) -> bytes:
        """At the socket for workers that come back."""
        chance = self.random
        example = chance.choice((Returned(), Move(request=1, pid=1, target=None)))
        return self.damaged(example)

    def datagram(self) -> bytes:
        """At the gossip port."""
        chance = self.random
        size = chance.choice((0, 1, 16, 40, 60, 200, MAX_DATAGRAM, MAX_DATAGRAM + 1))
        return chance.randbytes(min(size, 60)) + bytes(max(0, size - 60))


class Thrower:
    """`throw` at one door; `outcome`: how many connections ended how."""

    def __init__(self, door: str, maker: Maker, address: Any, secret: bytes, own_ip: str) -> None:
        self._door = door
        self._maker = maker
        self._address = address
        self._secret = secret
        self._own_ip = own_ip
        self.outcome: Counter[str] = Counter()

    async def throw(self, frames: int) -> None:
        """OSError: there is nobody any more."""
        if self._door == "gossip":
            await self._datagrams(frames)
            return
        left = iter(range(frames))

        async def one_after_the_other() -> None:
            for number in left:
                await self._one(slow=number % _SLOW == _SLOW - 1)

        await asyncio.gather(*(one_after_the_other() for _ in range(min(frames, _AT_ONCE))))

    async def _datagrams(self, frames: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((self._own_ip, self._address[1]))
            for number in range(frames):
                sock.sendto(self._maker.datagram(), self._address)
                self.outcome["sent"] += 1
                if number % 64 == 63:  # else the kernel drops most of them
                    await asyncio.sleep(0.002)

    async def _one(self, *, slow: bool) -> None:
        make: dict[str, Callable[[], bytes]] = {
            "peer": self._maker.peer,
            "proved": self._maker.order,
            "control": self._maker.request,
            "workers": self._maker.word,
        }
        data = make[self._door]()
        loop = asyncio.get_running_loop()
        with self._socket() as sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await loop.sock_connect(sock, self._address)
                    if self._door == "proved" and not await self._prove(sock):
                        return
                    await loop.sock_sendall(sock, data[:-1] if slow else data)
                    if not slow and self._door != "workers":
                        with contextlib.suppress(OSError):  # mosd was faster
                            sock.shutdown(socket.SHUT_WR)
                    answered = 0
                    while part := await loop.sock_recv(sock, 1 << 16):
                        answered += len(part)
                self.outcome["answered" if answered else "closed"] += 1
            except (ConnectionResetError, BrokenPipeError):
                self.outcome["closed"] += 1
            except BlockingIOError:  # of a unix socket: its queue is full
                self.outcome["queue full"] += 1
                await asyncio.sleep(0.01)
            except TimeoutError:
                self.outcome["not closed"] += 1

    async def _prove(self, sock: socket.socket) -> bool:
        side = Initiator(self._secret, self._maker.hello())
        try:
            await drive(sock, side, side.start())
        except (MosixError, TimeoutError):
            self.outcome["unproved"] += 1
            return False
        return True

    def _socket(self) -> socket.socket:
        if self._door in ("peer", "proved"):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # No port of ours stays behind: a million of them are not to be had.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind((self._own_ip, 0))
            return sock
        kind = socket.SOCK_SEQPACKET if self._door == "workers" else socket.SOCK_STREAM
        return socket.socket(socket.AF_UNIX, kind)


def main() -> None:
    """Prints the outcome as JSON. Called by bench/fuzz in a node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own", required=True, help="address of this node")
    parser.add_argument("--target", required=True, help="IP:PORT, or the path of a socket")
    parser.add_argument("--secret", type=Path, help="file, for the door `proved`")
    parser.add_argument("--uid", type=int, default=65534, help="for sockets with a path")
    options = parser.parse_args()
    address: Any = options.target
    if not options.target.startswith("/"):
        ip, _, port = options.target.partition(":")
        address = (ip, int(port))
    secret = b""
    if options.secret is not None:
        secret = options.secret.read_bytes()[:MAX_SECRET_BYTES].strip()
    if isinstance(address, str):
        os.setgroups([])
        os.setresgid(options.uid, options.uid, options.uid)
        os.setresuid(options.uid, options.uid, options.uid)
    target_ip = address[0] if isinstance(address, tuple) else options.own
    thrower = Thrower(
        options.door, Maker(options.seed, options.own, target_ip), address, secret, options.own
    )
    begun = time.monotonic()
    with contextlib.suppress(ConnectionRefusedError):
        asyncio.run(thrower.throw(options.frames))
    json.dump({"seconds": time.monotonic() - begun, **thrower.outcome}, sys.stdout)


if __name__ == "__main__":
    main()
