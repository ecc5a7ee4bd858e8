"""What is asked of a model on one structure when the question is whether it is conservative there: the settings, the loops, the lines.

Everything here follows from the structure, the settings and a seed; the task `report` asks the model, fdcore/conservativity.py has the
formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray

from fdcore import conservativity
from fdcore.dynamics.settings import Bounds, Leg, between, whole
from fdcore.errors import UsageError
from fdcore.records import Structure

Array = NDArray[np.float64]

# In this order. "forces": U_Delta, net force and torque, the confidence head; "gradient": F_c against differences of the energy; "asymmetry":
# lambda of both forces; "loops": work along closed paths; "lines": jumps of the energy; "symmetry": turned, permuted and shifted copies;
# "dynamics": drift.
PARTS = ("forces", "gradient", "asymmetry", "loops", "lines", "symmetry", "dynamics")

# Steps of the differences (Å): of a component for the Jacobian, by precision, and along a random direction, as a root mean square.
DIFFERENCE_STEP_A = {"float32": 5e-3, "float64": 1e-4}
# Directions at first, and at most: beyond, an error of lambda that is still too large is told as it is.
FEWEST_PROBES, MOST_PROBES = 6, 60
# Points of a loop at first and at most; between them they are doubled until the work has settled.
FEWEST_POINTS, MOST_POINTS = 16, 256
# When it has settled: by so much (eV) in either precision, or by this share of the work of F_nc.
SETTLED_EV = {"float32": 1e-5, "float64": 3e-7}
SETTLED_SHARE = 1e-3
# How the molecule of the second kind of loop moves: turned by so many degrees to either side, stretched by this share.
TURN_DEG, STRETCH = 20.0, 0.03
MOST_MEMBERS = 60
# Atoms within this times the sum of their covalent radii are bonded.
BOND = 1.25
COMPONENTS_CHECKED = 9
# Kinds of copies, and of loops, by the number that tables call them.
COPIES = ("rotation", "permutation", "translation")
LOOPS = ("random", "molecule")
FORCES = ("direct", "conservative")


@dataclass(frozen=True)
class Examination:
    """parts: which of PARTS. exact_atoms: up to so many atoms J is computed whole; beyond, lambda is estimated to a relative standard error of
    `precision`. loops: random circles of radius loop_radius_A (root mean square displacement of an atom), and one turn of a molecule where
    there is one. lines, line_step_A, line_points: straight walks on which jumps of the energy are looked for. copies: turned, permuted and
    shifted ones, each so many. picoseconds of NVE under either force at temperature_K, after equilibrate_ps under F_c with a thermostat.
    """

    parts: tuple[str, ...] = PARTS
    exact_atoms: int = 64
    precision: float = 0.05
    loops: int = 8
    loop_radius_A: float = 0.1
    lines: int = 4
    line_step_A: float = 0.002
    line_points: int = 51
    copies: int = 8
    picoseconds: float = 1.0
    equilibrate_ps: float = 0.2
    temperature_K: float = 300.0
    timestep_fs: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parts, str) or not all(p in PARTS for p in self.parts) or not self.parts:
            raise UsageError(f"parts are {self.parts!r}.", f"Name some of {', '.join(PARTS)}.")
        # What everything else is compared with is always there.
        object.__setattr__(self, "parts", tuple(p for p in PARTS if p in self.parts or p == "forces"))
        whole("exact-atoms", self.exact_atoms, 0, 400)
        between("precision", self.precision, 1e-3, 0.5, "")
        whole("loops", self.loops, 1, 200)
        between("loop-radius", self.loop_radius_A, 1e-4, 1.0, "Å")
        whole("lines", self.lines, 1, 200)
        between("line-step", self.line_step_A, 1e-4, 0.05, "Å")
        whole("line-points", self.line_points, 5, 2000)
        whole("copies", self.copies, 1, 200)
        between("picoseconds", self.picoseconds, 1e-3, 1e4, "ps")
        between("equilibrate", self.equilibrate_ps, 1e-3, 1e4, "ps")
        if self.timestep_fs is not None:
            between("timestep", self.timestep_fs, 1e-3, 20.0, "fs")
        self.legs(1.0)

    def legs(self, timestep_fs: float) -> tuple[Leg, Leg, Leg]:
        """Equilibration under F_c, then NVE under F_nc and under F_c from where it ended; `timestep_fs` where none is set. A hundred rows per
        picosecond."""
        step = self.timestep_fs or timestep_fs

        def leg(ps: float, name: str, **more: object) -> Leg:
            steps = max(1, math.ceil(1000 * ps / step - 1e-9))
            # U_Delta is not looked at: it costs the other force.
            shared = {"record_every": max(1, min(steps, round(10 / step))), "monitor_every": steps, "frame_every": 0}
            return Leg(steps, step, self.temperature_K, name=name, **shared, **more)  # pyright: ignore[reportArgumentType]

        return (
            leg(self.equilibrate_ps, "equilibration", ensemble="nvt", driver="conservative"),
            leg(self.picoseconds, "direct", driver="direct", start=0),
            leg(self.picoseconds, "conservative", driver="conservative", start=0),
        )

    @staticmethod
    def bounds() -> Bounds:
        """A run that has blown up says no more."""
        return Bounds(temperature_K=10_000.0, closest=0.4)

    def exact(self, structure: Structure) -> bool:
        """Whether the whole Jacobian is computed."""
        return structure.n_atoms <= self.exact_atoms

    def costs(self, structure: Structure, timestep_fs: float) -> dict[str, float]:
        """What each part costs at most, in evaluations of both forces (measured: a row of J takes 0.7 for F_nc and 2.4 for F_c)."""
        n = 3 * structure.n_atoms
        asymmetry = 3.1 * n if self.exact(structure) else 5.1 * min(n, MOST_PROBES)
        equilibration, production, _ = self.legs(timestep_fs)
        known = {
            "forces": 1.0,
            "gradient": 2.0 * COMPONENTS_CHECKED + 20,
            "asymmetry": asymmetry,
            "loops": float((self.loops + 1) * MOST_POINTS),
            "lines": float(self.lines * self.line_points),
            "symmetry": float(len(COPIES) * self.copies),
            "dynamics": equilibration.steps + 1.5 * production.steps,
        }
        return {part: known[part] for part in self.parts}


# ---- paths ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Molecule:
    """Atoms that are bonded to each other and to nothing else: `members` (m,), and their `arms` (m, 3) in Å from the centre, across the faces of
    a cell where bonds go there."""

    members: tuple[int, ...]
    arms: Array


def find_molecule(structure: Structure) -> Molecule | None:
    """The first group of two to MOST_MEMBERS bonded atoms that has an end; None in a crystal that is one network, and among free atoms."""
    radii = BOND * covalent_radii[structure.numbers]
    i, j, vectors, shifts = primitive_neighbor_list(
        "ijDS", structure.pbc, structure.cell, structure.positions, list(radii), self_interaction=False
    )
    bonds: list[list[int]] = [[] for _ in range(structure.n_atoms)]
    for k, atom in enumerate(i):
        bonds[atom].append(k)
    seen: set[int] = set()
    for start in range(structure.n_atoms):
        if start in seen:
            continue
        places, ends = {start: (np.zeros(3, int), np.zeros(3))}, True
        waiting = [start]
        while waiting:
            atom = waiting.pop()
            cell, place = places[atom]
            for k in bonds[atom]:
                other = int(j[k])
                if other not in places:
                    places[other] = (cell + shifts[k], place + vectors[k])
                    waiting.append(other)
                elif (places[other][0] != cell + shifts[k]).any():
                    ends = False
        seen |= set(places)
        if ends and 2 <= len(places) <= MOST_MEMBERS:
            members = tuple(sorted(places))
            arms = np.array([places[m][1] for m in members])
            return Molecule(members, arms - arms.mean(0))
    return None


def loop_path(
    structure: Structure,
    settings: Examination,
    number: int,
    seed: Sequence[int],
    molecule: Molecule | None,
    points: int,
) -> conservativity.Path:
    """The `number`-th loop at so many points: a random circle, or after those the molecule."""
    if number < settings.loops:
        plane = conservativity.directions(3 * structure.n_atoms, 2, [*seed, number])
        return conservativity.circle(structure.positions, plane, settings.loop_radius_A, points)
    assert molecule is not None
    axis = conservativity.directions(3, 1, [*seed, number])[0]
    return conservativity.turning_molecule(
        structure.positions, molecule.members, molecule.arms, axis, TURN_DEG, STRETCH, points
    )


def line(structure: Structure, settings: Examination, number: int, seed: Sequence[int]) -> tuple[Array, Array]:
    """Positions (T, N, 3) along a random straight line that begins at the structure, and its direction (N, 3): by a step of line_step_A every
    atom moves so far as a root mean square."""
    way = conservativity.directions(3 * structure.n_atoms, 1, [*seed, number])[0].reshape(structure.positions.shape)
    way = way * math.sqrt(structure.n_atoms)
    along = settings.line_step_A * np.arange(settings.line_points)
    return structure.positions + along[:, None, None] * way, way


def neighbour_set(structure: Structure, cutoff_A: float, cap: int | None) -> NDArray[np.int64]:
    """The pairs that a model with this cutoff sees, as sorted numbers; with a cap, of each atom the `cap` nearest. (N of 10^4 and 100 cells
    in each direction fit.)"""
    i, j, d, shifts = primitive_neighbor_list(
        "ijdS", structure.pbc, structure.cell, structure.positions, cutoff_A, self_interaction=False
    )
    if cap is not None:
        order = np.lexsort((d, i))
        i, j, shifts = i[order], j[order], shifts[order]
        starts = np.r_[0, np.cumsum(np.bincount(i, minlength=structure.n_atoms))[:-1]]
        kept = np.arange(len(i)) - starts[i] < cap
        i, j, shifts = i[kept], j[kept], shifts[kept]
    images = ((shifts[:, 0] + 100) * 200 + shifts[:, 1] + 100) * 200 + shifts[:, 2] + 100
    return np.sort((images.astype(np.int64) * structure.n_atoms + i) * structure.n_atoms + j)


# ---- copies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A structure that is the same thing, and how its forces (N, 3) are brought back: row `order[k]` of them, turned back by `turn`, belongs to
    atom k."""

    structure: Structure
    turn: Array
    order: NDArray[np.int64]

    def back(self, forces_of_copy: Array) -> Array:
        return forces_of_copy[self.order] @ self.turn


def copy_of(structure: Structure, kind: str, number: int, seed: Sequence[int]) -> Copy:
    """Turned with its cell, with its atoms in another order, or shifted as a whole, at random."""
    n = structure.n_atoms
    rng = np.random.default_rng([*seed, COPIES.index(kind), number])
    turn, order = np.eye(3), np.arange(n)
    bare = replace(structure, labels={})
    if kind == "rotation":
        turn = conservativity.rotation([*seed, COPIES.index(kind), number])
        middle = np.zeros(3) if structure.periodic else structure.positions.mean(0)
        bare = replace(bare, positions=(bare.positions - middle) @ turn.T + middle, cell=bare.cell @ turn.T)
    elif kind == "permutation":
        new = rng.permutation(n)
        bare = replace(bare, numbers=bare.numbers[new], positions=bare.positions[new])
        order = np.argsort(new)
    else:
        shift = rng.random(3) @ bare.cell if structure.periodic else rng.uniform(-5, 5, 3)
        bare = replace(bare, positions=bare.positions + shift)
    return Copy(bare, turn, order)
