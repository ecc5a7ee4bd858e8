"""From the paths a person names to files, one folder's names at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fdcore.records import Failure
from fdcore.structures.text import clean

MAX_NAME = 400
# In a folder these are passed over without a word: what is read here is not written under such names.
# fmt: off
_SUFFIXES = frozenset((
    ".md", ".rst", ".tex", ".bib", ".log", ".err", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini", ".py", ".ipynb", ".sh",
    ".bash", ".js", ".css", ".html", ".htm", ".svg", ".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".eps", ".ps", ".pdf",
    ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".mp4", ".mov", ".avi", ".lock", ".tmp", ".bak", ".swp", ".sha256", ".md5",
    ".sig", ".asc", ".db-wal", ".db-shm", ".db-journal",
))
_NAMES = frozenset((
    "readme", "readme.txt", "license", "license.txt", "licence", "copying", "notice", "citation.cff", "changelog", "authors", "makefile",
    "dockerfile", "manifest", "thumbs.db", "desktop.ini", "incar", "kpoints", "potcar", "wavecar", "chgcar", "chg", "eigenval", "doscar",
    "procar", "oszicar", "ibzkpt", "pcdat", "report", "wavederf", "locpot",
))
# fmt: on
_PACKED = frozenset((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar"))

# Its path, the name that is shown, and the folder that was named, in which it lies; nothing for a file that was named itself.
File = tuple[str, str, str]


def files_of(paths: Sequence[str | Path], root: Path | None) -> Iterator[File | Failure]:
    """(absolute path, name that is shown, folder) of each file, in sorted order within a folder; a Failure for each path that is none.

    Without `root`, names are relative to the first folder that is given; those from another folder begin with its name, so that files of equal
    names in several folders can be told apart, and what was named before is called as it was when more is named behind it.
    """
    within = None if root is None else os.path.realpath(root)
    labels = _labels(paths) if within is None else {}
    known: set[str] = set()
    for given in paths:
        # A relative path is one of `root`, where that is given.
        path = os.path.join(within or os.getcwd(), os.fspath(given))
        shown = shown_name(os.fspath(given))
        try:
            real = os.path.realpath(path, strict=True)
            kind = os.stat(real).st_mode
        except (OSError, ValueError) as error:
            yield cannot(shown, error)
            continue
        if within is not None and not _inside(real, within):
            yield Failure(shown, "This lies outside of the folder that may be read.", "Move it there, or name another.")
            continue
        if real in known:
            # Named twice, it is there once.
            continue
        known.add(real)
        if stat.S_ISDIR(kind):
            yield from _walk(real, within or real, labels.get(os.path.abspath(path), ""))
        else:
            yield _file(real, kind, os.path.relpath(real, within) if within else labels[os.path.abspath(path)])


def _labels(paths: Sequence[str | Path]) -> dict[str, str]:
    """For each of these paths, made absolute, as many of its last parts as nothing that is named before it is called by; nothing for the first
    folder, whose files are named from it. What is named later changes nothing."""
    labels: dict[str, str] = {}
    folders: dict[str, str] = {}
    used: set[str] = set()
    for path in (os.path.abspath(os.fspath(p)) for p in paths):
        if path in labels:
            continue
        is_folder, parts = os.path.isdir(path), Path(path).parts
        if is_folder and "" not in folders:
            labels[path], folders[""] = "", path
            continue
        names = (os.path.join(*parts[-kept:]) for kept in range(1, len(parts) + 1))
        label = next((name for name in names if name not in used and not _called(path, name, folders)), path)
        labels[path] = label
        used.add(label)
        if is_folder:
            folders[label] = path
    return labels


def _called(path: str, label: str, folders: dict[str, str]) -> bool:
    """Whether something in one of these folders has this name, or something in this path, a folder, a name of theirs."""
    for other, folder in folders.items():
        if not other or label.startswith(os.path.join(other, "")):
            there = os.path.join(folder, os.path.relpath(label, other or "."))
            if os.path.lexists(there) and there != path:
                return True
        elif other.startswith(os.path.join(label, "")) and os.path.lexists(
            os.path.join(path, os.path.relpath(other, label))
        ):
            return True
    return False


def shown_name(name: str) -> str:
    """One line of plain text; beyond MAX_NAME characters only start and end."""
    return clean(name, MAX_NAME, tail=MAX_NAME // 2) or "unnamed"


def _walk(folder: str, named_from: str, label: str) -> Iterator[File | Failure]:
    """The files of a folder and of those in it, their names behind `label`. Links to files within it are followed; to folders not: those are met
    where they lie."""
    # One iterator of names for each folder on the way to where we are: never the whole tree.
    way: list[tuple[str, Iterator[str]]] = []
    entered: str | None = folder
    while entered is not None or way:
        if entered is not None:
            try:
                way.append((entered, iter(_names_in(entered))))
            except OSError as error:
                yield cannot(_relative(entered, named_from, label), error)
            entered = None
            continue
        here, names = way[-1]
        name = next(names, None)
        if name is None:
            way.pop()
            continue
        path = os.path.join(here, name)
        relative = _relative(path, named_from, label)
        try:
            kind = os.lstat(path).st_mode
            if stat.S_ISDIR(kind):
                entered = path
                continue
            if stat.S_ISLNK(kind):
                path = os.path.realpath(path, strict=True)
                kind = os.stat(path).st_mode
                if not _inside(path, folder):
                    yield Failure(
                        relative,
                        "The link leads out of the folder: it is not followed.",
                        "Name its target, or copy it.",
                    )
                    continue
                if stat.S_ISDIR(kind):
                    continue
        except OSError as error:
            yield cannot(relative, error)
            continue
        yield _file(path, kind, relative, folder)


# What the folder of a screening's results holds; `fdcore screen .` must not take its own table for structures.
RESULTS = frozenset(("screen.json", "parts"))
OWN = RESULTS | {"results.parquet", "results.csv", "summary.json", "book.sqlite", "book.sqlite-wal", "book.sqlite-shm"}


def _names_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries}
        own = OWN if there.keys() >= RESULTS else frozenset[str]()
        return sorted(
            e.name
            for e in there.values()
            if e.name not in own and e.name[0] != "." and (not _passed_over(e.name) or e.is_dir())
        )


def _passed_over(name: str) -> bool:
    lower = name.lower()
    return lower in _NAMES or os.path.splitext(lower)[1] in _SUFFIXES


def _file(path: str, kind: int, name: str, folder: str = "") -> File | Failure:
    name = shown_name(name)
    if not stat.S_ISREG(kind):
        return Failure(name, "This is not an ordinary file.", "Save its content to a file first.")
    if os.path.splitext(path)[1].lower() in _PACKED:
        return Failure(name, "This is a packed file, which is not read here.", "Unpack it and bring the files inside.")
    return path, name, folder


def cannot(name: str, error: OSError | ValueError) -> Failure:
    if isinstance(error, FileNotFoundError):
        return Failure(name, "There is no such file.", "Check the path.")
    if isinstance(error, PermissionError):
        return Failure(name, "This may not be read.", "Check its permissions.")
    return Failure(name, f"This could not be opened ({type(error).__name__}).", "Check the path.")


def _relative(path: str, folder: str, label: str) -> str:
    return shown_name(os.path.normpath(os.path.join(label, os.path.relpath(path, folder))))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
