"""What a screening of the engine may read: the files that were brought with it, or one folder of those that the operator offers."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from fdcore.errors import UsageError
from fdcore.screening.walk import shown_name

# In the folder of a screening: what was brought.
INPUTS = "inputs"
# Bytes of a file's name: file systems take 255, and it may get a number.
MOST_NAME_BYTES = 200


def offered(folder: str) -> tuple[str, ...]:
    """The folders within the operator's that may be screened, in order: no links, which could lead out of it, and nothing hidden. None where
    the operator offers none. UsageError where the folder cannot be looked at."""
    if not folder:
        return ()
    try:
        with os.scandir(folder) as entries:
            found = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    except OSError as error:
        raise UsageError(
            f"The operator's folder of structures cannot be read ({error.strerror}).",
            "Tell the operator: FDCORE_SCREEN_FOLDER.",
        ) from error
    return tuple(sorted(found))


def offered_folder(folder: str, name: str) -> Path:
    """The place of one of the offered folders. UsageError for any other name."""
    if name not in offered(folder):
        raise UsageError(
            f"There is no folder {shown_name(name)!r} to be screened.", "Choose one of those that are listed."
        )
    return Path(folder) / name


def safe_name(name: str, taken: set[str]) -> str:
    """What a file that somebody brings is called on disk: one component, not hidden, and not one of `taken`, which it joins."""
    last = shown_name(PurePosixPath(name.replace("\\", "/")).name).replace("/", "_").lstrip(". ") or "unnamed"
    path = PurePosixPath(last)
    stem, suffix = path.stem, path.suffix[:20]
    while len((stem + suffix).encode()) > MOST_NAME_BYTES:
        stem = stem[:-1]
    made, number = stem + suffix, 1
    while made.lower() in taken:
        number += 1
        # As on the other pages: a second POSCAR becomes "POSCAR (2)".
        made = f"{stem} ({number}){suffix}"
    taken.add(made.lower())
    return made
