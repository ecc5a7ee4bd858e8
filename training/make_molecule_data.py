"""Frames of molecules labelled by GFN2-xTB: every molecule relaxed, then rattled and run in short MD.

    python training/make_molecule_data.py --out training/work/molecules --seed 0

Writes the files that make_data.py writes for crystals: train.extxyz, and `inside`, `band` and `structures` held out. Needs the
extra `training` (pip install -e .[training]).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorError
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS
from molecules import MOLECULES, Molecule, water_box
from recipes import MOLECULES as RECIPE
from tblite.ase import TBLite
from tqdm import tqdm

MD_TEMPERATURES_K = (300.0, 600.0, 900.0)
MD_SHARE = 0.25
MD_STEP_FS = 0.5
MD_STEPS_BETWEEN = 16
HELD_OUT_FRAMES = {"inside": 3, "band": 2}
# Large molecules, and the water, have more frames in training, and as much more held out.
HELD_OUT_SHARE = 0.2


def teacher() -> TBLite:
    return TBLite(method="GFN2-xTB", verbosity=0)


def relax(atoms: Atoms) -> Atoms:
    """The teacher's minimum, or as far as the steps lead: frames are displaced from it anyway."""
    run = atoms.copy()
    run.calc = teacher()
    LBFGS(run, logfile=None).run(fmax=0.05, steps=60)
    return Atoms(run.symbols, positions=run.positions)


def rattled(atoms: Atoms, rng: np.random.Generator, band: bool) -> Atoms:
    """Displaced by a Gaussian whose sigma (Å) is drawn as the recipe says."""
    out = atoms.copy()
    sigma = RECIPE.draw_sigma(rng, inside_band=band)
    out.positions += rng.normal(0.0, sigma, out.positions.shape)
    out.info["sigma_A"] = sigma
    return out


def md_frames(atoms: Atoms, count: int, temperature: float, rng: np.random.Generator) -> Iterator[Atoms]:
    """Frames 8 fs apart of one Langevin run."""
    run = atoms.copy()
    run.calc = teacher()
    MaxwellBoltzmannDistribution(run, temperature_K=2 * temperature, rng=rng)
    dynamics = Langevin(run, MD_STEP_FS * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=rng)
    for _ in range(count):
        dynamics.run(MD_STEPS_BETWEEN)
        frame = Atoms(run.symbols, positions=run.positions)
        frame.info["temperature_K"] = temperature
        yield frame


def label(frames: list[Atoms]) -> list[Atoms]:
    """Frames with the teacher's energy and forces, without those whose largest force exceeds the cap and those for which the
    teacher finds no answer (its charges do not converge when bonds are torn)."""
    out = []
    for atoms in frames:
        run = atoms.copy()
        run.calc = teacher()
        try:
            energy, forces_reference = run.get_potential_energy(), run.get_forces()
        except (CalculatorError, RuntimeError):
            continue
        if not np.isfinite(forces_reference).all() or np.linalg.norm(forces_reference, axis=1).max() > RECIPE.force_cap:
            continue
        atoms.info["energy_eV"] = float(energy)
        atoms.new_array("forces_reference", np.asarray(forces_reference, dtype=float))
        out.append(atoms)
    return out


def frames_of(
    molecule: Molecule, starts: list[Atoms], count: int, md_count: int, rng: np.random.Generator, band: bool = False
) -> list[Atoms]:
    """`count` rattled and `md_count` MD frames, the starting geometries in turn, with their provenance in `info`."""
    out = [rattled(starts[k % len(starts)], rng, band) for k in range(count)]
    # At most four frames per run: the next run starts elsewhere, at another temperature.
    for run, first in enumerate(range(0, md_count, 4)):
        temperature = MD_TEMPERATURES_K[int(rng.integers(len(MD_TEMPERATURES_K)))]
        out += md_frames(starts[run % len(starts)], min(4, md_count - first), temperature, rng)
    for frame in out:
        frame.info.update(prototype=molecule.name, family=molecule.family)
    return label(out)


def made(index: int, seed: int, scale: float) -> dict[str, list[Atoms]]:
    """Everything that is made of the molecule at this place of the list, by set; `minima` is its first relaxed geometry."""
    molecule, rng = MOLECULES[index], np.random.default_rng((seed, index))
    starts = [molecule.make(k) for k in range(molecule.conformers)]
    if molecule.relaxed:
        starts = [relax(a) for a in starts]
    still = [a.copy() for a in starts if molecule.relaxed]
    for a in still:
        a.info.update(prototype=molecule.name, family=molecule.family, sigma_A=0.0)
    count = max(1, round(molecule.frames * scale))
    md_count = round(MD_SHARE * count)
    frames = frames_of(molecule, starts, count - md_count, md_count, rng)
    if molecule.held_out:
        return {"minima": still[:1], "structures": frames}
    inside = max(HELD_OUT_FRAMES["inside"], round(HELD_OUT_SHARE * count))
    band = max(HELD_OUT_FRAMES["band"], round(HELD_OUT_SHARE * count / 2))
    return {
        "minima": still[:1],
        "train": label(still) + frames,
        "inside": frames_of(molecule, starts, inside, max(1, inside // 3), rng),
        "band": frames_of(molecule, starts, band, 0, rng, band=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("training/work/molecules"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="fewer frames for a trial")
    parser.add_argument("--workers", type=int, default=2, help="processes; set OMP_NUM_THREADS=1")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # Before the workers are forked: they share it.
    ase.io.write(arguments.out / "water_box.extxyz", water_box(), format="extxyz")
    sets: dict[str, list[Atoms]] = {"train": [], "inside": [], "band": [], "structures": [], "minima": []}
    with multiprocessing.get_context("fork").Pool(arguments.workers) as pool:
        work = partial(made, seed=arguments.seed, scale=arguments.scale)
        for part in tqdm(pool.imap(work, range(len(MOLECULES))), desc="molecules", total=len(MOLECULES)):
            for name, frames in part.items():
                sets[name] += frames
    for name, frames in sets.items():
        ase.io.write(arguments.out / f"{name}.extxyz", frames, format="extxyz")
        print(f"{name}: {len(frames)} frames, {sum(map(len, frames))} atoms")


if __name__ == "__main__":
    main()
