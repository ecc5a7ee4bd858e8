"""What an adversarial step costs, and what an attack finds: with the embedded model, from relaxed Mg17Al12, LGPS and ice.

    python benchmarks/attack.py [--json PATH] [--rounds N] [--device cpu] [--starts N] [--count N] [--reference chgnet] [--skip-found]

Cost, of a batch of `--starts` displaced copies, each including its neighbour graph:
  direct      F_nc alone, no gradient: what direct MD pays, in batches as `Model.evaluate` makes them
  step        grad U_Delta and grad E as an attack makes them by default (one-sided), in batches as it makes them, and the guards
  exact       the same by double backward
  low memory  the same by the central difference of the low-memory fallback
Every round runs all quantities in turn; ratios are medians over rounds of the ratio within the round. Peak memory is measured in a
process of its own per quantity.

Found: `--count` deduplicated structures spread over U_Delta (the plan asks for 100), how far above its start U_Delta lies, what that
costs in energy, and the closest pair. With `--reference` also how well U_Delta ranks the error of F_c, pooled and per third.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import numpy as np
from measuring import fresh_process, machine, print_peak_MB, ratio_text, spread, told

from fdcore import adversarial, delta, services, validation
from fdcore import reference as references
from fdcore.attack.guards import closest_pair
from fdcore.attack.settings import Attack
from fdcore.models.base import GradientMethod
from fdcore.models.orb import OrbModel
from fdcore.records import Structure
from fdcore.services import runs
from fdcore.spec import ModelChoice
from fdcore.tasks.run import execute
from fdcore.validation import Compared

QUANTITIES = ("direct", "step", "exact", "low memory")
SYSTEMS = ("Mg17Al12", "LGPS", "ice_XI")
# To reach, from the project's plan.
TARGETS = {
    "step / direct": ("<=", 5.0),
    "structures": (">=", 1.0),
    "least rise": (">=", 5.0),
    "most energy (eV/atom)": ("<", 0.5),
    "closest share": (">=", 0.7),
    "r_s, pooled": (">=", 0.9),
}


def example(name: str) -> tuple[Structure, ...]:
    found = next(e for e in services.examples() if e.id == name)
    return services.read_sources([services.example_source(found)]).structures


def copies(name: str, starts: int) -> list[Structure]:
    """Displaced by 0.05 Å per component."""
    [structure] = example(name)
    rng = np.random.default_rng(0)
    return [
        replace(structure, positions=structure.positions + rng.normal(0, 0.05, structure.positions.shape))
        for _ in range(starts)
    ]


def load(device: str) -> OrbModel:
    return services.load_model(device=device)  # type: ignore[return-value]


# ---- cost ----------------------------------------------------------------------------------------------------------


def quantity(name: str, model: OrbModel, structures: list[Structure]) -> Callable[[], object]:
    """A function of no arguments that computes the quantity once for all structures."""

    def direct() -> object:
        out = None
        # The same division as that of the gradients would be slower; it gets the larger batches that suit it.
        for batch in model._divided(structures, model.batch_edges):
            out = model.two_forces(model.graphs([s for s in batch if isinstance(s, Structure)]), conservative=False)
        return out

    def step(method: GradientMethod) -> object:
        return list(model.gradients_each(structures, method=method)), [closest_pair(s) for s in structures]

    chosen = {
        "direct": direct,
        "step": lambda: step(Attack.gradient),
        "exact": lambda: step("double-backward"),
        "low memory": lambda: step("finite-difference"),
    }[name]

    def run() -> object:
        out = chosen()
        if model.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return out

    return run


def measure(name: str, model: OrbModel, rounds: int, starts: int) -> dict[str, Any]:
    structures = copies(name, starts)
    calls = {q: quantity(q, model, structures) for q in QUANTITIES}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {q: [] for q in QUANTITIES}
    for _ in range(rounds):
        for q, call in calls.items():
            # Of the processor where it computes, so that other programs do not count; a GPU works beside it.
            clock = time.perf_counter if model.device.startswith("cuda") else time.process_time
            started = clock()
            call()
            seconds[q].append(clock() - started)
    return {
        "system": name,
        "atoms": structures[0].n_atoms,
        "starts": starts,
        "seconds": {q: statistics.median(v) / starts for q, v in seconds.items()},
        "ratios": {f"{q} / direct": spread(seconds[q], seconds["direct"]) for q in QUANTITIES[1:]},
    }


def report_memory(name: str, quantity_name: str, device: str, starts: int) -> None:
    model = load(device)
    quantity(quantity_name, model, copies("NaCl", 1))()
    print_peak_MB(quantity(quantity_name, model, copies(name, starts)), device)


# ---- what is found -------------------------------------------------------------------------------------------------


def attack(name: str, model: OrbModel, count: int, reference: str) -> tuple[dict[str, Any], list[Compared]]:
    """Relax, climb, choose; and hold the dataset and its start against the reference."""
    structures = example(name)
    choice = ModelChoice(model.card.id, model.dtype, model.device)
    spec = runs.spec_of("attack", structures, choice, {"count": count, "spread": True})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcome = execute(spec, structures, lambda _: model, Path(folder) / "1")
        seconds = time.perf_counter() - started
        if outcome.state != "done":
            raise SystemExit(f"{name}: {outcome.error}")
        found = adversarial.read(Path(folder) / "1", spec, structures, outcome.summary)
        items = adversarial.dataset(found)
    result = {
        "system": name,
        "seconds": seconds,
        "visited": found.n_steps,
        "structures": len(items),
        "asked": count,
        "origin_force_delta_eV_per_A": found.origins[0].force_delta,
        "least rise": min(i.rise for i in items),
        "highest rise": max(i.rise for i in items),
        "most energy (eV/atom)": max(i.above_eV_per_atom for i in items),
        "closest share": min(i.closest_share for i in items),
        "endings": found.endings,
    }
    compared: list[Compared] = []
    if reference:
        against = [(found.origins[0].structure, -1), *((i.structure, i.start) for i in items)]
        given = [s for s, _ in against]
        answers = references.truths(references.reference(reference), given)
        for k, ((structure, start), seen, answer) in enumerate(
            zip(against, model.evaluate(given), answers, strict=True)
        ):
            if isinstance(answer, references.Truth):
                compared.append(
                    Compared(
                        position=k,
                        structure=structure,
                        force_delta=seen.force_delta,
                        error_direct=delta.rms_difference(seen.forces_direct, answer.forces_reference),
                        error_conservative=delta.rms_difference(seen.forces_conservative, answer.forces_reference),
                        energy=seen.energy,
                        energy_reference=answer.energy,
                        forces_reference=answer.forces_reference,
                        climb=(name, start),
                    )
                )
        result["bands"] = validation.band_rows(validation.bands(compared))
    return result, compared


# ---- telling -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--reference", default="", help="chgnet, where the extra is installed")
    parser.add_argument("--skip-found", action="store_true", help="the cost only")
    parser.add_argument("--memory-of", nargs=2, metavar=("SYSTEM", "QUANTITY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        system, quantity_name = arguments.memory_of
        report_memory(system, quantity_name, arguments.device, arguments.starts)
        return 0
    model = load(arguments.device)
    document: dict[str, Any] = {"machine": machine(arguments.device), "cost": [], "found": []}
    for name in SYSTEMS:
        result = measure(name, model, arguments.rounds, arguments.starts)
        asked = ("--device", arguments.device, "--starts", str(arguments.starts))
        result["peak_MB"] = {q: fresh_process(__file__, "--memory-of", name, q, *asked) for q in QUANTITIES}
        document["cost"].append(result)
        print(f"\n{name}, {result['starts']} starts of {result['atoms']} atoms")
        for q in QUANTITIES:
            print(f"  {q:<12} {1e3 * result['seconds'][q]:9.1f} ms a start  {result['peak_MB'][q]:8.0f} MB")
        for ratio, values in result["ratios"].items():
            print(f"  {ratio:<22} {ratio_text(values, TARGETS.get(ratio))}")
    pooled: list[Compared] = []
    for name in () if arguments.skip_found else SYSTEMS:
        result, compared = attack(name, model, arguments.count, arguments.reference)
        document["found"].append(result)
        pooled += compared
        print(
            f"\n{name}: {result['visited']} visited in {result['seconds']:.0f} s, from U_Delta {result['origin_force_delta_eV_per_A']:.3g} eV/Å"
        )
        share = result["structures"] / result["asked"]
        print(f"  {'structures':<22} {result['structures']} of {result['asked']}{told(share, TARGETS['structures'])}")
        for what in ("least rise", "most energy (eV/atom)", "closest share"):
            print(f"  {what:<22} {result[what]:.3g}{told(result[what], TARGETS[what])}")
        print_bands(compared)
    if pooled:
        found = validation.bands(pooled)
        document["pooled"] = validation.band_rows(found)
        print("\nall three")
        print_bands(pooled)
        r_s = found[0].conservative.r_s
        print(f"  {'r_s, pooled':<22} {r_s:.3f}{told(r_s or 0.0, TARGETS['r_s, pooled'])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return 0


def print_bands(compared: list[Compared]) -> None:
    for band in validation.bands(compared):
        c, d = band.conservative, band.direct
        if c.r_s is not None and d.r_s is not None:
            print(
                f"  U {band.low:.3g} to {band.high:.3g} ({band.name}, n = {c.n} of {c.groups} climbs): r_s with eps_c {c.text}, "
                f"with eps_nc {d.text}"
            )


if __name__ == "__main__":
    sys.exit(main())
