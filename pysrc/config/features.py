"""features and myfeatures: what kind of node this is, in words of the administrator's.

MOSIX(7): a node has any of at most 32 topological features; which there are is said in `features`,
the same on all nodes, and which this node has in `myfeatures`. Read by `mosix.config.node`; what
they are good for is the business of whoever reads `NodeConfig.features`.
"""

from __future__ import annotations

from mosix.config.lines import Line, lines, read_text
from mosix.config.paths import Paths

MAX_FEATURES = 32
_LIST_HINT = "one name a line, the same on all nodes"
_OWN_HINT = "one line: names of the file features, with commas in between"


def load_features(paths: Paths) -> tuple[str, ...]:
    """Those of this node, in the order of `features`, where there is that file. ConfigError."""
    known = _known(paths)
    if not paths.own_features.exists():
        return ()
    said = list(lines(paths.own_features, read_text(paths.own_features, _OWN_HINT)))
    if len(said) > 1:
        raise said[1].error("more than one line", _OWN_HINT)
    if not said:
        return ()
    own = [_name(said[0], word.strip(), _OWN_HINT) for word in said[0].text.split(",")]
    for index, name in enumerate(own):
        if name in own[:index]:
            raise said[0].error(f"'{name}' twice")
        if known is not None and name not in known:
            raise said[0].error(
                f"there is no feature '{name}'", f"they are listed in {paths.features}"
            )
    if known is None and len(own) > MAX_FEATURES:
        raise said[0].error(f"more than {MAX_FEATURES} features")
    return tuple(own if known is None else [name for name in known if name in own])


def _known(paths: Paths) -> list[str] | None:
    """All that there are; None: nobody says so."""
    if not paths.features.exists():
        return None
    known: list[str] = []
    for line in lines(paths.features, read_text(paths.features, _LIST_HINT)):
        name = _name(line, line.text, _LIST_HINT)
        if name in known:
            raise line.error(f"'{name}' twice")
        if len(known) == MAX_FEATURES:
            raise line.error(f"more than {MAX_FEATURES} features")
        known.append(name)
    return known


def _name(line: Line, text: str, hint: str) -> str:
    if not text:
        raise line.error("a feature without a name", hint)
    if len(text) > 64 or not text.isprintable() or any(c in ", \t" for c in text):
        raise line.error(f"'{text}' is no name of a feature", hint)
    return text
