"""Is this model conservative here? As a task: part after part for one structure after another, each recorded as it is done.

structures   U_Delta's evaluation: one row per structure that the model could do; says which rows of `atoms` are its own
atoms        both forces and the confidence
blocks       the Jacobian of either force (0 direct, 1 conservative) of a small structure: one 3 x 3 block per pair of atoms
probes       of a large one: squares of |A q| and |J q| along random directions; `crossed`: q_l . J q_k where only those can be had
loops        points of closed paths: energy, and the power of both forces per unit of the phase
lines        points of straight ones: energy, its slope from F_c, and how many neighbours came or went since the point before
copies       what turned, permuted and shifted copies say otherwise
series       NVE under F_nc and under F_c: conserved energy and temperature
timings      seconds of every part

Notes hold what the finite-difference check found, how a Jacobian was made, and the parts that could not be done, with the reason. Everything
else is a pure function of these (fdcore/report.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.examination import FORCES, Examination
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.models.base import Model
    from fdcore.records import Evaluation, Structure

NAN = float("nan")
# Rows of a Jacobian that are made at once: depends on nothing but the structure, so that a run that goes on gives the same bits.
ROWS_AT_ONCE = 24
# Points of a line that are evaluated at once.
POINTS_AT_ONCE = 10
# Names of the parts in sentences of progress.
WORDS = {
    "forces": "forces",
    "gradient": "F_c against differences",
    "asymmetry": "asymmetry of the Jacobian",
    "loops": "closed loops",
    "lines": "jumps of the energy",
    "symmetry": "turned, permuted and shifted copies",
    "dynamics": "NVE",
}


@dataclass(frozen=True)
class ReportParameters(Parameters, Examination):
    """As `Examination`."""

    def __post_init__(self) -> None:
        # From JSON it comes as a list.
        if isinstance(self.parts, list):
            object.__setattr__(self, "parts", tuple(self.parts))
        super().__post_init__()

    def settings(self) -> Examination:
        return Examination(**{f.name: getattr(self, f.name) for f in fields(Examination)})


class ReportTask:
    name = "report"
    unit = "evaluation"

    def check(self, spec: Spec) -> None:
        ReportParameters.of(spec)
        if spec.n_structures < 1:
            raise UsageError("A report needs a structure.", "Give one.")

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return report_tables()

    def run(self, job: Job) -> Run:
        parameters: ReportParameters = ReportParameters.of(job.spec)
        model = job.needs_model()
        work = Work(job.structures, parameters.settings(), model, job.spec.seed, job.state)
        yield from work.run()
        return {
            "examined": work.examined,
            "failed": len(job.structures) - work.examined,
            "missing": work.missing,
            "device": model.device,
            "weights_sha256": model.weights_sha256,
        }


def report_tables() -> Tables:
    """See above."""
    at, number, real = Column("<i4"), Column("<i4"), Column()
    return {
        "structures": {
            "position": at,
            "first_atom": Column("<i8"),
            "n_atoms": Column("<i8"),
            "energy_eV": real,
            "graph_tie_A": real,
        },
        "atoms": {
            "forces_direct_eV_per_A": Column("<f8", (3,)),
            "forces_conservative_eV_per_A": Column("<f8", (3,)),
            "confidence_eV_per_A": real,
        },
        "blocks": {
            "position": at,
            "force": Column("<i1"),
            "row_atom": number,
            "column_atom": number,
            "jacobian_eV_per_A2": Column("<f8", (3, 3)),
        },
        "probes": {
            "position": at,
            "force": Column("<i1"),
            "probe": number,
            # NaN where only differences can be had.
            "antisymmetric_squared": real,
            "whole_squared": real,
        },
        "crossed": {"position": at, "force": Column("<i1"), "left": number, "right": number, "product": real},
        "loops": {
            "position": at,
            "loop": number,
            "kind": Column("<i1"),
            "point": number,
            "energy_eV": real,
            "power_direct_eV": real,
            "power_conservative_eV": real,
            "speed_A": real,
        },
        "lines": {
            "position": at,
            "line": number,
            "point": number,
            "energy_eV": real,
            "slope_eV_per_A": real,
            "neighbour_changes": number,
        },
        "copies": {
            "position": at,
            "kind": Column("<i1"),
            "copy": number,
            "energy_eV": real,
            "deviation_direct_eV_per_A": real,
            "deviation_conservative_eV_per_A": real,
        },
        "series": {
            "position": at,
            "force": Column("<i1"),
            "time_ps": real,
            "conserved_eV": real,
            "kinetic_eV": real,
            "temperature_K": real,
        },
        "timings": {"position": at, "part": Column("<i1"), "seconds": real},
    }


class Work:
    """The examination: what has been done, and where it can be taken up again."""

    def __init__(
        self,
        structures: Sequence[Structure],
        settings: Examination,
        model: Model,
        seed: int,
        state: Checkpoint | None = None,
    ) -> None:
        from fdcore.tasks.motion import leg_timestep

        self.structures, self.settings, self.model, self._seed = tuple(structures), settings, model, seed
        self._steps_fs = [leg_timestep([s], settings.timestep_fs) for s in self.structures]
        self._costs = [settings.costs(s, t) for s, t in zip(self.structures, self._steps_fs, strict=True)]
        # Which structure, which part of it, and how far within that: atoms, probes, loops, lines or copies.
        self.at, self.part, self.inner = 0, 0, 0
        self.examined = self.missing = self._atoms = 0
        self._seconds = 0.0
        # What a part has found so far that it still needs: squares and products of the probes.
        self._found: dict[str, Any] = {}
        self._course: Any = None
        self._resume: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
        self._share = 0.0
        self._own: Evaluation | None = None
        if state is not None:
            self._load(state)

    # ---- how far ---------------------------------------------------------------------------------------------------

    @property
    def total(self) -> float:
        return sum(sum(c.values()) for c in self._costs)

    @property
    def done(self) -> float:
        before = sum(sum(c.values()) for c in self._costs[: self.at])
        if self.at == len(self.structures):
            return before
        costs = list(self._costs[self.at].values())
        here = costs[self.part] * self._share if self.part < len(costs) else 0.0
        return before + sum(costs[: self.part]) + here

    def progress(self, text: str = "") -> Progress:
        if not text:
            where = f"structure {self.at + 1} of {len(self.structures)}: " if len(self.structures) > 1 else ""
            text = f"{where}{WORDS[self.settings.parts[self.part]]}"
        return Progress(self.done, self.total, text)

    # ---- the examination -------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        yield self.progress("beginning")
        while self.at < len(self.structures):
            structure, parts = self.structures[self.at], self.settings.parts
            able = True
            while self.part < len(parts):
                name = parts[self.part]
                yield self.progress()
                try:
                    yield from self._timed(getattr(self, f"_{name}")(structure))
                except FdcoreError as error:
                    # One part that cannot be done is missing, with its reason; a structure that has no forces has nothing else.
                    self.missing += name != "forces"
                    able = name != "forces"
                    yield Note({"position": self.at, "part": name, "error": error.message, "hint": error.hint})
                self._next_part(len(parts) if not able else self.part + 1)
                if self.part < len(parts):
                    yield self.progress()
                    yield Savable(self.save)
            self.examined += able
            self.at, self.part = self.at + 1, 0
            self._own = None
            yield Progress(self.done, self.total, f"examined {self.at} of {len(self.structures)} structures")
            yield Savable(self.save)
        yield Progress(self.total, self.total, "done")

    def _next_part(self, part: int) -> None:
        self.part, self.inner, self._share, self._seconds, self._found = part, 0, 0.0, 0.0, {}
        self._course = self._resume = None

    def _timed(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records of a part, and at last how long it took; a moment at which it can be interrupted counts no time."""
        began = time.perf_counter()
        for record in records:
            self._seconds += time.perf_counter() - began
            yield record
            began = time.perf_counter()
        self._seconds += time.perf_counter() - began
        yield Rows("timings", {"position": [self.at], "part": [self.part_number], "seconds": [self._seconds]})

    @property
    def part_number(self) -> int:
        from fdcore.examination import PARTS

        return PARTS.index(self.settings.parts[self.part])

    def _so_far(self, share: float) -> Iterator[Record]:
        """After a step of a part: how far, and that it can be interrupted."""
        self._share = min(1.0, share)
        yield self.progress()
        yield Savable(self.save)

    def _seeds(self) -> list[int]:
        return [self._seed, self.at, self.part_number]

    def _evaluated(self, structures: Sequence[Structure]) -> list[Evaluation]:
        found = []
        for item in self.model.evaluate_each(structures):
            if isinstance(item, FdcoreError):
                raise item
            found.append(item)
        return found

    def _here(self, structure: Structure) -> Evaluation:
        """The structure itself; evaluated once more where a run goes on."""
        if self._own is None:
            [self._own] = self._evaluated([structure])
        return self._own

    # ---- forces ----------------------------------------------------------------------------------------------------

    def _forces(self, structure: Structure) -> Iterator[Record]:
        import numpy as np

        found = self._here(structure)
        n = structure.n_atoms
        yield Rows(
            "atoms",
            {
                "forces_direct_eV_per_A": found.forces_direct,
                "forces_conservative_eV_per_A": found.forces_conservative,
                "confidence_eV_per_A": np.full(n, NAN) if found.confidence is None else found.confidence,
            },
        )
        yield Rows(
            "structures",
            {
                "position": [self.at],
                "first_atom": [self._atoms],
                "n_atoms": [n],
                "energy_eV": [found.energy],
                "graph_tie_A": [NAN if found.graph_tie_A is None else found.graph_tie_A],
            },
        )
        self._atoms += n

    def _gradient(self, structure: Structure) -> Iterator[Record]:
        from fdcore.examination import COMPONENTS_CHECKED
        from fdcore.models.selfcheck import check_forces

        if self.model.dtype != "float64":
            raise UsageError(
                "Differences of an energy in single precision are noise.", "Ask for the report in float64."
            )
        found = check_forces(self.model, structure, components=COMPONENTS_CHECKED, seed=self._seed)
        yield Note({"position": self.at, "part": "gradient", "check": asdict(found)})

    # ---- asymmetry -------------------------------------------------------------------------------------------------

    def _asymmetry(self, structure: Structure) -> Iterator[Record]:
        way = self._found.get("way")
        if way is None:
            way = self._way(structure)
            self._found["way"] = way
            yield Note({"position": self.at, "part": "asymmetry", "by": way, "exact": self.settings.exact(structure)})
        if self.settings.exact(structure):
            yield from self._whole_jacobian(structure, way)
        else:
            yield from self._probed(structure, way)

    def _way(self, structure: Structure) -> str:
        """Whether derivatives of both forces can be had here: an exported model may refuse."""
        import numpy as np

        if not self.model.pulls_back:
            return "differences"
        once = np.ones((1, structure.n_atoms, 3))
        try:
            for force in FORCES:
                self.model.pull_back(structure, once, force=force)
        except UsageError:
            return "differences"
        return "derivatives"

    def _whole_jacobian(self, structure: Structure, way: str) -> Iterator[Record]:
        import numpy as np

        n = structure.n_atoms
        step = max(1, ROWS_AT_ONCE // (3 * n))
        while self.inner < n:
            atoms = np.arange(self.inner, min(n, self.inner + step))
            units = np.zeros((3 * len(atoms), n, 3))
            for k, atom in enumerate(atoms):
                units[3 * k + np.arange(3), atom, np.arange(3)] = 1.0
            if way == "derivatives":
                for number, force in enumerate(FORCES):
                    rows = self.model.pull_back(structure, units, force=force)
                    # (atoms, 3, N, 3) -> a block per pair.
                    blocks = rows.reshape(len(atoms), 3, n, 3).transpose(0, 2, 1, 3).reshape(-1, 3, 3)
                    yield self._blocks(number, np.repeat(atoms, n), np.tile(np.arange(n), len(atoms)), blocks)
            else:
                for number, columns in enumerate(self._forward(structure, units, component=True)):
                    # columns[m] = dF/dR_m: (atoms, 3, N, 3) -> (atoms, N, component of F, component of R).
                    blocks = columns.reshape(len(atoms), 3, n, 3).transpose(0, 2, 3, 1).reshape(-1, 3, 3)
                    yield self._blocks(number, np.tile(np.arange(n), len(atoms)), np.repeat(atoms, n), blocks)
            self.inner += len(atoms)
            yield from self._so_far(self.inner / n)

    def _blocks(self, force: int, rows: Any, columns: Any, blocks: Any) -> Rows:
        return Rows(
            "blocks",
            {
                "position": [self.at] * len(blocks),
                "force": [force] * len(blocks),
                "row_atom": rows,
                "column_atom": columns,
                "jacobian_eV_per_A2": blocks,
            },
        )

    def _forward(self, structure: Structure, ways: Any, *, component: bool = False) -> tuple[Any, Any]:
        """J w of both forces, (M, N, 3) each, by central differences at fixed graph along `ways` (M, N, 3): unit vectors of components, or random
        directions."""
        import math

        import numpy as np

        from fdcore.examination import DIFFERENCE_STEP_A

        length = DIFFERENCE_STEP_A[self.model.dtype]
        if not component:
            # By so much as a root mean square over all components.
            length *= math.sqrt(3 * structure.n_atoms)
        ends = self.model.displaced(structure, np.concatenate([length * ways, -length * ways]))
        plus, minus = ends[: len(ways)], ends[len(ways) :]
        pairs = zip(plus, minus, strict=True)
        both = [(p.forces_direct - m.forces_direct, p.forces_conservative - m.forces_conservative) for p, m in pairs]
        return tuple(np.stack([b[k] for b in both]) / (2 * length) for k in range(2))  # pyright: ignore[reportReturnType]

    def _probed(self, structure: Structure, way: str) -> Iterator[Record]:
        """Direction after direction, until lambda of F_nc is known well enough."""
        import numpy as np

        from fdcore import conservativity
        from fdcore.examination import FEWEST_PROBES, MOST_PROBES

        n = 3 * structure.n_atoms
        most = min(n, MOST_PROBES)
        found = self._found
        found.setdefault("odd", [[], []])
        found.setdefault("whole", [[], []])
        found.setdefault("forward", np.zeros((2, 0, n)))
        crossed = [np.zeros((0, 0))] * 2
        while self.inner < most:
            q = conservativity.directions(n, self.inner + 1, self._seeds())
            vector = q[-1:].reshape(1, -1, 3)
            forward = [f.reshape(-1) for f in self._forward(structure, vector)]
            if way == "derivatives":
                for k, force in enumerate(FORCES):
                    back = self.model.pull_back(structure, vector, force=force).reshape(-1)
                    found["odd"][k].append(float(((forward[k] - back) ** 2).sum() / 4))
                    found["whole"][k].append(float(0.5 * ((forward[k] ** 2).sum() + (back**2).sum())))
            else:
                found["forward"] = np.concatenate([found["forward"], np.stack(forward)[:, None]], axis=1)
                for k in range(2):
                    found["odd"][k].append(NAN)
                    found["whole"][k].append(float((forward[k] ** 2).sum()))
                    yield self._crossed(k, q, found["forward"][k])
                    crossed[k] = q @ found["forward"][k].T
            yield Rows(
                "probes",
                {
                    "position": [self.at] * 2,
                    "force": [0, 1],
                    "probe": [self.inner] * 2,
                    "antisymmetric_squared": [found["odd"][k][-1] for k in range(2)],
                    "whole_squared": [found["whole"][k][-1] for k in range(2)],
                },
            )
            self.inner += 1
            yield from self._so_far(self.inner / most)
            if self.inner < min(FEWEST_PROBES, most):
                continue
            whole = np.array(found["whole"][0])
            if way == "derivatives":
                known = conservativity.of_squares(np.array(found["odd"][0]), whole, n)
            else:
                known = conservativity.of_pairs(crossed[0], whole, n)
            if known.standard_error <= self.settings.precision * known.value:
                return

    def _crossed(self, force: int, q: Any, forward: Any) -> Rows:
        """What the newest direction adds to the products q_l . J q_k."""
        newest = len(q) - 1
        left = [*range(newest + 1), *([newest] * newest)]
        right = [*([newest] * (newest + 1)), *range(newest)]
        values = [*(q @ forward[newest]), *(forward[:newest] @ q[newest])]
        count = len(values)
        return Rows(
            "crossed",
            {
                "position": [self.at] * count,
                "force": [force] * count,
                "left": left,
                "right": right,
                "product": values,
            },
        )

    # ---- loops -----------------------------------------------------------------------------------------------------

    def _loops(self, structure: Structure) -> Iterator[Record]:
        from fdcore.examination import find_molecule

        molecule = find_molecule(structure)
        count = self.settings.loops + (molecule is not None)
        while self.inner < count:
            yield from self._loop(structure, molecule, count)
            self.inner += 1
            yield from self._so_far(self.inner / count)

    def _loop(self, structure: Structure, molecule: Any, count: int) -> Iterator[Record]:
        """Points are doubled until the work of both forces has settled."""
        import numpy as np

        from fdcore import conservativity
        from fdcore.examination import FEWEST_POINTS, MOST_POINTS, SETTLED_EV, SETTLED_SHARE, loop_path

        points = FEWEST_POINTS
        known: Any = None
        while True:
            path = loop_path(structure, self.settings, self.inner, self._seeds(), molecule, points)
            # The points of before are every other one now.
            new = np.arange(points) if known is None else np.arange(1, points, 2)
            values = np.zeros((points, 4))
            if known is not None:
                values[::2] = known
            for part in np.array_split(new, max(1, len(new) // POINTS_AT_ONCE)):
                moved = [replace(structure, positions=path.positions[k], labels={}) for k in part]
                for k, found in zip(part, self._evaluated(moved), strict=True):
                    velocity = path.velocities[k]
                    values[k] = (
                        found.energy,
                        (found.forces_direct * velocity).sum(),
                        (found.forces_conservative * velocity).sum(),
                        np.linalg.norm(velocity),
                    )
                share = (self.inner + points / MOST_POINTS * 0.9) / count
                self._share = max(self._share, min(1.0, share))
                yield self.progress()
            known = values
            direct, control = conservativity.work(values[:, 1]), conservativity.work(values[:, 2])
            settled = SETTLED_EV[self.model.dtype]
            if points >= MOST_POINTS or (
                control.error <= settled and direct.error <= max(settled, SETTLED_SHARE * abs(direct.value))
            ):
                break
            points *= 2
        yield Rows(
            "loops",
            {
                "position": [self.at] * points,
                "loop": [self.inner] * points,
                "kind": [int(self.inner >= self.settings.loops)] * points,
                "point": np.arange(points),
                "energy_eV": known[:, 0],
                "power_direct_eV": known[:, 1],
                "power_conservative_eV": known[:, 2],
                "speed_A": known[:, 3],
            },
        )

    # ---- lines -----------------------------------------------------------------------------------------------------

    def _lines(self, structure: Structure) -> Iterator[Record]:
        import numpy as np

        from fdcore.examination import line, neighbour_set

        card = self.model.card
        count = self.settings.lines
        while self.inner < count:
            positions, way = line(structure, self.settings, self.inner, self._seeds())
            moved = [replace(structure, positions=p, labels={}) for p in positions]
            energies, slopes, changes = [], [], []
            before = None
            for start in range(0, len(moved), POINTS_AT_ONCE):
                part = moved[start : start + POINTS_AT_ONCE]
                for place, found in zip(part, self._evaluated(part), strict=True):
                    energies.append(found.energy)
                    slopes.append(-float((found.forces_conservative * way).sum()))
                    now = neighbour_set(place, card.cutoff_A, card.neighbour_cap)
                    changes.append(0 if before is None else len(np.setxor1d(before, now, assume_unique=True)))
                    before = now
                self._share = max(self._share, (self.inner + len(energies) / len(moved)) / count)
                yield self.progress()
            yield Rows(
                "lines",
                {
                    "position": [self.at] * len(moved),
                    "line": [self.inner] * len(moved),
                    "point": np.arange(len(moved)),
                    "energy_eV": energies,
                    "slope_eV_per_A": slopes,
                    "neighbour_changes": changes,
                },
            )
            self.inner += 1
            yield from self._so_far(self.inner / count)

    # ---- symmetry --------------------------------------------------------------------------------------------------

    def _symmetry(self, structure: Structure) -> Iterator[Record]:
        from fdcore import conservativity
        from fdcore.examination import COPIES, copy_of

        own = self._here(structure)
        count = len(COPIES) * self.settings.copies
        while self.inner < count:
            kind, number = divmod(self.inner, self.settings.copies)
            copy = copy_of(structure, COPIES[kind], number, self._seeds())
            [found] = self._evaluated([copy.structure])
            yield Rows(
                "copies",
                {
                    "position": [self.at],
                    "kind": [kind],
                    "copy": [number],
                    "energy_eV": [found.energy],
                    "deviation_direct_eV_per_A": [
                        conservativity.rms(copy.back(found.forces_direct) - own.forces_direct)
                    ],
                    "deviation_conservative_eV_per_A": [
                        conservativity.rms(copy.back(found.forces_conservative) - own.forces_conservative)
                    ],
                },
            )
            self.inner += 1
            yield from self._so_far(self.inner / count)

    # ---- dynamics --------------------------------------------------------------------------------------------------

    def _dynamics(self, structure: Structure) -> Iterator[Record]:
        from fdcore.course import Course, Plan
        from fdcore.dynamics.simulation import Ended, Sample

        legs = self.settings.legs(self._steps_fs[self.at])
        plan = Plan(legs, None, self.settings.bounds())
        self._course = course = Course(self.model, [structure], plan, self._seed + self.at, self._resume)
        self._resume = None
        for leg, event in course.run():
            if isinstance(event, Sample) and leg > 0:
                yield Rows(
                    "series",
                    {
                        "position": [self.at],
                        "force": [leg - 1],
                        "time_ps": [event.time_ps],
                        "conserved_eV": event.conserved,
                        "kinetic_eV": event.energy_kinetic,
                        "temperature_K": event.temperature_K,
                    },
                )
            elif isinstance(event, Ended):
                if leg == 0:
                    raise ComputeError(f"It did not survive the equilibration: {event.text}", "Relax it first.")
                yield Note({"position": self.at, "part": "dynamics", "force": leg - 1, "ended": event.text})
            elif event is None:
                yield from self._so_far(course.done / plan.steps)

    # ---- saved states ----------------------------------------------------------------------------------------------

    def save(self) -> Checkpoint:
        import numpy as np

        values: dict[str, Any] = {
            "at": self.at,
            "part": self.part,
            "inner": self.inner,
            "share": self._share,
            "examined": self.examined,
            "missing": self.missing,
            "atoms": self._atoms,
            "seconds": self._seconds,
            "way": self._found.get("way"),
        }
        arrays: dict[str, Any] = {}
        if "odd" in self._found:
            # NaN stands in arrays, where JSON has none.
            arrays = {f"probes/{k}": np.asarray(self._found[k]) for k in ("odd", "whole", "forward")}
        if self._course is not None:
            course, more = self._course.save()
            values["course"] = course
            arrays |= {f"course/{k}": v for k, v in more.items()}
        return Checkpoint(values, arrays)

    def _load(self, state: Checkpoint) -> None:
        values, arrays = state.values, state.arrays
        self.at, self.part, self.inner = values["at"], values["part"], values["inner"]
        self._share, self._seconds = values["share"], values["seconds"]
        self.examined, self.missing, self._atoms = values["examined"], values["missing"], values["atoms"]
        if values["way"] is not None:
            self._found["way"] = values["way"]
        if "probes/odd" in arrays:
            self._found["odd"] = [list(map(float, row)) for row in arrays["probes/odd"]]
            self._found["whole"] = [list(map(float, row)) for row in arrays["probes/whole"]]
            self._found["forward"] = arrays["probes/forward"]
        if "course" in values:
            self._resume = (values["course"], {k[7:]: v for k, v in arrays.items() if k.startswith("course/")})
