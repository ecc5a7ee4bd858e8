"""What an operator decides: where data lives, which database, how much, how long. Read once from the environment.

Every variable starts with FDCORE_; `fdcore doctor` shows those that differ from the default.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fdcore.errors import UsageError

MB = 1_000_000


@dataclass(frozen=True)
class Config:
    """One field per variable FDCORE_<NAME>; the defaults suit one person on one machine."""

    # Where runs, trajectories and, by default, the database live. Machines that share a database must share this folder.
    data: Path
    # Where environments of models that need their own are kept; empty for the user's cache.
    environments: str = ""
    # An SQLAlchemy address; empty for SQLite in `data`. PostgreSQL lets several machines share the work.
    database_url: str = ""
    # How this machine is called among those that share a database.
    worker_name: str = ""
    # Runs that one slot of a lane takes at a time; 0 leaves the lane to other machines.
    quick_slots: int = 1
    long_slots: int = 1
    # CUDA devices that runs may use: as many as there are (-1), or fewer.
    gpu_slots: int = -1
    # Threads of one compute child; 0 shares the cores among the CPU lanes.
    threads: int = 0
    # A warm child gives its memory back after this long without work.
    idle_seconds: float = 900.0
    # Quotas and limits. 0 is none.
    max_active_runs: int = 40
    max_owner_MB: int = 20_000
    max_run_MB: int = 10_000
    max_total_MB: int = 0
    max_run_hours: float = 72.0
    # Ended runs older than this are deleted; 0 keeps them until somebody deletes them.
    retention_days: float = 0.0
    # "auto": the app starts a worker on its own machine; "none": workers are started by the operator.
    worker: str = "auto"
    # Checkpoints that the operator has put here, one per model, named by its id (orb-d3-xs-v2.ckpt); empty for none.
    weights: str = ""
    # A folder of the operator's: what its subfolders hold may be screened by everybody; empty for none.
    screen_folder: str = ""
    # How quickly things are noticed. Seconds; tests shorten them.
    poll_seconds: float = 0.3
    heartbeat_seconds: float = 2.0
    dead_after_seconds: float = 30.0
    cancel_grace_seconds: float = 5.0
    checkpoint_seconds: float = 5.0

    @property
    def sqlite(self) -> bool:
        return not self.database_url or self.database_url.startswith("sqlite")

    @property
    def url(self) -> str:
        """The database's address."""
        return self.database_url or f"sqlite:///{self.data / 'fdcore.sqlite'}"

    @property
    def name(self) -> str:
        """This machine's worker. One SQLite file has exactly one, so its name must not change with the host's."""
        return self.worker_name or ("local" if self.sqlite else socket.gethostname())

    @property
    def runs(self) -> Path:
        return self.data / "runs"

    @property
    def screens(self) -> Path:
        """What belongs to screenings, which several runs may share: their inputs, parts and tables."""
        return self.data / "screens"

    def environment(self) -> dict[str, str]:
        """The variables that give a child process the same configuration."""
        return {variable(f.name): str(getattr(self, f.name)) for f in fields(self)}


def from_environment(environment: Mapping[str, str] | None = None) -> Config:
    """The configuration in force. UsageError names the variable that cannot be understood."""
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {"data": _data_folder(environment)}
    for field in fields(Config):
        text = environment.get(variable(field.name), "").strip()
        if field.name != "data" and text:
            values[field.name] = _convert(field.name, str(field.type), text)
    config = Config(**values)
    named(config, config.worker_name)
    if config.worker not in ("auto", "none"):
        raise UsageError(f"FDCORE_WORKER={config.worker} is neither auto nor none.", "Set one of the two, or unset it.")
    return config


def named(config: Config, name: str) -> Config:
    """The same configuration for a worker of another name. UsageError for what cannot be part of a file name."""
    other = replace(config, worker_name=name)
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}", other.name) is None:
        raise UsageError(f"{other.name!r} cannot be the name of a worker.", "Use letters, digits, . _ and -.")
    return other


def _data_folder(environment: Mapping[str, str]) -> Path:
    chosen = environment.get("FDCORE_DATA", "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = environment.get("XDG_DATA_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".local" / "share") / "force-delta"


def environments_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where environments of models that need their own are kept: FDCORE_ENVIRONMENTS, or in the user's cache, for they can be built again."""
    environment = os.environ if environment is None else environment
    chosen = environment.get("FDCORE_ENVIRONMENTS", "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = environment.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "force-delta" / "environments"


def _convert(name: str, kind: str, text: str) -> Any:
    try:
        value: Any = {"int": int, "float": float}.get(kind, str)(text)
    except ValueError as error:
        raise UsageError(f"{variable(name)}={text} is not a number.", "Correct the variable, or unset it.") from error
    if kind in ("int", "float") and not (value >= 0 or (name == "gpu_slots" and value == -1)):
        raise UsageError(f"{variable(name)}={text} must not be negative.", "Correct the variable, or unset it.")
    return value


def variable(name: str) -> str:
    """What the field is called in the environment."""
    return f"FDCORE_{name.upper()}"


# Said to people: what each variable is for (`fdcore doctor`, README).
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "data": "folder of runs, trajectories and the SQLite database",
        "environments": "folder of the environments of models that need their own",
        "database_url": "PostgreSQL address (postgresql+psycopg://...) shared by several machines",
        "worker_name": "this machine's name among them",
        "quick_slots": "short runs at once on this machine's CPU",
        "long_slots": "long runs at once on this machine's CPU",
        "gpu_slots": "CUDA devices used, one run each (-1: all)",
        "threads": "threads of one compute process (0: shared out)",
        "idle_seconds": "models are unloaded after this long without work",
        "max_active_runs": "waiting and running runs of one owner",
        "max_owner_MB": "stored results of one owner",
        "max_run_MB": "stored results of one run",
        "max_total_MB": "stored results of everybody (0: no limit)",
        "max_run_hours": "wall time of one attempt",
        "retention_days": "ended runs are deleted after this long (0: never)",
        "worker": "auto: the app starts a worker; none: the operator does",
        "weights": "folder of checkpoints for machines without network, each named by its model's id (orb-d3-xs-v2.ckpt)",
        "screen_folder": "folder whose subfolders users may screen; empty for none",
        "poll_seconds": "a worker looks for waiting runs this often",
        "heartbeat_seconds": "a worker says this often that it lives",
        "dead_after_seconds": "a worker that is silent for this long is taken for dead",
        "cancel_grace_seconds": "a run that does not stop by itself is killed after this long",
        "checkpoint_seconds": "a run's state is saved this often",
    }
)
