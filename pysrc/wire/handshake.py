"""Two mosds prove to each other that they know the secret, before anything else is said.

Without sockets: `Initiator` and `Responder` take bytes and give bytes; `mosix.node.peers` drives
them. Four steps, each of bounded size:

    1. →  preamble: magic, protocol version, version of native/abi.h, 32 random bytes
    2. ←  the same from the other side; if the versions differ it ends here, both named
    3. →  `Claim`: the encoded PeerHello and HMAC(secret, "initiator", both preambles, PeerHello)
    4. ←  `Proof`: HMAC(secret, "responder", both preambles, PeerHello), or PeerRefuse

The initiator proves first: who merely connects learns nothing that he could try passwords on.
Both random values and everything the connection is for are under both proofs: a recorded proof
is worthless on another connection, and the two labels keep a proof from being reflected.
The secret must never appear in a message, an error or a log.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Annotated

import msgspec
from mosix.errors import MosixError, ProtocolError, RefusedError, from_code
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import PROTOCOL_VERSION, decode, encode
from mosix.wire.mosd_messages import PeerHello, PeerRefuse

#: Must equal MX_ABI_VERSION of native/abi.h (checked by a test): the redirector of one node
#: speaks it with the agent of another.
ABI_VERSION = 5

#: Whole handshake, seconds.
DEADLINE_S = 10.0
#: Unfinished handshakes at once: from one address, and in all.
MAX_HALF_OPEN = 64
MAX_HALF_OPEN_TOTAL = 512

#: Largest frame of a handshake, bytes: a PeerHello with the longest lists of CPU features.
MAX_HANDSHAKE_FRAME = 32 << 10

# This layout is the same in every version, so that any two can name their versions.
_PREAMBLE = struct.Struct("<6sHH32s")
_MAGIC = b"mosix\0"
NONCE_BYTES = 32


class Claim(msgspec.Struct, tag="claim", tag_field="t", frozen=True, forbid_unknown_fields=True):
    hello: Annotated[bytes, msgspec.Meta(max_length=MAX_HANDSHAKE_FRAME)]
    proof: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Proof(msgspec.Struct, tag="proof", tag_field="t", frozen=True, forbid_unknown_fields=True):
    proof: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


def _prove(secret: bytes, role: bytes, ours: bytes, theirs: bytes, hello: bytes) -> bytes:
    """`ours`, `theirs`: the initiator's and the responder's preamble, in this order always."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (role, ours, theirs, hello):
        mac.update(struct.pack("<I", len(part)) + part)
    return mac.digest()


class _Side:
    """What both sides share: collecting a preamble, then frames; the end."""

    def __init__(self, secret: bytes, peer_ip: str, version: int, nonce: bytes | None) -> None:
        self._secret = secret
        self._peer_ip = peer_ip
        self._version = version
        nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
        self._own = _PREAMBLE.pack(_MAGIC, version, ABI_VERSION, nonce)
        self._peer = b""
        self._frames = FrameDecoder(MAX_HANDSHAKE_FRAME)
        self.done = False
        #: Why it ended badly; bytes returned by the same `feed` should still be sent.
        self.error: MosixError | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to read next; 0 when the handshake is over."""
        if self.done or self.error is not None:
            return 0
        return self._frames.wanted if self._complete else _PREAMBLE.size - len(self._peer)

    @property
    def _complete(self) -> bool:
        return len(self._peer) == _PREAMBLE.size

    def feed(self, data: bytes) -> bytes:
        """At most `wanted` bytes from the other side; returns what to send. Never raises:
        see `error` and `done`."""
        if not data or len(data) > self.wanted:
            raise ValueError("not what was wanted")
        try:
            if not self._complete:
                self._peer += data
                # Foreign speakers are turned away at their first bytes.
                if not _MAGIC.startswith(self._peer[: len(_MAGIC)]):
                    raise ProtocolError("not a mosix node")
                return self._preamble() if self._complete else b""
            complete = self._frames.feed(data)
            return b"" if complete is None else self._frame(complete)
        except MosixError as error:
            return self._fail(error)

    def eof(self) -> None:
        """The other side closed."""
        if not self.done and self.error is None:
            self.error = ProtocolError("connection closed during the handshake")

    def _fail(self, error: MosixError) -> bytes:
        self.error = error
        return b""

    def _preamble(self) -> bytes:
        raise NotImplementedError

    def _frame(self, data: bytes) -> bytes:
        raise NotImplementedError

    def _check_preamble(self) -> None:
        _, version, abi, nonce = _PREAMBLE.unpack(self._peer)
        if (version, abi) != (self._version, ABI_VERSION):
            raise RefusedError(
                f"node {self._peer_ip} speaks protocol {version}.{abi}, "
                f"this node {self._version}.{ABI_VERSION}",
                "install the same version of mosix on both",
            )
        if hmac.compare_digest(nonce, self._own[-NONCE_BYTES:]):
            raise ProtocolError("our own handshake came back")


class Initiator(_Side):
    """The side that connects. `hello` says who we are and what for."""

    def __init__(
        self,
        secret: bytes,
        hello: PeerHello,
        *,
        version: int = PROTOCOL_VERSION,
        nonce: bytes | None = None,
    ) -> None:
        super().__init__(secret, hello.receiver, version, nonce)
        self._hello = encode(hello)

    def start(self) -> bytes:
        """What to send first."""
        return self._own

    def _preamble(self) -> bytes:
        self._check_preamble()
        proof = _prove(self._secret, b"initiator", self._own, self._peer, self._hello)
        return frame(encode(Claim(self._hello, proof)), MAX_HANDSHAKE_FRAME)

    def _frame(self, data: bytes) -> bytes:
        answer: Proof | PeerRefuse = decode(data, Proof | PeerRefuse)
        if isinstance(answer, PeerRefuse):
            raise from_code(
                answer.code, f"node {self._peer_ip} refuses: {answer.reason}", answer.hint
            )
        wanted = _prove(self._secret, b"responder", self._own, self._peer, self._hello)
        if not hmac.compare_digest(wanted, answer.proof):
            raise RefusedError(
                f"node {self._peer_ip} does not know the secret",
                "the file secret must be the same on all nodes",
            )
        self.done = True
        return b""


class Responder(_Side):
    """The side that is connected to. `refuse`: a reason to turn the peer away whatever it
    proves (not in the map); it is told so in the way it understands."""

    def __init__(
        self,
        secret: bytes,
        own_ip: str,
        peer_ip: str,
        *,
        refuse: RefusedError | None = None,
        version: int = PROTOCOL_VERSION,
        nonce: bytes | None = None,
    ) -> None:
        super().__init__(secret, peer_ip, version, nonce)
        self._own_ip = own_ip
        self._refuse = refuse
        self._hello: PeerHello | None = None

    @property
    def hello(self) -> PeerHello:
        """What was proved. Only when `done`."""
        if self._hello is None or not self.done:
            raise ValueError("the handshake is not done")
        return self._hello

    def _preamble(self) -> bytes:
        try:
            self._check_preamble()
        except MosixError as error:
            self.error = error
        # Sent in any case: the peer names both versions to its user.
        return self._own

    def _frame(self, data: bytes) -> bytes:
        if self._refuse is not None:
            raise self._refuse
        claim: Claim = decode(data, Claim)
        wanted = _prove(self._secret, b"initiator", self._peer, self._own, claim.hello)
        if not hmac.compare_digest(wanted, claim.proof):
            raise RefusedError("wrong secret", "the file secret must be the same on all nodes")
        hello: PeerHello = decode(claim.hello, PeerHello)
        if hello.version != self._version:
            raise ProtocolError(f"a hello of version {hello.version}")
        if (hello.sender, hello.receiver) != (self._peer_ip, self._own_ip):
            raise RefusedError(
                f"{hello.sender} speaks to {hello.receiver}, but the connection is from "
                f"{self._peer_ip} to {self._own_ip}",
                "mosip must hold the address that other nodes see",
            )
        self._hello = hello
        self.done = True
        proof = _prove(self._secret, b"responder", self._peer, self._own, claim.hello)
        return frame(encode(Proof(proof)), MAX_HANDSHAKE_FRAME)

    def _fail(self, error: MosixError) -> bytes:
        self.error = error
        if not self._complete:
            return b""
        # A proof that failed is told plainly; malformed bytes get no answer.
        if not isinstance(error, RefusedError):
            return b""
        refuse = PeerRefuse(reason=error.message[:1000], hint=error.hint[:1000], code=error.code)
        return frame(encode(refuse), MAX_HANDSHAKE_FRAME)
