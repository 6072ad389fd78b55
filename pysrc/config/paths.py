"""Where the configuration and the run directory are; used by mosd and by every command.

Options win over the environment (MOSIX_CONFIG_DIR, MOSIX_RUN_DIR), which wins over the
defaults. This module never touches the file system.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONFIG_DIR = Path("/etc/mosix")
DEFAULT_RUN_DIR = Path("/run/mosix")


@dataclass(frozen=True)
class Paths:
    """The two directories of one node."""

    config_dir: Path = DEFAULT_CONFIG_DIR
    run_dir: Path = DEFAULT_RUN_DIR

    @classmethod
    def choose(
        cls,
        config_dir: str | Path | None = None,
        run_dir: str | Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Paths:
        """Options first, then the environment, then the defaults."""
        return cls(
            Path(config_dir or environ.get("MOSIX_CONFIG_DIR") or DEFAULT_CONFIG_DIR),
            Path(run_dir or environ.get("MOSIX_RUN_DIR") or DEFAULT_RUN_DIR),
        )

    @property
    def map(self) -> Path:
        return self.config_dir / "mosix.map"

    @property
    def userview(self) -> Path:
        return self.config_dir / "userview.map"

    @property
    def secret(self) -> Path:
        return self.config_dir / "secret"

    @property
    def own_ip(self) -> Path:
        return self.config_dir / "mosip"

    @property
    def ports(self) -> Path:
        return self.config_dir / "ports"

    @property
    def max_guests(self) -> Path:
        return self.config_dir / "maxguests"

    @property
    def grace(self) -> Path:
        return self.config_dir / "grace"

    @property
    def speed(self) -> Path:
        return self.config_dir / "speed"

    @property
    def features(self) -> Path:
        return self.config_dir / "features"

    @property
    def own_features(self) -> Path:
        return self.config_dir / "myfeatures"

    @property
    def log_mosrun(self) -> Path:
        """Only whether it is there counts."""
        return self.config_dir / ".log_mosrun"

    @property
    def partners(self) -> Path:
        return self.config_dir / "partners"

    @property
    def grid(self) -> Path:
        return self.config_dir / "grid"

    @property
    def tuning(self) -> Path:
        return self.config_dir / "mostune"

    @property
    def control(self) -> Path:
        """mosd's socket for commands."""
        return self.run_dir / "control"

    @property
    def keeper(self) -> Path:
        """The socket of the kernel tier's keeper."""
        return self.run_dir / "keeper"

    @property
    def lock(self) -> Path:
        """Held by the running mosd; contains its PID."""
        return self.run_dir / "mosd.pid"

    @property
    def log(self) -> Path:
        """Only with `mosd --detach`."""
        return self.run_dir / "mosd.log"

    @property
    def measured_speed(self) -> Path:
        """What mosd has measured, kept until the machine is started again."""
        return self.run_dir / "speed"

    @property
    def owner(self) -> Path:
        """What this node's owner has said with mosctl (`mosix.node.owner`)."""
        return self.run_dir / "owner"

    @property
    def jobs(self) -> Path:
        """One file per job (`mosix.node.records`)."""
        return self.run_dir / "jobs"

    @property
    def guests(self) -> Path:
        """One file per guest (`mosix.node.records`)."""
        return self.run_dir / "guests"

    @property
    def spawner(self) -> Path:
        """Which spawners there may be (`mosix.node.records`)."""
        return self.run_dir / "spawner"

    @property
    def workers(self) -> Path:
        """Where deputies and remotes of a mosd that died come back."""
        return self.run_dir / "workers"
