"""The files under /etc/mosix as dataclasses; every complaint names file, line and remedy.

`load(Paths)` for everything but the secret, `load_secret(Paths)` for that: mosd starts its
spawner between the two. Nothing here opens a socket to another node or knows mosd.
"""

from mosix.config.node import (
    DEFAULT_GRACE_S,
    DEFAULT_MAX_GUESTS,
    DEFAULT_PEER_PORT,
    NodeConfig,
    load,
)
from mosix.config.nodemap import NodeMap, parse_map
from mosix.config.paths import Paths
from mosix.config.secret import load_secret

__all__ = [
    "DEFAULT_GRACE_S",
    "DEFAULT_MAX_GUESTS",
    "DEFAULT_PEER_PORT",
    "NodeConfig",
    "NodeMap",
    "Paths",
    "load",
    "load_secret",
    "parse_map",
]
