"""One file's bytes to validated structures: what the child process does with each request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, Structure
from fdcore.structures.ase_database import MAGIC, read_database
from fdcore.structures.checks import validate
from fdcore.structures.detect import CHOICES, Format, detect, format_of_name, refuse_binary
from fdcore.structures.limits import Limits, Source
from fdcore.structures.text import clean_name, decode

_FORMATS: dict[str, Format] = {
    "cif": "cif",
    "poscar": "poscar",
    "contcar": "poscar",
    "vasp": "poscar",
    "xyz": "xyz",
    "extxyz": "xyz",
    "vasprun": "vasprun",
    "outcar": "outcar",
    "json": "json",
    "jsonl": "jsonl",
}
_WORDS: dict[Format, str] = {
    "cif": "a CIF",
    "poscar": "a POSCAR",
    "xyz": "xyz",
    "vasprun": "a vasprun.xml",
    "outcar": "an OUTCAR",
    "json": "JSON",
    "jsonl": "lines of JSON",
}


def read_source(source: Source, limits: Limits) -> tuple[list[Structure], list[Failure]]:
    """All structures of one source, validated, and what could not be read. Never raises for what is in the file."""
    name = clean_name(source.name)
    structures: list[Structure] = []
    failures: list[Failure] = []
    left_out = atoms = 0
    try:
        for item in _quietly(_frames(source, limits)):
            if isinstance(item, Structure):
                atoms += item.n_atoms
                if atoms > limits.max_total_atoms:
                    raise LimitError(
                        f"More than {limits.max_total_atoms:,} atoms in all frames together; the rest was left out.",
                        "Bring fewer frames at a time.",
                    )
            item = checked(item, name, limits)
            if isinstance(item, Structure):
                structures.append(item)
            elif len(failures) < limits.max_failures:
                failures.append(item)
            else:
                left_out += 1
        if not structures and not failures and source.first is None:
            raise FormatError("The file holds no structure.", "Save it again with its atoms.")
    except StructureError as error:
        # The frames before it stay; where there are none, it is the file that failed.
        done = len(structures) + len(failures) + left_out
        index = done + (source.first or 0) if done else source.first
        failures.append(Failure(name, error.message, error.hint, index))
    except MemoryError:
        structures.clear()
        error = "Reading the file takes more memory than is allowed."
        failures = [Failure(name, error, "Split the file.", source.first)]
    except Exception as error:
        failures.append(
            Failure(
                name,
                f"The file could not be read ({type(error).__name__}).",
                f"Save it again as CIF or extxyz. {CHOICES}",
                source.first,
            )
        )
    if not structures and len(failures) == 1 and source.first is None:
        # A file of one structure that failed: it is the file that failed.
        failures = [replace(failures[0], index=None)]
    if left_out:
        failures.append(
            Failure(name, f"{left_out:,} more frames could not be read.", "See the first ones for the reasons.")
        )
    return structures, failures


def checked(item: Structure | Failure, name: str, limits: Limits) -> Structure | Failure:
    """What a reader gave, validated and with the name of its file."""
    if isinstance(item, Failure):
        return replace(item, file=name)
    try:
        return replace(validate(item, limits), file=name)
    except StructureError as error:
        return Failure(name, error.message, error.hint, item.index)


def _quietly(items: Iterator[Structure | Failure]) -> Iterator[Structure | Failure]:
    """Without NumPy's warnings: absurd numbers are for the validation to refuse, not for the log."""
    with np.errstate(all="ignore"):
        yield from items


def _frames(source: Source, limits: Limits) -> Iterator[Structure | Failure]:
    if len(source.data) > limits.max_bytes:
        raise LimitError(
            f"The file has {len(source.data) / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:g} MB are read.",
            "Split it, or bring fewer frames.",
        )
    if source.data.startswith(MAGIC):
        yield from read_database(source.data, limits)
        return
    refuse_binary(source.data, source.name)
    text = decode(source.data)
    wanted = (source.format or "").strip().lower()
    if wanted in ("", "auto"):
        form = detect(text, source.name)
    elif wanted in _FORMATS:
        form = _FORMATS[wanted]
    else:
        raise FormatError(f"The format {wanted[:20]!r} is not read here.", CHOICES)
    spoken = format_of_name(source.name)
    warning = (
        (f"the name speaks of {_WORDS[spoken]}, but the content is {_WORDS[form]}",)
        if spoken and spoken != form
        else ()
    )
    for item in _read(form, text, limits, source.first):
        yield replace(item, warnings=(*item.warnings, *warning)) if warning and isinstance(item, Structure) else item


def _read(form: Format, text: str, limits: Limits, first: int | None) -> Iterator[Structure | Failure]:
    if form == "xyz":
        from fdcore.structures.xyz import read_xyz

        yield from read_xyz(text, limits, first)
    elif form in ("json", "jsonl"):
        from fdcore.structures.json_text import read_json, read_jsonl

        yield from read_json(text, limits) if form == "json" else read_jsonl(text, limits, first or 0)
    elif form == "poscar":
        from fdcore.structures.poscar import read_poscar

        yield read_poscar(text, limits)
    elif form == "vasprun":
        from fdcore.structures.vasprun import read_vasprun

        yield from read_vasprun(text, limits)
    elif form == "outcar":
        from fdcore.structures.outcar import read_outcar

        yield from read_outcar(text, limits)
    else:
        from fdcore.structures.cif import read_cif

        yield from read_cif(text, limits)
