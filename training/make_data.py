"""Frames labelled by CHGNet: every prototype relaxed, then rattled, strained and run in short MD.

    python training/make_data.py --out training/work --seed 0

Writes train.extxyz and one file per held-out set: `band` (prototypes of the training set, a whole band of displacements never
trained on), `structures` (prototypes never trained on), `inside` (like the training frames, other seeds). Labels: `energy_eV`
and array `forces_reference` in eV/Å. Needs the extra `training` (pip install -e .[training]).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from chgnet.model.dynamics import CHGNetCalculator, StructOptimizer
from chgnet.model.model import CHGNet
from prototypes import PROTOTYPES, Prototype
from pymatgen.io.ase import AseAtomsAdaptor
from recipes import CRYSTALS
from tqdm import tqdm

MD_TEMPERATURES_K = (300.0, 600.0, 900.0)
FRAMES = {"Mg-Al": 900, "rock salt": 850, "Li-P-S": 620, "ice": 420}
MD_SHARE = 0.12
HELD_OUT_FRAMES = {"inside": 22, "band": 12, "structures": 40}


def relax(prototype: Prototype, optimizer: StructOptimizer) -> Atoms:
    """The prototype at the teacher's minimum (positions and cell)."""
    atoms = prototype.make()
    atoms.info = {}
    start = AseAtomsAdaptor.get_structure(Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True))
    result = optimizer.relax(start, fmax=0.03, steps=200, verbose=False)
    relaxed = AseAtomsAdaptor.get_atoms(result["final_structure"])
    return Atoms(relaxed.symbols, positions=relaxed.positions, cell=relaxed.cell, pbc=True)


def rattled(atoms: Atoms, sigma: float, rng: np.random.Generator) -> Atoms:
    """Strained by up to the recipe's strain (symmetric, volume included) and displaced by a Gaussian of sigma Å."""
    out = atoms.copy()
    strain = rng.uniform(-CRYSTALS.strain, CRYSTALS.strain, (3, 3)) * (0.3 + 0.7 * np.eye(3))
    out.set_cell(out.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    out.positions += rng.normal(0.0, sigma, out.positions.shape)
    return out


def md_frames(atoms: Atoms, count: int, model: CHGNet, rng: np.random.Generator) -> Iterator[Atoms]:
    """Frames 10 steps apart from Langevin runs of 60 steps at the three temperatures in turn."""
    made = 0
    while made < count:
        temperature = MD_TEMPERATURES_K[made // 6 % len(MD_TEMPERATURES_K)]
        run = atoms.copy()
        run.calc = CHGNetCalculator(model, use_device="cpu")
        MaxwellBoltzmannDistribution(run, temperature_K=2 * temperature, rng=rng)
        step_fs = 0.7 if "H" in run.symbols else 2.0
        dynamics = Langevin(run, step_fs * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=rng)
        for _ in range(min(6, count - made)):
            dynamics.run(10)
            frame = Atoms(run.symbols, positions=run.positions, cell=run.cell, pbc=True)
            frame.info["temperature_K"] = temperature
            yield frame
            made += 1


def label(frames: list[Atoms], model: CHGNet) -> list[Atoms]:
    """Frames with the teacher's energy and forces, without those whose largest force exceeds the cap."""
    out = []
    # A batch of 8 at most: CHGNet's memory grows steeply with the number of bond angles.
    for start in tqdm(range(0, len(frames), 8), desc="label", unit="batch"):
        part = frames[start : start + 8]
        predictions = model.predict_structure([AseAtomsAdaptor.get_structure(a) for a in part], task="ef", batch_size=8)
        for atoms, prediction in zip(part, predictions, strict=True):
            forces_reference = np.asarray(prediction["f"], dtype=float)
            if (
                not np.isfinite(forces_reference).all()
                or np.linalg.norm(forces_reference, axis=1).max() > CRYSTALS.force_cap
            ):
                continue
            atoms.info["energy_eV"] = float(prediction["e"]) * len(atoms)
            atoms.new_array("forces_reference", forces_reference)
            out.append(atoms)
    return out


def frames_of(
    prototype: Prototype, relaxed: Atoms, count: int, md_count: int, model: CHGNet, rng: np.random.Generator, band: bool
) -> list[Atoms]:
    """`count` rattled and `md_count` MD frames with their provenance in `info`."""
    out = []
    for _ in range(count):
        sigma = CRYSTALS.draw_sigma(rng, inside_band=band)
        frame = rattled(relaxed, sigma, rng)
        frame.info["sigma_A"] = sigma
        out.append(frame)
    out += md_frames(relaxed, md_count, model, rng)
    for frame in out:
        frame.info.update(prototype=prototype.name, family=prototype.family)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("training/work"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="fewer frames for a trial")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    model = CHGNet.load(use_device="cpu", verbose=False)
    optimizer = StructOptimizer(model, use_device="cpu")

    sets: dict[str, list[Atoms]] = {"train": [], "inside": [], "band": [], "structures": []}
    minima = []
    for index, prototype in enumerate(tqdm(PROTOTYPES, desc="prototypes")):
        rng = np.random.default_rng((arguments.seed, index))
        relaxed = relax(prototype, optimizer)
        minimum = relaxed.copy()
        minimum.info.update(prototype=prototype.name, family=prototype.family, held_out=prototype.held_out)
        minima.append(minimum)
        if prototype.held_out:
            count = round(HELD_OUT_FRAMES["structures"] * arguments.scale)
            sets["structures"] += frames_of(prototype, relaxed, count, count // 5, model, rng, band=False)
            continue
        trained = [p for p in PROTOTYPES if p.family == prototype.family and not p.held_out]
        share = prototype.weight / sum(p.weight for p in trained)
        count = max(1, round(FRAMES[prototype.family] * share * arguments.scale))
        md_count = round(MD_SHARE * count)
        train = frames_of(prototype, relaxed, count - md_count, md_count, model, rng, band=False)
        still = relaxed.copy()
        still.info.update(prototype=prototype.name, family=prototype.family, sigma_A=0.0)
        sets["train"] += [still, *train]
        inside = round(HELD_OUT_FRAMES["inside"] * arguments.scale)
        sets["inside"] += frames_of(prototype, relaxed, inside, inside // 4, model, rng, band=False)
        band = round(HELD_OUT_FRAMES["band"] * arguments.scale)
        sets["band"] += frames_of(prototype, relaxed, band, 0, model, rng, band=True)

    ase.io.write(arguments.out / "minima.extxyz", minima, format="extxyz")
    for name, frames in sets.items():
        labelled = label(frames, model)
        ase.io.write(arguments.out / f"{name}.extxyz", labelled, format="extxyz")
        print(f"{name}: {len(labelled)} frames of {len(frames)}, {sum(map(len, labelled))} atoms")


if __name__ == "__main__":
    main()
