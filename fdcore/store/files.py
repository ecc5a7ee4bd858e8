"""Where the files of a run are. One folder per attempt; nothing else knows how they are named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from fdcore.config import Config


def attempt_folder(config: Config, run_id: str, number: int) -> Path:
    return config.runs / run_id / f"attempt-{number}"


def previous_folders(config: Config, run_id: str, number: int) -> list[Path]:
    """Folders of earlier attempts that are still there, the latest first."""
    folders = [attempt_folder(config, run_id, n) for n in range(number - 1, 0, -1)]
    return [f for f in folders if f.is_dir()]


def other_folders(config: Config, run_id: str, number: int) -> list[Path]:
    """What all other attempts of a run have left, complete or not."""
    own = attempt_folder(config, run_id, number)
    return [p for p in own.parent.iterdir() if p != own and p.is_dir()]


def latest_folder(config: Config, run_id: str, number: int) -> Path | None:
    """The newest attempt that has recorded anything, None where there is none yet."""
    return next(iter(previous_folders(config, run_id, number + 1)), None)


def remove_files(config: Config, run_id: str) -> None:
    """Everything that attempts of this run have left."""
    folder = config.runs / run_id
    if not run_id or folder.parent != config.runs:
        raise ValueError(f"no run can be called {run_id!r}")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def screen_folder(config: Config, screen: str) -> Path:
    """Where the inputs, the parts and the table of a screening are, which one or several runs work on. ValueError for what is no token."""
    if not is_screen(screen):
        raise ValueError(f"no screening can be called {screen!r}")
    return config.screens / screen


def is_screen(name: str) -> bool:
    """Whether a screening can be called so."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


def remove_screen(config: Config, screen: str) -> None:
    """Everything that a screening has left."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(screen_folder(config, screen))


def folder_size(folder: Path) -> int:
    """Bytes of all files under a folder; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_size
    return total
