"""A mosd on a machine that is another one as its first argument says (JSON, fields of
`NodeFeatures`)."""

from __future__ import annotations

import json
import sys

import msgspec
from mosix.node import mosd
from mosix.wire.messages import NodeFeatures


def another(changes: dict[str, object]) -> NodeFeatures:
    features = msgspec.to_builtins(_probe())
    return msgspec.convert(features | changes, NodeFeatures)


_probe = mosd.probe
if __name__ == "__main__":
    _changes = json.loads(sys.argv.pop(1))
    mosd.probe = lambda **_: another(_changes)  # type: ignore[attr-defined]
    from mosix.cli.mosd import main

    main()
