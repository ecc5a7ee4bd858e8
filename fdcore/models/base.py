"""The contract of a model: two forces from one evaluation, and their gradients.

A family is one file with a class derived from `Model` and one row in `fdcore.models.FAMILIES`; the contract tests in
`tests/contracts` run over every one of them. A model never changes its input, gives the same answer for a structure alone
and in a batch, and raises rather than return a number it did not compute.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ase
import numpy as np
from numpy.typing import NDArray

from fdcore.errors import ComputeError, FdcoreError, UnsupportedStructureError, UsageError
from fdcore.records import Evaluation, Gradients, ModelCard, Prediction, Structure
from fdcore.structures import validate

if TYPE_CHECKING:
    from fdcore.models.potential import Potential

GradientMethod = Literal["auto", "double-backward", "finite-difference", "one-sided"]
GRADIENT_METHODS: tuple[GradientMethod, ...] = ("auto", "double-backward", "finite-difference", "one-sided")
AtomsInput = ase.Atoms | Structure
ForceName = Literal["direct", "conservative"]

# Head room between what an evaluation is expected to need and what the machine has left.
MEMORY_SHARE = 0.7
# A batch should not take longer: between batches progress is reported and a wish to stop is noticed.
BATCH_SECONDS = 1.0
# A batch of fewer edges tells of overheads, not of edges.
EDGES_TO_LEARN = 500
# Batches whose speed is remembered for estimates.
SPEEDS_KEPT = 7
# Saved activations with create_graph against without: 352 kB against 64 kB per edge (full Orb v3).
DOUBLE_BACKWARD_MEMORY = 5.5


class OutOfMemory(Exception):
    """A family raises it where its backend ran out of memory; the base class then halves the batch."""


class Predictor(ABC):
    """One loaded model that has at least one force, on one device in one precision; safe to use from several threads (calls are
    serialised). It checks, batches and halves; a family says what a batch gives.

    Subclasses implement `_predict`, `_edge_count` and `bytes_per_edge`.
    """

    # Edges that one batch may hold: large enough to fill a processor, small enough to stream results.
    batch_edges: int = 20_000
    # Those that fill a GPU, where thousands of atoms take no longer than ten.
    gpu_batch_edges: int = 400_000
    # Whether an atom that is alone in space is computed; `check` refuses it otherwise.
    reads_single_atoms: bool = True

    def __init__(self, card: ModelCard, device: str, dtype: str) -> None:
        self.card = card
        self.device = device
        self.dtype = dtype
        # What one edge costs in one evaluation: a guess from the model's size until the first batches were timed.
        self.seconds_per_edge = guessed_seconds_per_edge(card)
        self._speeds: deque[float] = deque(maxlen=SPEEDS_KEPT)
        # Bytes per edge as measured on a GPU, the largest of the batches so far; None until then, and on a CPU, which does not tell.
        self._bytes_measured: float | None = None
        # More edges than so many did not fit the device together.
        self._too_many_edges = float("inf")
        # Loaders replace it by the hash of the file they read; the card knows it for embedded weights.
        self.weights_sha256 = card.sha256
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.card.id!r}, device={self.device!r}, dtype={self.dtype!r})"

    def check(self, atoms: AtomsInput) -> Structure:
        """The validated Structure, or an error that says why this model cannot read it.

        Raises
        ------
        GeometryError, LimitError : from validation.
        UnsupportedStructureError : an element outside the training set, or charge and spin missing where they are needed.
        """
        structure = as_structure(atoms)
        check_covered(self.card, structure)
        return structure

    def predict_each(self, atoms: Iterable[AtomsInput]) -> Iterator[Prediction | FdcoreError]:
        """Energy and the one force that the model is run with, in input order: F_nc of a direct model, F_c of a conservative one;
        an FdcoreError in the place of each structure that failed."""
        for batch in self._batches(atoms):
            yield from self._run_batch(batch, self._predict, learn=False)

    def edges(self, structure: Structure) -> float:
        """The estimated number of edges of its graph: what time and memory go with."""
        return self._edge_count(structure)

    def memory_bytes(self, structure: Structure, *, double_backward: bool = False) -> float:
        """Estimated peak memory of one evaluation (or of one exact gradient) beyond the loaded model, in bytes."""
        factor = DOUBLE_BACKWARD_MEMORY if double_backward else 1.0
        return self._edge_count(structure) * (self._bytes_measured or self.bytes_per_edge) * factor

    def full_batch_edges(self) -> float:
        """Edges of a batch that fills the device: what a long list is best divided by. On a CPU it is always the same number; on a GPU it
        follows from its memory and from what batches were seen to need."""
        if not self.device.startswith("cuda"):
            return self.batch_edges
        import torch

        memory = MEMORY_SHARE * torch.cuda.get_device_properties(torch.device(self.device)).total_memory
        fits = memory / (self._bytes_measured or self.bytes_per_edge)
        return min(self.gpu_batch_edges, fits, self._too_many_edges / 2)

    def seconds(self, structures: Iterable[Structure]) -> float:
        """Estimated wall time of evaluating these structures, in seconds."""
        return self.seconds_per_edge * sum(self._edge_count(s) for s in structures)

    def compile(self) -> None:
        """Let a compiler make evaluations faster: half a minute once, numbers that move by rounding. UsageError for families that have no
        way to, and where there is no compiler on the machine."""
        raise UsageError(
            f"Models of the family {self.card.family} cannot be compiled here.",
            "Leave --compile out; the numbers are the same.",
        )

    @property
    def speed_is_measured(self) -> bool:
        """Whether `seconds` rests on batches timed here, not on a guess from the model's size."""
        return len(self._speeds) >= 3

    def available_bytes(self) -> float:
        """Memory left on the device."""
        return available_bytes(self.device)

    # ---- what a family implements ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def bytes_per_edge(self) -> float:
        """Peak memory of one evaluation per edge of the graph."""

    @abstractmethod
    def _edge_count(self, structure: Structure) -> float:
        """An estimate of the number of edges, cheap enough to ask before every run."""

    @abstractmethod
    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]: ...

    # ---- batching --------------------------------------------------------------------------------------------------

    def _batches(self, atoms: Iterable[AtomsInput]) -> Iterator[list[Structure | FdcoreError]]:
        """Consecutive structures that fit one batch; a structure that fails its check travels as its error."""
        limit = min(
            self.batch_edges,
            MEMORY_SHARE * self.available_bytes() / self.bytes_per_edge,
            BATCH_SECONDS / self.seconds_per_edge,
        )
        return self._divided(atoms, limit)

    def _divided(self, atoms: Iterable[AtomsInput], limit: float) -> Iterator[list[Structure | FdcoreError]]:
        batch: list[Structure | FdcoreError] = []
        edges = 0.0
        for item in atoms:
            try:
                structure: Structure | FdcoreError = self.check(item)
            except FdcoreError as error:
                structure = error
            more = 0.0 if isinstance(structure, FdcoreError) else self._edge_count(structure)
            if batch and edges + more > limit:
                yield batch
                batch, edges = [], 0.0
            batch.append(structure)
            edges += more
        if batch:
            yield batch

    def _run_batch[T: Evaluation | Prediction](
        self, batch: Sequence[Structure | FdcoreError], work: Callable[[Sequence[Structure]], list[T]], *, learn: bool
    ) -> Iterator[T | FdcoreError]:
        good = [s for s in batch if isinstance(s, Structure)]
        results = iter(self._halving(good, work, learn))
        for item in batch:
            yield item if isinstance(item, FdcoreError) else next(results)

    def _halving[T: Evaluation | Prediction](
        self, structures: Sequence[Structure], work: Callable[[Sequence[Structure]], list[T]], learn: bool
    ) -> list[T | FdcoreError]:
        """Work on a batch; out of memory halves it, and a single structure that does not fit becomes an error."""
        if not structures:
            return []
        try:
            if len(structures) == 1:
                self._require_memory(structures[0])
            with self._lock, self._memory_learnt(structures, learn):
                started = time.perf_counter()
                found = work(structures)
                if learn:
                    self._learn_speed(structures, time.perf_counter() - started)
        except (ComputeError, OutOfMemory) as error:
            if isinstance(error, OutOfMemory) and len(structures) > 1:
                self._too_many_edges = min(self._too_many_edges, sum(map(self._edge_count, structures)))
            # One of them may be at fault: halves find which.
            if len(structures) == 1:
                return [error if isinstance(error, ComputeError) else self._no_memory(structures[0])]
            half = len(structures) // 2
            return self._halving(structures[:half], work, learn) + self._halving(structures[half:], work, learn)
        out: list[T | FdcoreError] = []
        for structure, item in zip(structures, found, strict=True):
            try:
                _require_finite(item, self.card.id, structure)
            except ComputeError as error:
                out.append(error)
            else:
                out.append(item)
        return out

    def _learn_speed(self, structures: Sequence[Structure], seconds: float) -> None:
        edges = sum(self._edge_count(s) for s in structures)
        if edges < EDGES_TO_LEARN:
            return
        self._speeds.append(seconds / edges)
        # A median: the first batch of every kind also compiles neighbour-list kernels, which takes seconds.
        if self.speed_is_measured:
            self.seconds_per_edge = statistics.median(self._speeds)

    @contextlib.contextmanager
    def _memory_learnt(self, structures: Sequence[Structure], learn: bool) -> Iterator[None]:
        """Measure what a batch needs beyond what was there, on a GPU."""
        edges = sum(map(self._edge_count, structures))
        if not (learn and self.device.startswith("cuda") and edges >= EDGES_TO_LEARN):
            yield
            return
        import torch

        device = torch.device(self.device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        measured = (torch.cuda.max_memory_allocated(device) - before) / edges
        self._bytes_measured = max(self._bytes_measured or 0.0, measured)

    def _require_memory(self, structure: Structure) -> None:
        if self.memory_bytes(structure) > self.available_bytes():
            raise self._no_memory(structure)

    def _no_memory(self, structure: Structure, *, double_backward: bool = False) -> ComputeError:
        need = self.memory_bytes(structure, double_backward=double_backward)
        return ComputeError(
            # Not how much that is: it changes from moment to moment, and tables are to be the same.
            f"{structure.formula} ({structure.n_atoms} atoms) needs about {need / 1e9:.1f} GB with {self.card.id}, more than is free.",
            "Use a smaller cell, a smaller model, float32, or a machine with more memory.",
        )


@dataclass(frozen=True)
class Prepared:
    """A batch on its way (`Model.prepare`): structures that were checked, each refused one as its error; the family's own graph of the others,
    None where it has none."""

    checked: tuple[Structure | FdcoreError, ...]
    graph: Any


class Model(Predictor):
    """One loaded direct-force model with both of its forces.

    Subclasses implement `_evaluate`, `_gradients`, `_displaced`, `_edge_count` and `bytes_per_edge`.
    """

    # Energies per component of a finite-difference check: 4 where the energy bends within a hundredth of an Å.
    difference_points: int = 2
    # Edges of a batch of gradients, which pass over arrays far more often: small enough for a processor's caches (measured).
    gradient_batch_edges: int = 6_000
    # Whether `pull_back` works: both forces are differentiable functions of the positions in this process.
    pulls_back: bool = False

    # ---- what users call -------------------------------------------------------------------------------------------

    def evaluate(self, atoms: AtomsInput | Iterable[AtomsInput]) -> list[Evaluation]:
        """Energy (eV), F_nc and F_c (N, 3) in eV/Å, U_Delta and u_i of each structure; one Atoms gives a list of one.

        Raises the first error met; `evaluate_each` carries on instead.
        """
        out = []
        for item in self.evaluate_each(_listed(atoms)):
            if isinstance(item, FdcoreError):
                raise item
            out.append(item)
        return out

    def evaluate_each(
        self, atoms: Iterable[AtomsInput], *, edges: float | None = None
    ) -> Iterator[Evaluation | FdcoreError]:
        """As `evaluate`, in input order, with an FdcoreError in the place of each structure that failed.

        edges : divide the list into batches of at most so many, and look at nothing else: on a CPU the same list then gives the same
            numbers to the last bit. Without it batches follow the speed and the memory of the moment.
        """
        for batch in self._batches(atoms) if edges is None else self._divided(atoms, edges):
            yield from self._run_batch(batch, self._evaluate, learn=True)

    def prepare(self, structures: Sequence[Structure]) -> Prepared:
        """What can be done of one batch while another one is evaluated, in another thread: checks, and the neighbour graphs."""
        checked: list[Structure | FdcoreError] = []
        for structure in structures:
            try:
                checked.append(self.check(structure))
            except FdcoreError as error:
                checked.append(error)
        good = [s for s in checked if isinstance(s, Structure)]
        graph = None
        if good:
            # What fails here fails again, and is told, where the graph is made for the evaluation.
            with contextlib.suppress(Exception):
                graph = self._graph(good)
        return Prepared(tuple(checked), graph)

    def evaluate_prepared(self, prepared: Prepared) -> list[Evaluation | FdcoreError]:
        """As `evaluate_each`, of one batch."""
        whole = sum(isinstance(s, Structure) for s in prepared.checked)

        def work(structures: Sequence[Structure]) -> list[Evaluation]:
            # Halves need graphs of their own.
            return self._evaluate_graph(structures, prepared.graph if len(structures) == whole else None)

        return list(self._run_batch(prepared.checked, work, learn=True))

    def gradients(
        self, atoms: AtomsInput | Iterable[AtomsInput], *, method: GradientMethod = "auto", strain: bool = False
    ) -> list[Gradients]:
        """grad U_Delta (N, 3) in eV/Å^2 and grad E (N, 3) in eV/Å of each structure (what eq. 3 of the paper needs).

        method : "double-backward" is exact and differentiates through F_c = -dE/dR; "finite-difference" replaces only the
            Hessian-vector product by a central difference of dE/dR along the force difference at fixed graph, and needs
            about a fifth of the memory; "one-sided" takes both terms from one more pass at positions moved along the force
            difference: about 1 % off in single precision, and the cheapest, good enough to climb by; "auto" takes the first
            unless the second is all that fits.
        strain : also the derivatives with respect to a deformation of the cell; crystals only.

        Raises the first error met; `gradients_each` carries on instead.
        """
        out = []
        for item in self.gradients_each(_listed(atoms), method=method, strain=strain):
            if isinstance(item, FdcoreError):
                raise item
            out.append(item)
        return out

    def gradients_each(
        self, atoms: Iterable[AtomsInput], *, method: GradientMethod = "auto", strain: bool = False
    ) -> Iterator[Gradients | FdcoreError]:
        """As `gradients`, in input order, with an FdcoreError in the place of each structure that failed.

        Consecutive structures share one graph and one double backward, up to `gradient_batch_edges`. How they are divided
        depends on nothing but the structures: the same list gives the same numbers to the last bit on a CPU.
        """
        if method not in GRADIENT_METHODS:
            raise UsageError(f"There is no gradient method {method!r}.", f"Use {', '.join(GRADIENT_METHODS)}.")
        for batch in self._divided(atoms, self.gradient_batch_edges):
            good = [s for s in batch if isinstance(s, Structure)]
            results = iter(self._gradients_halving(good, method, strain))
            for item in batch:
                yield item if isinstance(item, FdcoreError) else next(results)

    def _gradients_halving(
        self, structures: Sequence[Structure], method: GradientMethod, strain: bool
    ) -> list[Gradients | FdcoreError]:
        """Gradients of a batch. Memory that is short halves it; a single structure that is too large for "auto" gets the
        low-memory form, and one that is too large for that an error."""
        if not structures:
            return []
        exact = method in ("auto", "double-backward")
        need = sum(self.memory_bytes(s, double_backward=exact) for s in structures)
        fits = need < MEMORY_SHARE * self.available_bytes()
        if fits or (len(structures) == 1 and method != "auto"):
            try:
                with self._lock:
                    found = self._gradients_of(structures, "double-backward" if exact else method, strain)
                return [self._checked(s, g) for s, g in zip(structures, found, strict=True)]
            except ComputeError as error:
                if len(structures) == 1:
                    return [error]
            except OutOfMemory:
                pass
        if len(structures) > 1:
            half = len(structures) // 2
            return self._gradients_halving(structures[:half], method, strain) + self._gradients_halving(
                structures[half:], method, strain
            )
        if method == "auto":
            return self._gradients_halving(structures, "finite-difference", strain)
        return [self._no_memory(structures[0])]

    def _checked(self, structure: Structure, found: Gradients) -> Gradients | FdcoreError:
        try:
            _require_finite(found.evaluation, self.card.id, structure)
        except ComputeError as error:
            return error
        if not np.isfinite(found.force_delta_gradient).all():
            return ComputeError(
                f"{self.card.id} gave a gradient of U_Delta that is not finite for {structure.formula}."
            )
        return found

    def displaced(self, atoms: AtomsInput, displacements: NDArray[np.float64]) -> list[Evaluation]:
        """Evaluations at positions + displacements[m], (M, N, 3) in Å, with the neighbour graph of the undisplaced structure.

        What finite-difference checks need: E(R) itself jumps when the graph of a capped model changes.
        """
        structure = self.check(atoms)
        shifts = np.asarray(displacements, dtype=np.float64)
        if shifts.ndim != 3 or shifts.shape[1:] != (structure.n_atoms, 3):
            raise UsageError(f"Displacements of shape (M, {structure.n_atoms}, 3) are needed, not {shifts.shape}.")
        with self._lock:
            return self._alone(structure, lambda: self._displaced(structure, shifts))

    def pull_back(
        self, atoms: AtomsInput, vectors: NDArray[np.float64], *, force: ForceName = "direct"
    ) -> NDArray[np.float64]:
        """v J, (M, N, 3) in eV/Å^2, for vectors v (M, N, 3) without unit and J = dF/dR the Jacobian of one of the forces, by automatic
        differentiation at fixed graph. With unit vectors these are rows of J. What both forces share (a repulsion of close atoms) is
        part of either, as it is when the model is run.

        Raises UsageError where the model shows no derivatives (`pulls_back`): `displaced` has columns of J as differences.
        """
        structure = self.check(atoms)
        given = np.asarray(vectors, dtype=np.float64)
        if given.ndim != 3 or given.shape[1:] != (structure.n_atoms, 3):
            raise UsageError(f"Vectors of shape (M, {structure.n_atoms}, 3) are needed, not {given.shape}.")
        if self.pulls_back and self.memory_bytes(structure, double_backward=True) > self.available_bytes():
            raise self._no_memory(structure, double_backward=True)
        with self._lock:
            found = self._alone(structure, lambda: self._pull_back(structure, given, force))
        if not np.isfinite(found).all():
            raise ComputeError(f"{self.card.id} gave derivatives that are not finite for {structure.formula}.")
        return found

    def _alone[T](self, structure: Structure, run: Callable[[], T]) -> T:
        try:
            return run()
        except OutOfMemory as error:
            raise self._no_memory(structure) from error

    def potential(self, structures: Sequence[Structure]) -> Potential:
        """These structures (checked before) as one batch whose atoms will move; families with a faster way override it."""
        from fdcore.models.potential import PlainPotential

        return PlainPotential(self, structures)

    # ---- what a family implements ----------------------------------------------------------------------------------

    @abstractmethod
    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]: ...

    def _graph(self, structures: Sequence[Structure]) -> Any:
        """Families that can make graphs beside an evaluation override this and `_evaluate_graph`; a graph is used once."""
        return None

    def _evaluate_graph(self, structures: Sequence[Structure], graph: Any) -> list[Evaluation]:
        """`graph`: what `_graph` gave for these structures, or None."""
        return self._evaluate(structures)

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Families override it by a pass that leaves F_c out."""
        return [Prediction(e.energy, e.forces_direct) for e in self._evaluate(structures)]

    @abstractmethod
    def _gradients(self, structure: Structure, method: GradientMethod) -> Gradients: ...

    def _gradients_of(
        self, structures: Sequence[Structure], method: GradientMethod, strain: bool
    ) -> Sequence[Gradients]:
        """Gradients of a whole batch; families that can do them in one pass, or with strain, override it."""
        if strain:
            raise UsageError(
                f"The family of {self.card.id} has no gradient with respect to the cell.", "Attack at fixed cell."
            )
        return [self._gradients(s, method) for s in structures]

    @abstractmethod
    def _displaced(self, structure: Structure, displacements: NDArray[np.float64]) -> list[Evaluation]: ...

    def _pull_back(self, structure: Structure, vectors: NDArray[np.float64], force: ForceName) -> NDArray[np.float64]:
        """Families whose forces torch can differentiate here override it, and say `pulls_back`; the others refuse."""
        raise UsageError(
            f"{self.card.id} shows no derivatives of its forces in this process.", "Take differences of `displaced`."
        )


def check_covered(card: ModelCard, structure: Structure) -> None:
    """UnsupportedStructureError for an element outside the training set, or charge and spin missing where they are needed."""
    unknown = card.covers(structure.numbers)
    if unknown:
        raise UnsupportedStructureError(
            f"{card.id} was not trained on {_and(unknown)}, which {structure.formula} contains.",
            _covering_hint(structure),
        )
    if card.needs_charge_spin and (structure.charge is None or structure.spin is None):
        raise UnsupportedStructureError(
            f"{card.id} needs the total charge and the spin multiplicity of {structure.formula}.",
            "Give both: charge=0 spin=1 in the comment line of the extxyz, --charge and --spin, or the fields on the page.",
        )


def as_structure(atoms: AtomsInput) -> Structure:
    """A validated Structure from either kind of input; ase.Atoms are validated, a Structure already was."""
    if isinstance(atoms, Structure):
        return atoms
    if isinstance(atoms, ase.Atoms):
        return validate(Structure.from_atoms(atoms))
    raise UsageError(f"ase.Atoms or fdcore Structures can be evaluated, not {type(atoms).__name__}.")


def estimated_edges(structure: Structure, cutoff_A: float, neighbour_cap: float | None) -> float:
    """Edges of a neighbour graph from the mean density and the cutoff sphere, bounded by the cap and, for molecules, by
    the number of pairs. Cheap: asked before every run."""
    if structure.periodic:
        density = structure.n_atoms / abs(np.linalg.det(structure.cell))
    else:
        # A molecule fills its bounding box and half a bond length around it.
        density = structure.n_atoms / np.prod(np.ptp(structure.positions, axis=0) + 1.5)
    per_atom = density * 4 / 3 * np.pi * cutoff_A**3
    if not structure.periodic:
        per_atom = min(per_atom, structure.n_atoms - 1)
    return structure.n_atoms * min(per_atom, neighbour_cap or np.inf)


def guessed_seconds_per_edge(card: ModelCard) -> float:
    """What the card says; else from the size. Measured on two cores: 0.7 ms per edge for the 25.6 M parameters of Orb v3, both forces."""
    return card.seconds_per_edge or 3e-11 * card.n_parameters


# What an evaluation of both forces takes however few atoms there are (s): a thousand small operations, one after the other. Measured on two
# cores for 8 atoms: 8 ms with the embedded model.
LEAST_SECONDS = 0.01


def guessed_bytes_per_edge(card: ModelCard) -> float:
    """For models that are not loaded yet, what the card says; else from the size: 65 kB for Orb v3 (5 wide layers), 43 kB for Orb v2 xs, 9 kB
    for the embedded."""
    return card.bytes_per_edge or 4e-3 * card.n_parameters


def available_bytes(device: str) -> float:
    """Free memory on `device` ("cpu", "cuda", "cuda:1", "mps"), in bytes."""
    if device.startswith("cuda"):
        import torch

        # What torch keeps for later use is free for it, though not for others.
        place = torch.device(device)
        kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return float(torch.cuda.mem_get_info(place)[0] + kept)
    try:
        with open("/proc/meminfo") as lines:
            free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        # No /proc (macOS): half of the physical memory is what a user's desktop usually leaves.
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(free, _cgroup_bytes())


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cgroup_bytes() -> float:
    """What a container's limit leaves; infinite outside one."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            text = limit.read().strip()
            return float("inf") if text == "max" else float(text) - float(used.read())
    except (OSError, ValueError):
        return float("inf")


def _listed(atoms: AtomsInput | Iterable[AtomsInput]) -> Iterable[AtomsInput]:
    return [atoms] if isinstance(atoms, (ase.Atoms, Structure)) else atoms


def _covering_hint(structure: Structure) -> str:
    from fdcore.models import models_covering  # the registry imports this module

    ids = [card.id for card in models_covering(structure.numbers)]
    if not ids:
        return "No listed direct-force model covers all of its elements."
    return f"These models cover all of its elements: {', '.join(ids)}."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _require_finite(found: Evaluation | Prediction, model_id: str, structure: Structure) -> None:
    arrays = (
        (found.forces_driving,) if isinstance(found, Prediction) else (found.forces_direct, found.forces_conservative)
    )
    if not (np.isfinite(found.energy) and all(np.isfinite(a).all() for a in arrays)):
        raise ComputeError(
            f"{model_id} gave an energy or a force that is not a finite number for {structure.formula}.",
            "Look at the structure: two atoms may nearly coincide.",
        )
