"""What the owner of this node has said of it with mosctl, kept while the machine is up.

`Owner.said` is read by mosd wherever a guest may come or a process may leave; what it says of it
travels with the node's load vector. `Owner.say` is called for mosctl. It lies in the run directory,
so a mosd that is started again still knows it, and a machine that is started again does not.
Never moves anybody: who says `block` keeps the guests that are here.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from mosix.balancer.vectors import Flags

_log = logging.getLogger("mosd.owner")


class OwnerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Named as the commands of mosctl. `drain`: block, and everybody is to be where he belongs;
    `off`: the same, and the node belongs to no cluster (setpe -off)."""

    block: bool = False
    stay: bool = False
    lstay: bool = False
    drain: bool = False
    off: bool = False
    #: changes of the map are logged
    logmap: bool = True

    @property
    def takes_guests(self) -> bool:
        """Whether a process of another node may come, by itself or because somebody says so."""
        return not (self.block or self.drain or self.off)

    def may_leave(self, *, own: bool) -> bool:
        """Whether the system may send a process that runs here elsewhere. `own`: its home is here;
        else it is a guest. People always may, and home always may take its own back."""
        if own:
            return not (self.stay or self.lstay or self.drain or self.off)
        return not self.stay or self.drain or self.off

    @property
    def keeps_own(self) -> bool:
        """Whether processes of this node stay at home whoever wants them elsewhere."""
        return self.drain or self.off

    @property
    def flags(self) -> Flags:
        """As other nodes are told."""
        said = {
            Flags.BLOCK: self.block,
            Flags.STAY: self.stay,
            Flags.LOCAL_STAY: self.lstay,
            Flags.DRAIN: self.drain,
        }
        return Flags(sum(flag for flag, is_set in said.items() if is_set))

    def words(self) -> list[str]:
        """What is not as it is by default."""
        words = ("block", "stay", "lstay", "drain", "off")
        said = [name for name in words if getattr(self, name)]
        return said if self.logmap else [*said, "nologmap"]


class Owner:
    """The flags of this node."""

    def __init__(self, path: Path) -> None:
        """`path`: the file they are kept in; what is none of ours is as if nothing was said."""
        self._path = path
        self.said = OwnerFlags()
        try:
            self.said = msgspec.json.decode(path.read_bytes(), type=OwnerFlags)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("what the owner has said is lost: %s: %s", path, error)

    def say(self, **changes: bool) -> bool:
        """Whether that is new. OSError: it cannot be kept, and nothing is changed."""
        said = msgspec.structs.replace(self.said, **changes)
        if said == self.said:
            return False
        new = self._path.with_name(f".{self._path.name}")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(said) + b"\n")
        new.rename(self._path)
        self.said = said
        return True
