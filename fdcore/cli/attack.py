"""`fdcore attack`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import adversarial, adversarial_files, services, validation_words
from fdcore import reference as references
from fdcore import validation as truths
from fdcore.adversarial import Adversarial
from fdcore.cli.local import Loaded, carry_out, record, say
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    by_reason,
    model_for,
    named_model,
    print_failures,
    read_structures,
    require_writable,
    write,
)
from fdcore.errors import UsageError
from fdcore.export import failure_row
from fdcore.human import three_digits
from fdcore.records import Failure, ModelCard
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from fdcore.spec import ModelChoice
from fdcore.tasks.validate import LABELS
from fdcore.validation import Compared

# Where the comparison with a reference is recorded, beside the attack.
BESIDE = "-reference"
TEXTS = ("json", "csv", "out", "cif", "parents")
BINARIES = ("db", "zip")
# What holds the dataset and nothing else.
DATASETS = ("out", "csv", "cif", "db", "vasp")


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore attack`."""
    if arguments.labels is not None and arguments.reference is not None:
        raise UsageError("--labels and --reference both say what the truth is.", "Give one of them.")
    named = _begin(arguments, (*TEXTS, *BINARIES, "record"))
    reference = _reference(arguments.reference)
    if arguments.vasp is not None and Path(arguments.vasp).exists():
        raise UsageError(f"{arguments.vasp} exists already.", "Name a new folder for --vasp.")
    labelled = None if arguments.labels is None else read_structures([arguments.labels])
    parsed = read_structures(arguments.files)
    complete = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    card = model_for(arguments, named, complete)
    structures, refused = attacks.attackable(card, complete, getattr(arguments, "strain", False))
    failures = [*parsed.failures, *refused, *(() if labelled is None else labelled.failures)]
    if not structures:
        write(arguments.json, lambda: _nothing(failures), results)
        print_failures(failures)
        _say_unwritten(arguments, DATASETS)
        return EXIT_PARTLY
    model = ModelChoice(card.id, arguments.dtype, arguments.device)
    spec = runs.spec_of("attack", structures, model, _parameters(arguments), seed=arguments.seed)
    loaded = Loaded(card, arguments)
    compared: list[Compared] = []
    name = ""
    unwritten: list[str] = []
    missed: list[Failure] = []
    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, structures, loaded, folder, previous)
        found = adversarial.read(folder, spec, structures, outcome.summary)
        failures += _left_out(arguments, found)
        settings: dict[str, Any] = {}
        if loaded.model is not None:
            settings = {**services.settings(loaded.model), "seed": arguments.seed, "spec_sha256": spec.sha256}
            # Whatever becomes of a comparison: what was made is there.
            unwritten = _write(arguments, found, failures, settings, (), "", None)
            _write_vasp(arguments, found)
        if outcome.state == "done" and (reference or labelled is not None):
            pairs = attacks.labelled(found, labelled.structures) if labelled is not None else []
            wanted, climbs = [s for s, _ in pairs], [int(found.steps["start"][row]) for _, row in pairs]
            name = LABELS if labelled is not None else reference
            if labelled is not None and not wanted:
                failures.append(
                    Failure(
                        str(arguments.labels),
                        "None of its frames is a labelled structure of this attack.",
                        "Repeat the attack with the options that made them, and keep elements in the same order.",
                    )
                )
            elif labelled is None:
                wanted, climbs = attacks.to_compare(found)
            if wanted:
                beside = None if arguments.record is None else f"{arguments.record.rstrip('/')}{BESIDE}"
                second = runs.spec_of("validate", wanted, model, {"reference": name, "climbs": climbs})
                with record(beside, second) as (there, earlier):
                    outcome = carry_out(second, wanted, loaded, there, earlier, unit="structure")
                    compared, missed = truths.read(there, second, wanted)
        if loaded.model is not None:
            _write(arguments, found, [*failures, *missed], settings, compared, _called(name), results)
            if not any(getattr(arguments, place) == "-" for place in TEXTS):
                _print(found, compared, _called(name), results)
        print_failures([*failures, *by_reason(missed)])
        _say_unwritten(arguments, unwritten)
        say(outcome, arguments.record, found.n_steps)
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or missed or unwritten or outcome.state == "failed" else EXIT_OK


# ---- what was asked ------------------------------------------------------------------------------------------------


def _begin(arguments: argparse.Namespace, places: Sequence[str]) -> ModelCard | None:
    """The card of the model that was named; UsageError for what cannot work, before anything is read."""
    if sum(getattr(arguments, place) == "-" for place in places) > 1:
        raise UsageError("Only one document can be written to standard output.", "Give the others a path.")
    for place in places:
        path = getattr(arguments, place)
        if path == "-" and place in (*BINARIES, "record"):
            raise UsageError(f"--{place} needs a path, not standard output.")
        require_writable(path)
    return named_model(arguments)


def _reference(name: str | None) -> str:
    """Known by its name or registered now, so that a mistake in it is known before an hour of computing."""
    return "" if name is None else references.register(name).id


def _called(name: str) -> str:
    if name in ("", LABELS):
        return "the labels" if name else ""
    return references.REFERENCES[name].title


def _parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {}
    for name, flag in attacks.flags().items():
        option = flag.replace("-", "_")
        if hasattr(arguments, option):
            given[name] = getattr(arguments, option)
    return attacks.parameters_of(given)


# ---- what was found ------------------------------------------------------------------------------------------------


def _write(
    arguments: argparse.Namespace,
    found: Adversarial,
    failures: Sequence[Failure],
    settings: dict[str, Any],
    compared: Sequence[Compared],
    reference: str,
    results: TextIO | None,
) -> list[str]:
    """Every document that was asked for; without `results` not the one for standard output. Returns the options of those that there is
    nothing to write to: an empty file is no dataset."""
    known = truths.by_content(compared)
    items = adversarial.dataset(found)
    empty = [] if items else [place for place in DATASETS if getattr(arguments, place) is not None]
    if items and not any(item.structure.periodic for item in items):
        empty = [place for place in ("cif", "vasp") if getattr(arguments, place) is not None]
    texts = {
        "json": lambda: adversarial_files.document_json(found, failures, settings, compared, reference),
        "csv": lambda: adversarial_files.dataset_csv(found, known),
        "out": lambda: adversarial_files.dataset_extxyz(found, known),
        "parents": lambda: adversarial_files.parents_extxyz(found, known),
        "cif": lambda: adversarial_files.dataset_cif(found),
    }
    for place, text in texts.items():
        path = getattr(arguments, place)
        if path is not None and place not in empty and (path != "-" or results is not None):
            write(path, text, results or sys.stdout)
    if arguments.db is not None and "db" not in empty:
        Path(arguments.db).write_bytes(adversarial_files.dataset_db(found, known))
    if arguments.zip is not None:
        content = adversarial_files.dataset_zip(found, settings, compared, reference, arguments.dft_set)
        Path(arguments.zip).write_bytes(content)
    return empty


def _write_vasp(arguments: argparse.Namespace, found: Adversarial) -> None:
    """A folder for each crystal of the dataset."""
    if arguments.vasp is not None:
        for item in (i for i in adversarial.dataset(found) if i.structure.periodic):
            folder = Path(arguments.vasp) / adversarial_files.identity(item)
            files = adversarial_files.vasp_folder(item.structure, arguments.dft_set)
            folder.mkdir(parents=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")


def _left_out(arguments: argparse.Namespace, found: Adversarial) -> list[Failure]:
    """Molecules of the dataset, where files are wanted that only hold crystals; one failure per given structure."""
    wanted = [f"--{place}" for place in ("cif", "vasp", "zip") if getattr(arguments, place) is not None]
    molecules = [i.parent for i in adversarial.dataset(found) if not i.structure.periodic]
    if not wanted:
        return []
    return [
        Failure(
            found.structures[parent].file,
            f"{found.structures[parent].formula} is a molecule: left out of the CIF and VASP inputs of {', '.join(wanted)} "
            f"({molecules.count(parent)} of the dataset).",
            "Use the extended xyz.",
            found.structures[parent].index,
        )
        for parent in dict.fromkeys(molecules)
    ]


def _say_unwritten(arguments: argparse.Namespace, places: Sequence[str]) -> None:
    wanted = [f"--{place}" for place in places if getattr(arguments, place) is not None]
    if wanted:
        print(f"fdcore: no structure for it was made, so nothing was written for {', '.join(wanted)}", file=sys.stderr)


def _nothing(failures: Sequence[Failure]) -> str:
    document = {"results": [], "errors": [failure_row(f) for f in failures]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _print(found: Adversarial, compared: Sequence[Compared], reference: str, out: TextIO) -> None:
    for origin in found.origins.values():
        print(
            f"{found.name_of(origin.parent)}: {origin.structure.formula}, U_Delta {origin.force_delta:.4g} eV/Å",
            file=out,
        )
        if origin.problem:
            print(f"  not attacked: {origin.problem}", file=out)
    rattled = {c.rattled for c in found.climbs if "symmetry" in c.rattled}
    for why in rattled:
        print(f"  displaced at random by {max(found.parameters.rattle_A, 0.01):g} Å: {why}", file=out)
    ends = ", ".join(f"{adversarial.ENDINGS[k]} {n}" for k, n in found.endings.items())
    by = f"{len(found.climbs)} starts" + (f" ({ends})" if ends else "")
    print(f"\n{found.n_steps} structures visited by {by}", file=out)
    items = adversarial.dataset(found)
    if items:
        print(f"\n{'structure':<18}{'U_Delta':>9}{'times':>8}{'eV/atom above':>15}{'closest':>9}{'from':>6}", file=out)
    for item in items:
        print(
            f"{adversarial_files.identity(item):<18}{item.force_delta:>9.3f}{three_digits(item.rise):>8}{item.above_eV_per_atom:>15.3f}"
            f"{item.closest_share:>9.2f}  {found.name_of(item.parent)}",
            file=out,
        )
    print(f"\n{adversarial.sentence(found)}", file=out)
    if adversarial.shortage(found):
        print(adversarial.shortage(found), file=out)
    for sentence in adversarial.without(found):
        print(sentence, file=out)
    if compared:
        _print_bands(compared, reference, out)
    model = found.spec.model
    print(f"\nmodel {model.id if model else ''}, seed {found.spec.seed}", file=out)


def _print_bands(compared: Sequence[Compared], reference: str, out: TextIO) -> None:
    bands = truths.bands(compared)
    print(f"\n{validation_words.sentence(bands, reference)}", file=out)
    if not bands or bands[0].conservative.r_s is None or bands[0].direct.r_s is None:
        # No correlation to show: the structures themselves.
        for c in compared:
            print(
                f"{c.structure.file}, {c.structure.formula}: U_Delta {c.force_delta:.4g} eV/Å; error of F_nc {c.error_direct:.4g}, of F_c "
                f"{c.error_conservative:.4g} eV/Å",
                file=out,
            )
        return
    print(f"\n{'U_Delta (eV/Å)':<34}{'n':>5}{'r_s with eps_c':>26}{'r_s with eps_nc':>26}", file=out)
    for band in bands:
        label = f"{band.name}, {band.low:.3g} to {band.high:.3g}"
        print(f"{label:<34}{band.conservative.n:>5}{band.conservative.text:>26}{band.direct.text:>26}", file=out)
    print(validation_words.interval_text(bands), file=out)
