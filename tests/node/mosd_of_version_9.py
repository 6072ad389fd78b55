"""A mosd as it will be one day: the same, but it says version 9 to other nodes and to workers."""

from __future__ import annotations

from mosix.node import adoption, peers
from mosix.wire.handshake import Initiator, Responder


class _Called(Responder):
    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, version=9, **more)  # type: ignore[arg-type]


class _Calling(Initiator):
    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, version=9, **more)  # type: ignore[arg-type]


peers.Responder = _Called  # type: ignore[misc]
peers.Initiator = _Calling  # type: ignore[misc]
adoption.WORKER_VERSION = 9  # type: ignore[attr-defined]

if __name__ == "__main__":
    from mosix.cli.mosd import main

    main()
