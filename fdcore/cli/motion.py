"""`fdcore md`, `fdcore relax`, `fdcore mts-advisor`: the tasks that the engine runs, in this process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from fdcore import export, motion, motion_files, mts_advice, services
from fdcore.cli.local import carry_out, record
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    model_for,
    named_model,
    print_failures,
    read_structures,
    require_writable,
    write,
)
from fdcore.errors import UsageError
from fdcore.human import plus_minus
from fdcore.records import Structure
from fdcore.services import dynamics, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.statistics import Slope
from fdcore.tasks import task as task_of
from fdcore.tasks.run import Outcome


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    task = arguments.task
    places = [name for name in ("json", "csv", "extxyz") if getattr(arguments, name, None) == "-"]
    if len(places) > 1:
        raise UsageError(
            "Only one of --json, --csv and --extxyz can write to standard output.", "Give the others a path."
        )
    for name in ("json", "csv", "extxyz", "record"):
        require_writable(getattr(arguments, name, None))
    named = named_model(arguments)
    parsed = read_structures(arguments.files)
    complete = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    card = model_for(arguments, named, complete)
    structures, refused = dynamics.movable(card, complete)
    failures = [*parsed.failures, *refused]
    if not structures:
        write(arguments.json, lambda: export.scores_json([], failures, card.id), results)
        print_failures(failures)
        return EXIT_PARTLY
    model = ModelChoice(card.id, arguments.dtype, arguments.device)
    spec = runs.spec_of(task, structures, model, _parameters(task, arguments, structures), seed=arguments.seed)
    task_of(spec.task).check(spec)
    loaded: list[Any] = []

    def load(_: Spec) -> Any:
        loaded.append(services.load_model(card.id, arguments.device, arguments.dtype, arguments.weights))
        return loaded[0]

    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, structures, load, folder, previous)
        if loaded:
            # A local checkpoint has a hash of its own.
            found = motion.read(folder, spec, structures, outcome.summary)
            provenance = {**services.settings(loaded[0]), "seed": arguments.seed, "spec_sha256": spec.sha256}
            write(arguments.json, lambda: motion_files.document_json(found, folder, failures, provenance), results)
            table = motion_files.relaxation_csv if task == "relax" else motion_files.series_csv
            write(arguments.csv, lambda: table(found), results)
            if getattr(arguments, "extxyz", None) is not None:
                write(arguments.extxyz, lambda: motion_files.trajectory_extxyz(found, folder), results)
            if not places:
                _print(found, results)
        print_failures(failures)
        _say(outcome, arguments.record)
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or outcome.state == "failed" else EXIT_OK


def _parameters(task: str, arguments: argparse.Namespace, structures: Sequence[Structure]) -> dict[str, Any]:
    """The preset's parameters, and over them what the options say."""
    given, asked = {}, set()
    if getattr(arguments, "preset", None) is not None:
        given = dynamics.PRESETS[arguments.preset].parameters(structures)
    for name, flag in dynamics.flags(task).items():
        option = flag.replace("-", "_")
        if hasattr(arguments, option):
            given[name] = getattr(arguments, option)
            asked.add(name)
    return dynamics.parameters_of(task, dynamics.in_whole_rounds(given, asked))


# ---- saying --------------------------------------------------------------------------------------------------------


def _print(found: motion.Motion, out: TextIO) -> None:
    for system, descent in found.descents.items():
        columns = descent.columns
        print(
            f"{found.name_of(system)}: relaxed in {int(columns['iteration'][-1])} iterations, "
            f"{columns['energy_eV'][-1] - columns['energy_eV'][0]:+.4f} eV",
            file=out,
        )
        if descent.text:
            print(f"  {descent.text}", file=out)
    if found.spec.task == "md":
        _print_summaries(found, out)
    elif found.spec.task == "mts-advisor":
        _print_advice(found, out)
    model = found.spec.model
    print(f"\nmodel {model.id if model else ''}, seed {found.spec.seed}", file=out)


def _print_summaries(found: motion.Motion, out: TextIO) -> None:
    for system in range(len(found.systems)):
        for leg in range(len(found.legs)):
            s = motion.summary(found, leg, system)
            print(
                f"\n{found.name_of(system)}: {s.name}, {s.ensemble.upper()} driven by {s.driver}, {s.time_ps:.4g} ps",
                file=out,
            )
            if s.drift is None:
                continue
            print(f"  drift        {_slope(s.drift)} meV/atom/ps  ({_slope(s.drift_K_per_ps)} K/ps)", file=out)
            if s.drift_over_fluctuation_per_ps is not None:
                print(
                    f"               {s.drift_over_fluctuation_per_ps:.3g} fluctuations of the kinetic energy per ps",
                    file=out,
                )
            elements = ", ".join(f"{e} {t:.0f}" for e, t in s.temperature_by_element_K.items())
            print(
                f"  temperature  {s.temperature_K:.1f} K, fluctuating by {s.temperature_fluctuation_K:.1f} K  ({elements})",
                file=out,
            )
            if s.force_delta_mean is not None:
                print(
                    f"  U_Delta      {s.force_delta_mean:.4g} eV/Å on average, {s.force_delta_max:.4g} at most",
                    file=out,
                )
            if s.steps_per_second is not None:
                print(f"  speed        {s.steps_per_second:.1f} steps/s", file=out)
            if s.stopped_text:
                print(f"  ended after {s.steps_done} of {s.steps_asked} steps: {s.stopped_text}", file=out)


def _print_advice(found: motion.Motion, out: TextIO) -> None:
    advice = mts_advice.advice(found)
    print(f"\n{'driver':<14}{'drift meV/atom/ps':>24}{'T - T_c (K)':>14}{'ns/day':>10}{'cost':>8}", file=out)
    for arm in advice.arms:
        hot = "" if arm.temperature_error_K is None else f"{arm.temperature_error_K:+.1f}"
        fast = "" if arm.ns_per_day is None else f"{arm.ns_per_day:.3g}"
        cost = "" if arm.cost_of_direct is None else f"{arm.cost_of_direct:.2f}"
        print(f"{arm.name:<14}{_slope(arm.drift):>24}{hot:>14}{fast:>10}{cost:>8}", file=out)
    print(f"\n{advice.text}", file=out)


def _slope(slope: Slope | None) -> str:
    if slope is None:
        return "–"
    return plus_minus(slope.slope, slope.half_width)


def _say(outcome: Outcome, out: str | None) -> None:
    if outcome.note:
        print(f"fdcore: {outcome.note}", file=sys.stderr)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        way = "the same command goes on from here" if out else "with --record FOLDER it could be gone on with"
        print(f"fdcore: stopped; what was computed is kept, {way}", file=sys.stderr)
