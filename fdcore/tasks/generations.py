"""Closing the loop as one task: attack, label, fine-tune, attack what came of it, and measure whether it became more stable.

structures  one row per adversarial structure of every generation, with what the reference says (NaN: it failed)
atoms       their positions, and the forces of the reference
steps       of every training: the table of the task `finetune`, with a column `stage`
checks      likewise
the tables of the task `stability`, whose models are the base, then those of the trainings in their order

Every training leaves a product, "model-1-direct", "model-1-both", "model-2-both", ...: a folder that `fdcore.models.finetuned` reads.
Notes say of every stage what it came to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.finetune.settings import Finetuning
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.attack import AttackParameters, AttackTask
from fdcore.tasks.base import Job, Note, Product, Progress, Record, Rows, Run, Savable
from fdcore.tasks.finetune import FinetuneTask, check_row, examples_of, lineage_step, step_row
from fdcore.tasks.nested import Kept
from fdcore.tasks.stability import Work, stability_tables
from fdcore.tasks.stages import GenerationsParameters, Stage

if TYPE_CHECKING:
    from fdcore.records import Structure

# Shares of the whole that the stages are taken for, so that progress moves evenly: rough.
WEIGHTS = {"attack": 2.0, "label": 1.0, "finetune": 3.0, "stability": 10.0}
NAN = float("nan")


class GenerationsTask:
    name = "generations"
    unit = "per cent"

    def check(self, spec: Spec) -> None:
        parameters: GenerationsParameters = GenerationsParameters.of(spec)
        starts = spec.n_structures - parameters.n_replay
        if starts < 1:
            raise UsageError("There is no structure to attack.", "Give one.")
        if parameters.starts is not None and parameters.starts < starts:
            raise UsageError(
                f"{parameters.starts} starts are fewer than the {starts} structures.", "Give at least one each."
            )

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        trained = FinetuneTask().tables(spec, structures)
        return {
            "structures": {
                "generation": Column("<i2"),
                "parent": Column("<i4"),
                "start": Column("<i4"),
                "force_delta_eV_per_A": Column(),
                "above_eV_per_atom": Column(),
                "energy_reference_eV": Column(),
                "cell_A": Column("<f8", (3, 3)),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
            },
            "atoms": {"position_A": Column("<f8", (3,)), "forces_reference_eV_per_A": Column("<f8", (3,))},
            **{name: {"stage": Column("<i2"), **columns} for name, columns in trained.items()},
            **stability_tables(),
        }

    def run(self, job: Job) -> Run:
        loop = _Loop(job)
        yield from loop.run()
        return loop.summary()


@dataclass
class _Found:
    """An adversarial structure with where it comes from; labelled once the reference has said something."""

    structure: Structure
    generation: int
    parent: int
    start: int
    force_delta: float
    above: float


class _Loop:
    """One attempt: what it has, and where it can be taken up again."""

    def __init__(self, job: Job) -> None:
        self.job, self.parameters = job, GenerationsParameters.of(job.spec)
        n = len(job.structures) - self.parameters.n_replay
        self.base = job.needs_model()
        self.starts = tuple(self.base.check(s) for s in job.structures[:n])
        self.replay = job.structures[n:]
        self.stages: list[Stage] = self.parameters.stages()
        self.at, self.seconds, self._atoms, self._share = 0, 0.0, 0, 0.0
        self.found: list[_Found] = []
        self._sub: Checkpoint | None = None
        self._models: dict[str, Any] = {}
        self._measured: dict[str, Any] = {}
        if job.state is not None:
            self._load(job.state)

    # ---- the stages ------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        yield self._progress("beginning")
        while self.at < len(self.stages):
            stage = self.stages[self.at]
            if stage.kind == "attack" and self._out_of_time(stage):
                yield Note({"skipped": stage.text, "text": "the limit of wall_seconds was reached"})
                # What there is is measured.
                self.stages = [*self.stages[: self.at], self.stages[-1]]
                continue
            work = {
                "attack": self._attack,
                "label": self._label,
                "finetune": self._finetune,
                "stability": self._stability,
            }
            clock = time.perf_counter()
            for record in work[stage.kind](stage):
                if isinstance(record, Savable):
                    now = time.perf_counter()
                    self.seconds, clock = self.seconds + now - clock, now
                    yield Savable(lambda take=record.take: self._save(take()))
                else:
                    yield record
            self.seconds += time.perf_counter() - clock
            self.at, self._sub, self._share = self.at + 1, None, 0.0
            yield self._progress(f"{stage.text}: done")
            yield Savable(lambda: self._save(None))

    def _out_of_time(self, stage: Stage) -> bool:
        limit = self.parameters.wall_seconds
        return limit is not None and stage.generation > 1 and self.seconds > limit

    def _attack(self, stage: Stage) -> Iterator[Record]:
        from fdcore.attack.selection import choose

        model = self._model_before(stage)
        spec = replace(
            self.job.spec,
            task="attack",
            parameters=self.parameters.attack(),
            n_structures=len(self.starts),
            seed=self.job.spec.seed + stage.generation,
        )
        kept = Kept.of(self._sub)
        state = None if self._sub is None else Checkpoint(self._sub.values["own"], kept.others)
        for record in AttackTask().run(Job(spec, self.starts, model, state)):
            if isinstance(record, Rows):
                kept.add(record)
            elif isinstance(record, Progress):
                yield self._part(stage, record)
            elif isinstance(record, Savable):
                yield Savable(lambda take=record.take: kept.with_state(take()))
        steps, origins, atoms = kept.table("steps"), kept.table("origins"), kept.table("atoms")
        chosen = []
        if steps:
            parents = origins["parent"].tolist()
            known = dict(zip(parents, origins["force_delta_eV_per_A"].tolist(), strict=True))
            units = dict(zip(parents, origins["unit"].tolist(), strict=True))
            choice = AttackParameters(**self.parameters.attack()).choice()
            chosen = [self._picked(stage, steps, atoms, row) for row in choose(steps, known, units, choice).rows]
        if not chosen:
            raise ComputeError(
                f"The attack of generation {stage.generation} found no structure.",
                "Ask for a lower rise, or more starts and steps.",
            )
        u = [f.force_delta for f in chosen]
        self.found += chosen
        yield Note(
            {
                "stage": stage.text,
                "found": len(chosen),
                "asked": self.parameters.count,
                "force_delta_min": min(u),
                "force_delta_max": max(u),
            }
        )

    def _picked(self, stage: Stage, steps: Mapping[str, Any], atoms: Mapping[str, Any], row: int) -> _Found:
        parent, first, n = (int(steps[k][row]) for k in ("parent", "first_atom", "n_atoms"))
        # As files hold them, so that a label that comes back from one is known again.
        positions = atoms["position_A"][first : first + n].round(8)
        structure = replace(self.starts[parent], positions=positions, cell=steps["cell_A"][row], labels={}, index=row)
        u, above = float(steps["force_delta_eV_per_A"][row]), float(steps["above_eV_per_atom"][row])
        return _Found(structure, stage.generation, parent, int(steps["start"][row]), u, above)

    def _label(self, stage: Stage) -> Iterator[Record]:
        from fdcore.reference import Truth, reference, truths

        mine = [k for k, f in enumerate(self.found) if f.generation == stage.generation]
        done = 0 if self._sub is None else int(self._sub.values["own"]["done"])
        failed = 0 if self._sub is None else int(self._sub.values["own"]["failed"])
        answers = truths(reference(self.parameters.reference), [self.found[k].structure for k in mine[done:]])
        for k, answer in zip(mine[done:], answers, strict=True):
            found = self.found[k]
            known = answer if isinstance(answer, Truth) else None
            if isinstance(answer, FdcoreError):
                failed += 1
                yield Note({"stage": stage.text, "structure": k, "error": answer.message, "hint": answer.hint})
            yield from self._rows(found, known)
            if known is not None:
                labels = {"energy_eV": known.energy, "forces_eV_per_A": known.forces_reference}
                found.structure = replace(found.structure, labels=labels)
            done += 1
            yield self._part(stage, Progress(done, len(mine), f"labelled {done} of {len(mine)}"))
            yield Savable(lambda d=done, f=failed: Checkpoint({"done": d, "failed": f}, {}))
        yield Note({"stage": stage.text, "labelled": len(mine) - failed, "failed": failed})

    def _rows(self, found: _Found, known: Any) -> Iterator[Record]:
        structure, n = found.structure, found.structure.n_atoms
        forces = [[NAN] * 3] * n if known is None else known.forces_reference
        yield Rows("atoms", {"position_A": structure.positions, "forces_reference_eV_per_A": forces})
        yield Rows(
            "structures",
            {
                "generation": [found.generation],
                "parent": [found.parent],
                "start": [found.start],
                "force_delta_eV_per_A": [found.force_delta],
                "above_eV_per_atom": [found.above],
                "energy_reference_eV": [NAN if known is None else known.energy],
                "cell_A": structure.cell[None],
                "first_atom": [self._atoms],
                "n_atoms": [n],
            },
        )
        self._atoms += n

    def _finetune(self, stage: Stage) -> Iterator[Record]:
        from fdcore.finetune.product import write
        from fdcore.finetune.training import Checked, Step, Training

        base = self._model_before(stage)
        structures = [f.structure for f in self.found]
        examples = examples_of(structures)
        state = None if self._sub is None else (self._sub.values["own"]["training"], self._sub.arrays)
        checks = [] if self._sub is None else [Checked(**c) for c in self._sub.values["own"]["checks"]]
        training = Training(
            base,
            list(examples.values()),
            self._settings(stage, base),
            self.job.spec.seed,
            replay=list(examples_of(self.replay).values()),
            held_out=self._held_out(list(examples)),
            state=state,
        )
        number = [s for s in self.stages if s.kind == "finetune"].index(stage)
        text = "looking at it before"
        for event in training.run():
            if event is None:
                yield self._part(stage, Progress(training.step, training.steps, text))
                yield Savable(lambda: _training_state(training, checks))
            elif isinstance(event, Step):
                text = f"epoch {event.epoch + 1}, loss {event.loss:.3g}"
                yield _with_stage(step_row(event), number)
            elif isinstance(event, Checked):
                if event.when != "epoch":
                    checks.append(event)
                yield _with_stage(check_row(event), number)
        step = lineage_step(self.job, training, training.settings, self.parameters.reference, checks)
        made: list[Any] = []
        yield Product(stage.product, lambda folder: made.append(write(folder, training, base, step)))
        [card] = made
        yield Note(
            {
                "stage": stage.text,
                "model": card.id,
                "best_epoch": training.best_epoch,
                "epochs_done": training.epoch,
                "trained_on": len(training.trained_on),
            }
        )

    def _settings(self, stage: Stage, base: Any) -> Finetuning:
        """What has been fine-tuned before is not thrown far from where it is: the peak of the learning rate falls with the generations, unless
        somebody has chosen it (measured: at the first one's peak the second was no better than the first)."""
        from fdcore.finetune.training import peak_for

        settings = self.parameters.finetuning(stage.train)
        if settings.learning_rate is not None:
            return settings
        return replace(settings, learning_rate=peak_for(base.card.n_parameters) / stage.generation)

    def _held_out(self, labelled: Sequence[int]) -> list[int]:
        """Places among the labelled structures that are not trained on: whole climbs, drawn in each generation on its own, so that what a
        later training judges by was held out by the earlier ones as well."""
        from fdcore.finetune.training import draw_held_out

        out = []
        for generation in sorted({self.found[k].generation for k in labelled}):
            own = [place for place, k in enumerate(labelled) if self.found[k].generation == generation]
            climbs = [self.found[labelled[place]].start for place in own]
            out += [
                own[k]
                for k in draw_held_out(len(own), self.parameters.held_out, self.job.spec.seed + generation, climbs)
            ]
        return out

    def _stability(self, stage: Stage) -> Iterator[Record]:
        parameters = self.parameters
        ends = [None, *(s for s in self.stages if s.kind == "finetune")]

        def model(number: int) -> Any:
            end = ends[number]
            return self.base if end is None else self._made(end)

        state = None if self._sub is None else Checkpoint(self._sub.values["own"], self._sub.arrays)
        work = Work(
            self.starts, parameters.stability(), parameters.reference, len(ends), model, self.job.spec.seed, state
        )
        for record in work.run():
            yield self._part(stage, record) if isinstance(record, Progress) else record
        self._measured = work.summary()

    # ---- models ----------------------------------------------------------------------------------------------------

    def _model_before(self, stage: Stage) -> Any:
        """The base in the first generation, else what the one before has come to."""
        return self.base if stage.generation == 1 else self._made(Stage("finetune", stage.generation - 1, "both"))

    def _made(self, stage: Stage) -> Any:
        from fdcore.models import finetuned

        if stage.product not in self._models:
            folder = self.job.kept(stage.product)
            # By its path: only from then on is it, and what is made of it, known by name here.
            card = finetuned.card(str(folder))
            self._models = {stage.product: finetuned.load(card, self.base.device, self.base.dtype)}
        return self._models[stage.product]

    # ---- how far ---------------------------------------------------------------------------------------------------

    def _part(self, stage: Stage, own: Progress) -> Progress:
        self._share = max(self._share, own.done / own.total if own.total else 0.0)
        return self._progress(f"{stage.text}: {own.text}")

    def _progress(self, text: str) -> Progress:
        weights = [WEIGHTS[s.kind] for s in self.stages]
        here = WEIGHTS[self.stages[self.at].kind] * self._share if self.at < len(self.stages) else 0.0
        return Progress(100 * (sum(weights[: self.at]) + here) / sum(weights), 100, text)

    def summary(self) -> dict[str, Any]:
        """What a list of runs says of it, and what no table holds."""
        from fdcore.models import finetuned

        made = [s.product for s in self.stages if s.kind == "finetune"]
        return {
            "generations": max(f.generation for f in self.found),
            "structures": len(self.found),
            "labelled": sum("energy_eV" in f.structure.labels for f in self.found),
            "products": made,
            "trained": [finetuned.read(self.job.kept(p))[0].id for p in made],
            "device": self.base.device,
            "weights_sha256": self.base.weights_sha256,
            **self._measured,
        }

    # ---- saved states ----------------------------------------------------------------------------------------------

    def _save(self, own: Checkpoint | None) -> Checkpoint:
        import numpy as np

        values: dict[str, Any] = {
            "at": self.at,
            "seconds": self.seconds,
            "atoms": self._atoms,
            "share": self._share,
            "measured": self._measured,
            "stages": [asdict(s) for s in self.stages],
            "found": [
                {
                    **{k: v for k, v in vars(f).items() if k != "structure"},
                    "index": f.structure.index,
                    "energy_eV": f.structure.labels.get("energy_eV"),
                }
                for f in self.found
            ],
        }
        arrays: dict[str, Any] = {}
        if self.found:
            structures = [f.structure for f in self.found]
            arrays["found.positions"] = np.concatenate([s.positions for s in structures])
            arrays["found.cells"] = np.stack([s.cell for s in structures])
            arrays["found.forces"] = np.concatenate(
                [np.asarray(s.labels.get("forces_eV_per_A", np.full_like(s.positions, NAN))) for s in structures]
            )
        if own is not None:
            values["own"] = dict(own.values)
            arrays |= {f"own/{k}": v for k, v in own.arrays.items()}
        return Checkpoint(values, arrays)

    def _load(self, state: Checkpoint) -> None:
        import numpy as np

        values, arrays = state.values, state.arrays
        self.at, self.seconds, self._atoms, self._share = (
            values["at"],
            values["seconds"],
            values["atoms"],
            values["share"],
        )
        self.stages, self._measured = [Stage(**s) for s in values["stages"]], dict(values["measured"])
        first = 0
        for k, row in enumerate(values["found"]):
            parent = self.starts[row["parent"]]
            part = slice(first, first + parent.n_atoms)
            first += parent.n_atoms
            labels: dict[str, Any] = {}
            if row["energy_eV"] is not None:
                labels = {"energy_eV": row["energy_eV"], "forces_eV_per_A": np.array(arrays["found.forces"][part])}
            structure = replace(
                parent,
                positions=arrays["found.positions"][part],
                cell=arrays["found.cells"][k],
                labels=labels,
                index=row["index"],
            )
            self.found.append(
                _Found(structure, row["generation"], row["parent"], row["start"], row["force_delta"], row["above"])
            )
        if "own" in values:
            self._sub = Checkpoint(
                {"own": values["own"]}, {k[4:]: v for k, v in arrays.items() if k.startswith("own/")}
            )


def _training_state(training: Any, checks: Sequence[Any]) -> Checkpoint:
    values, arrays = training.save()
    return Checkpoint({"training": values, "checks": [asdict(c) for c in checks]}, arrays)


def _with_stage(rows: Rows, number: int) -> Rows:
    n = len(next(iter(rows.columns.values())))
    return Rows(rows.table, {"stage": [number] * n, **rows.columns})
