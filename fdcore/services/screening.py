"""What a page or the command line may ask of screenings that the engine does: start, how far, what was found, single structures, files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from fdcore import services
from fdcore.config import MB
from fdcore.errors import FdcoreError, QuotaError, RunStateError, StoreError, UsageError
from fdcore.human import duration
from fdcore.jobs import screens
from fdcore.models.base import guessed_seconds_per_edge
from fdcore.records import Failure, ModelCard, Structure
from fdcore.screening import listing, query
from fdcore.screening.chunks import Chunk
from fdcore.screening.inputs import INPUTS, offered, safe_name
from fdcore.screening.query import Filter, Selected
from fdcore.screening.reading import read_chunk
from fdcore.screening.results import TABLE_CSV, TABLE_PARQUET, Results, put_together
from fdcore.screening.screen import Pace, tables
from fdcore.screening.summary import SUMMARY, Found, summary_of
from fdcore.services import runs
from fdcore.services.repeat import parameters_of
from fdcore.spec import ModelChoice
from fdcore.store.chunks import TASK, ChunkBook, Count
from fdcore.store.files import screen_folder
from fdcore.store.runs import new_token
from fdcore.structures import Limits, with_charge_spin
from fdcore.structures.pool import shared_pool
from fdcore.tasks.screen import SETTINGS, ScreenParameters

__all__ = ["TASK", "Filter", "Selected"]

# One person's upload; what is more belongs into a folder of the operator's, or to the command line.
MOST_FILES = 1000
MOST_HANDS = 16
COPY_BYTES = 1_000_000
# For a guess of the cost: bytes of a text per atom, and edges per atom.
BYTES_PER_ATOM, EDGES_PER_ATOM = 50.0, 60.0
# Structures that are handed to other pages at once.
MOST_CHOSEN = 200


@dataclass(frozen=True)
class Brought:
    """A file that somebody brings; it is copied to disk piece by piece."""

    name: str
    stream: BinaryIO


# ---- starting ------------------------------------------------------------------------------------------------------


def offered_folders() -> tuple[str, ...]:
    """The folders that the operator lets people screen. UsageError where they cannot be looked at."""
    return offered(runs.current().config.screen_folder)


def start(
    viewer: runs.Viewer,
    model: ModelChoice,
    *,
    brought: Sequence[Brought] = (),
    folder: str = "",
    title: str = "",
    hands: int = 1,
    **settings: Any,
) -> tuple[runs.Run, ...]:
    """Queue a screening of files, or of one of the `offered_folders`: one run for each of its `hands`. `settings`: check_share, charge, spin,
    chunk. Raises QuotaError, UnknownModelError, UsageError; nothing stays where it cannot begin."""
    known = runs.current()
    if bool(brought) == bool(folder):
        raise UsageError("Bring files, or choose a folder.", "One of the two.")
    if folder and folder not in offered_folders():
        raise UsageError("There is no such folder to be screened.", "Choose one of those that are listed.")
    if not 1 <= hands <= MOST_HANDS:
        raise UsageError(f"{hands} hands are not possible.", f"Choose 1 to {MOST_HANDS}.")
    owner = viewer.owner or "operator"
    known.store.require_room(owner)
    screen = new_token()
    place = screen_folder(known.config, screen)
    made: list[str] = []
    try:
        names, content = _copied(place / INPUTS, brought) if brought else ([], folder)
        common = {"screen": screen, "folder": folder, "source": names, "hands": hands, **settings}
        lane = runs.lane_of(model.device, cost_seconds(services.card(model.id), place / INPUTS if brought else None))
        for hand in range(hands):
            spec = runs.spec_of(TASK, (), model, parameters_of(ScreenParameters, TASK, {**common, "hand": hand}))
            spec = replace(spec, inputs_sha256=hashlib.sha256(content.encode()).hexdigest())
            name = title or folder or names[0]
            name = name if hands == 1 else f"{name} (hand {hand + 1} of {hands})"
            made.append(known.submit(owner, spec, title=name, lane=lane))
    except BaseException as error:
        # With fewer hands than were wished for it works as well.
        if not made or not isinstance(error, QuotaError):
            for run_id in made:
                with contextlib.suppress(FdcoreError):
                    known.cancel(viewer, run_id)
            if not made:
                shutil.rmtree(place, ignore_errors=True)
            raise
    screens.count_bytes(known.config, known.store, screen)
    return tuple(known.store.run(viewer, run_id) for run_id in made)


def _copied(folder: Path, brought: Sequence[Brought]) -> tuple[list[str], str]:
    """Files as they are called on disk, and what says what is in them."""
    if len(brought) > MOST_FILES:
        raise UsageError(
            f"{len(brought):,} files are more than the {MOST_FILES:,} that can be brought at once.",
            "Put them together in one extended xyz or one Parquet file, or use `fdcore screen`.",
        )
    most = runs.current().config.max_run_MB * MB
    folder.mkdir(parents=True, mode=0o700)
    taken: set[str] = set()
    names, told, total = [], [], 0
    for one in brought:
        name = safe_name(one.name, taken)
        digest = hashlib.sha256()
        with (folder / name).open("xb") as out:
            while piece := one.stream.read(COPY_BYTES):
                total += len(piece)
                if most and total > most:
                    raise QuotaError(
                        f"These files have more than the {most / MB:,.0f} MB that this server allows for one run.",
                        "Bring fewer at once, or use `fdcore screen` on a machine of your own.",
                    )
                digest.update(piece)
                out.write(piece)
        names.append(name)
        told.append(f"{name} {digest.hexdigest()}")
    return names, "\n".join(told)


def cost_seconds(card: ModelCard, folder: Path | None) -> float:
    """A guess of what screening these files takes (one core), by their size; infinite for a folder that nobody has looked through."""
    if folder is None:
        return float("inf")
    return cost_of_bytes(card, sum(f.stat().st_size for f in folder.iterdir()))


def cost_of_bytes(card: ModelCard, size: float) -> float:
    return size / BYTES_PER_ATOM * EDGES_PER_ATOM * guessed_seconds_per_edge(card)


def cost_in_words(card: ModelCard, size: float | None) -> str:
    """What it will take, for a person who is about to start it; None: a folder."""
    if size is None:
        return "how long it takes is said as soon as its structures are counted"
    return f"about {duration(cost_of_bytes(card, size))} (a guess from the size of the files)"


# ---- the hands -----------------------------------------------------------------------------------------------------


def hands_of(run: runs.Run) -> tuple[runs.Run, ...]:
    """All runs of the screening that this run works on, itself among them, the oldest first."""
    return runs.current().store.runs_of_screen(_screen(run))


def stop(viewer: runs.Viewer, run: runs.Run) -> None:
    """Stop all hands; chunks that are done stay."""
    for hand in hands_of(run):
        if hand.active and not hand.cancel_requested:
            with contextlib.suppress(RunStateError):
                runs.cancel(viewer, hand.id)


def go_on(viewer: runs.Viewer, run: runs.Run) -> runs.Run:
    """Begin again with every hand that was stopped or failed; returns the first. RunStateError while one is in work."""
    latest = _latest(hands_of(run))
    if any(hand.active for hand in latest.values()):
        raise RunStateError("The screening goes on already.", "Wait, or stop it first.")
    # Where all are done, files of the operator's folder cannot have been missed: a new screening looks again.
    begun = [runs.retry(viewer, hand.id) for hand in latest.values() if hand.state != "done"]
    if not begun:
        raise RunStateError("The screening is complete.", "Begin a new one.")
    screens.count_bytes(runs.current().config, runs.current().store, _screen(run))
    return begun[0]


def _latest(hands: Sequence[runs.Run]) -> dict[int, runs.Run]:
    """The last run of each hand, by the number of the hand."""
    return {int(hand.spec.parameters.get("hand", 0)): hand for hand in hands}


def delete(viewer: runs.Viewer, run: runs.Run) -> None:
    """Forget all runs of a screening, and with them its inputs and its table. RunStateError while one is active."""
    listed = hands_of(run)
    if any(hand.active for hand in listed):
        raise RunStateError("The screening has not ended yet.", "Stop it first.")
    for hand in listed:
        runs.delete(viewer, hand.id)


def _screen(run: runs.Run) -> str:
    screen = screens.screen_of(run)
    if screen is None:
        raise UsageError(f"The run {run.id[:8]} is no screening.")
    return screen


def _book(run: runs.Run) -> ChunkBook:
    return ChunkBook(runs.current().store, _screen(run))


def folder_of(run: runs.Run) -> Path:
    """Where the inputs, the parts and the table are."""
    return screen_folder(runs.current().config, _screen(run))


# ---- how far it is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How far a screening is. `done`: structures of finished chunks, of all hands; `rate`: structures/s, and `seconds_left`: None while not
    known; `working`: hands at work, `waiting`: those that wait for their turn."""

    count: Count
    found: Found
    done: int
    rate: float | None
    seconds_left: float | None
    hands: tuple[runs.Run, ...]

    @property
    def active(self) -> bool:
        return any(hand.active for hand in self.hands)

    @property
    def latest(self) -> tuple[runs.Run, ...]:
        """Of each hand the run that is, or was, the last one."""
        return tuple(_latest(self.hands).values())

    @property
    def working(self) -> int:
        return sum(hand.state == "running" for hand in self.hands)

    @property
    def waiting(self) -> int:
        return sum(hand.state == "queued" for hand in self.hands)


class Watch:
    """Looks at one screening again and again; what was seen of its chunks is not read a second time. Of one thread at a time."""

    def __init__(self, run: runs.Run) -> None:
        self._run, self._book = run, _book(run)
        self._pace = Pace()
        self._forget()

    def _forget(self) -> None:
        self._found = Found()
        # Every chunk up to this one is in it, and these beyond: hands do not finish in the order in which they take.
        self._all_until, self._beyond = -1, set[int]()

    def look(self) -> Standing:
        """As it is now. Raises StoreError where the database cannot be reached."""
        hands, count = hands_of(self._run), self._book.count()
        seen = self._all_until + 1 + len(self._beyond)
        if count.done < seen:
            # Its inputs are listed anew.
            self._forget()
            seen = 0
        if count.done > seen:
            self._add()
        done = count.scored + count.failed
        # What is done of chunks in work, as the hands tell it.
        ahead = max((hand.done for hand in hands if hand.state == "running"), default=0.0)
        # Loading a model says nothing of the pace.
        computing = any(hand.state == "running" and hand.text != "starting" for hand in hands)
        if not computing:
            self._pace.clear()
        rate = self._pace.at(max(float(done), ahead)) if computing else None
        left = max(0.0, count.expected - max(done, ahead))
        seconds = left / rate if rate and count.listed else None
        return Standing(count, self._found, done, rate, seconds, hands)

    def _add(self) -> None:
        for number, _, _, digest in self._book.done(self._all_until):
            if number in self._beyond:
                continue
            self._found.add(digest)
            self._beyond.add(number)
        while self._all_until + 1 in self._beyond:
            self._all_until += 1
            self._beyond.remove(self._all_until)


# ---- what was found ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Of the chunks that are done: the places of their parts, and the rows of what could not be listed."""

    parts: Mapping[int, Path]
    unlisted: Mapping[int, pa.Table]


def listed(run: runs.Run) -> Listed:
    """What can be read of a screening now."""
    results = _results(run)
    parts: dict[int, Path] = {}
    unlisted: dict[int, pa.Table] = {}
    for number, key, body in _book(run).keys(with_body=listing.UNLISTED):
        if body is not None:
            unlisted[number] = listing.unlisted(body)
        else:
            parts[number] = results.path(key)
    return Listed(parts, unlisted)


def _results(run: runs.Run) -> Results:
    folder = folder_of(run)
    if not folder.is_dir():
        raise StoreError("The files of this screening are gone.", "Delete the run, and screen the inputs again.")
    # Parts are found by the keys in the book; only who makes them needs the settings.
    return Results(folder, "")


def rows(run: runs.Run, wanted: Filter, most: int = 500) -> Selected:
    """The `most` rows of what is done that pass the filter, the largest U_Delta first. Raises StoreError."""
    here = listed(run)
    return query.select(here.parts, here.unlisted, wanted, most)


# ---- single structures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Which:
    """One structure of a screening, as a row of `rows` names it."""

    chunk: int
    file: str
    index: int | None
    content_sha256: str


def which(row: Mapping[str, Any]) -> Which | None:
    """What a row stands for; None where there was no structure: it could not be read."""
    content = row.get("content_sha256")
    if not isinstance(content, str):
        return None
    return Which(int(row[query.CHUNK]), str(row["file"]), None if row["index"] is None else int(row["index"]), content)


def structures(run: runs.Run, chosen: Sequence[Which]) -> tuple[Structure, ...]:
    """These structures, read anew from what was screened, with the charge and spin of the screening. UsageError where a file has changed or is
    gone."""
    parameters = ScreenParameters.of(run.spec)
    # Also refuses a folder that the operator does not offer any more.
    root = parameters.inputs(runs.current().config)
    book = _book(run)
    found: dict[Which, Structure] = {}
    for number in dict.fromkeys(w.chunk for w in chosen):
        wanted = {(w.file, w.index): w for w in chosen if w.chunk == number}
        for item in _read(book, number, {file for file, _ in wanted}, root):
            one = wanted.get((item.file, item.index))
            if one is None or isinstance(item, Failure):
                continue
            structure = with_charge_spin(item, parameters.charge, parameters.spin)
            if structure.content_id == one.content_sha256:
                found[one] = structure
    missing = [w for w in chosen if w not in found]
    if missing:
        raise UsageError(
            f"{missing[0].file} is gone, or is not what it was when it was screened.", "Screen the present files again."
        )
    return tuple(found[w] for w in chosen)


def _read(book: ChunkBook, number: int, files: set[str], root: Path) -> tuple[Structure | Failure, ...]:
    body = book.chunk(number)
    if body is None:
        return ()
    chunk = Chunk.from_json(body)
    pieces = tuple(p for p in chunk.pieces if p.name in files and Path(p.path).is_relative_to(root.resolve()))
    return read_chunk(replace(chunk, pieces=pieces), Limits(), shared_pool()).items


def send(viewer: runs.Viewer, run: runs.Run, chosen: Sequence[Which]) -> runs.Run:
    """A scoring run of these structures with the model of the screening: their atoms in detail, and what other pages take over."""
    if not chosen:
        raise UsageError("No structure is selected.", "Select rows of the table.")
    if len(chosen) > MOST_CHOSEN:
        raise UsageError(f"{len(chosen):,} structures are too many at once.", f"Select up to {MOST_CHOSEN}.")
    read = structures(run, chosen)
    assert run.spec.model is not None
    title = read[0].file if len(read) == 1 else f"{len(read)} of {run.title}"
    return runs.submit_score(viewer, read, run.spec.model, title=title)


# ---- files ---------------------------------------------------------------------------------------------------------

Table = Literal["parquet", "csv"]
_FILES: Mapping[Table, str] = {"parquet": TABLE_PARQUET, "csv": TABLE_CSV}


def table_bytes(run: runs.Run, kind: Table) -> bytes:
    """The table, also of what is done of a screening that goes on. Raises StoreError."""
    place = folder_of(run) / _FILES[kind]
    if place.is_file() and _book(run).count().complete:
        return place.read_bytes()
    results = _results(run)
    with tempfile.TemporaryDirectory() as folder:
        put_together(tables(_book(run), results), Path(folder))
        return (Path(folder) / _FILES[kind]).read_bytes()


def held_bytes(run: runs.Run) -> int:
    """What the parts hold: about the size of the Parquet file."""
    return sum(p.stat().st_size for p in listed(run).parts.values() if p.is_file())


def summary(run: runs.Run) -> dict[str, Any]:
    """The document of summary.json, also of what is done of a screening that goes on."""
    folder = folder_of(run)
    with contextlib.suppress(OSError, ValueError):
        if _book(run).count().complete:
            return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        # Not there before the first hand has begun.
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return summary_of(_book(run), settings, {"hands": int(run.spec.parameters.get("hands", 1))})


def summary_json(run: runs.Run) -> str:
    return json.dumps(summary(run), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def command_line(run: runs.Run, most_files: int = 8) -> str:
    """The command that repeats it."""
    p, model = ScreenParameters.of(run.spec), run.spec.model
    paths = [p.folder] if p.folder else list(p.source)
    words = ["fdcore", "screen", *map(services.as_argument, paths[:most_files])]
    words += ["..."] if len(paths) > most_files else []
    if model is not None:
        words += ["--model", model.id]
        words += ["--dtype", model.dtype] if model.dtype != "float32" else []
    default = ScreenParameters.__dataclass_fields__
    for flag, name in (("--charge", "charge"), ("--spin", "spin"), ("--chunk", "chunk"), ("--check", "check_share")):
        value = getattr(p, name)
        words += (
            [flag, f"{value:g}" if isinstance(value, float) else str(value)] if value != default[name].default else []
        )
    return shlex.join(words)
