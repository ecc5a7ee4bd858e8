"""What verbs share: where structures come from, and where results go; to standard output nothing else goes with them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fdcore.errors import UsageError

if TYPE_CHECKING:
    from fdcore.records import Failure, ModelCard, Structure
    from fdcore.structures import Parsed

EXIT_OK, EXIT_PARTLY, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 130
# Of frames that fail alike, how many are named.
FRAMES_NAMED = 5


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


def named_model(arguments: argparse.Namespace) -> ModelCard | None:
    """The card of the model that was asked for, None where nobody named one. A local checkpoint is of the model that is named, or of the
    default. UsageError for what cannot work, before anything is read."""
    from fdcore import services

    named = arguments.model or (services.default_model_id() if arguments.weights else None)
    card = None if named is None else services.card(named)
    services.check_device(arguments.device)
    if arguments.weights is not None and not Path(arguments.weights).is_file():
        raise UsageError(f"There is no file {arguments.weights}.", "Check the path given with --weights.")
    return card


def model_for(arguments: argparse.Namespace, named: ModelCard | None, structures: Sequence[Structure]) -> ModelCard:
    """The card of the one model that a run needs: the named one, else one that has seen such structures, which is then said."""
    from fdcore import services

    card = services.card(services.suggested_model(structures)) if named is None else named
    if named is None and card.id != services.default_model_id():
        print(f"fdcore: model {card.id}, chosen for these structures (--model names another)", file=sys.stderr)
    say_unread(arguments, [card.id])
    return card


def say_unread(arguments: argparse.Namespace, model_ids: Iterable[str]) -> None:
    """Which of the models that are used do not read the --charge or the --spin that was given."""
    from fdcore import services

    if arguments.charge is None and arguments.spin is None:
        return
    deaf = [i for i in dict.fromkeys(model_ids) if not services.card(i).needs_charge_spin]
    if deaf:
        do = "does" if len(deaf) == 1 else "do"
        print(f"fdcore: {', '.join(deaf)} {do} not read charge or spin", file=sys.stderr)


def print_failures(failures: Iterable[Failure]) -> None:
    """On standard error, one line each; frames of one file that fail alike share a line."""
    alike: dict[tuple[str, str, str], list[int | None]] = {}
    for failure in failures:
        alike.setdefault((failure.file, failure.error, failure.hint), []).append(failure.index)
    for (file, error, hint), frames in alike.items():
        named = [str(index) for index in frames if index is not None]
        where = ""
        if len(named) == 1:
            where = f" (frame {named[0]})"
        elif named:
            more = f" and {len(named) - FRAMES_NAMED} more" if len(named) > FRAMES_NAMED else ""
            where = f" (frames {', '.join(named[:FRAMES_NAMED])}{more})"
        print(f"failed: {file}{where}: {error} {hint}".rstrip(), file=sys.stderr)


def by_reason(failures: Sequence[Failure]) -> list[Failure]:
    """Those with the same reason as one, with their number."""
    from fdcore.records import Failure

    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        alike.setdefault((failure.error, failure.hint), []).append(failure)
    return [
        same[0] if len(same) == 1 else Failure(f"{len(same)} structures", *reason) for reason, same in alike.items()
    ]
