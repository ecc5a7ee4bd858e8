"""What verbs share: where structures come from, and where results go; to standard output nothing else goes with them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fdcore.errors import UsageError

if TYPE_CHECKING:
    from fdcore.records import Failure
    from fdcore.structures import Parsed

EXIT_OK, EXIT_PARTLY, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 130


class stdout_for_results:
    """Libraries print (kernel compilers, download bars): inside this context their stdout is stderr, and only what is
    written to the yielded stream reaches the real one. Works on the descriptor, so C code is covered too."""

    def __enter__(self) -> TextIO:
        sys.stdout.flush()
        try:
            self._kept = os.dup(1)
        except OSError:
            self._kept = None
            return sys.stdout
        self._stream = os.fdopen(os.dup(self._kept), "w", encoding="utf-8")
        os.dup2(2, 1)
        return self._stream

    def __exit__(self, *_: object) -> None:
        if self._kept is None:
            return
        sys.stdout.flush()
        with contextlib.suppress(BrokenPipeError):
            self._stream.close()
        os.dup2(self._kept, 1)
        os.close(self._kept)


def require_writable(path: str | None) -> None:
    if path in (None, "-"):
        return
    folder = Path(path).resolve().parent  # type: ignore[arg-type]
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"Nothing can be written to {path}.", "Name a folder that exists and is writable.")


def write(path: str | None, text: Callable[[], str], results: TextIO) -> None:
    if path is None:
        return
    if path == "-":
        results.write(text())
        results.flush()
    else:
        Path(path).write_text(text(), encoding="utf-8")


def read_structures(files: Sequence[str]) -> Parsed:
    """Structures of files, or of standard input for `-`."""
    # Heavy, and not what every verb needs.
    from fdcore import services

    if "-" not in files:
        return services.read_paths(files)
    if len(files) > 1:
        raise UsageError("Standard input (-) cannot be mixed with files.", "Give files only, or - only.")
    return services.read_sources([services.Source(name="standard input", data=sys.stdin.buffer.read())])


def print_failures(failures: Iterable[Failure]) -> None:
    """On standard error, one line each."""
    for failure in failures:
        frame = "" if failure.index is None else f" (frame {failure.index})"
        print(f"failed: {failure.file}{frame}: {failure.error} {failure.hint}".rstrip(), file=sys.stderr)
