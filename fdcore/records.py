"""The frozen records that travel up: structures, evaluations, gradients, model cards, verdicts, scores.

Arrays inside a record are read-only. Lengths in Å, energies in eV, each force in eV/Å.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from fdcore import delta
from fdcore.errors import UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def frozen_array(values: ArrayLike, dtype: type = np.float64) -> NDArray:
    """A read-only, C-contiguous copy of `values`."""
    array = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Structure:
    """One validated structure.

    numbers (N,) atomic numbers; positions (N, 3) Å, not wrapped; cell (3, 3) Å rows, zeros when not periodic;
    pbc all True or all False (anything else is refused before a Structure exists).
    charge in e and spin multiplicity are None where the file is silent. `file` and `index` name the source; `labels`
    holds reference results that came with the file (`energy_eV`, `forces_eV_per_A`, and as text in JSON their `provenance`
    where the file tells it), `tags` what else it says of this structure, in short (`system`, `sigma_a`; names in lower case),
    `warnings` what a reader had to decide.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray
    pbc: tuple[bool, bool, bool]
    charge: int | None = None
    spin: int | None = None
    file: str = ""
    index: int = 0
    labels: Mapping[str, FloatArray | float | str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", frozen_array(self.numbers, np.int64))
        object.__setattr__(self, "positions", frozen_array(self.positions))
        object.__setattr__(self, "cell", frozen_array(self.cell))
        object.__setattr__(self, "pbc", tuple(bool(p) for p in self.pbc))

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms, *, file: str = "", index: int = 0) -> Structure:
        """Copy an ase.Atoms without validating it (`fdcore.structures.validate` does that).

        Charge and spin come from `info`; UsageError when they are not whole numbers.
        """
        return cls(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=tuple(atoms.pbc),
            charge=_whole(atoms.info, "charge", "total_charge"),
            spin=_whole(atoms.info, "spin", "spin_multiplicity", "multiplicity"),
            file=file,
            index=index,
        )

    def to_atoms(self) -> ase.Atoms:
        """An independent ase.Atoms with charge and spin in `info` where they are known."""
        atoms = ase.Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
        if self.charge is not None:
            atoms.info["charge"] = self.charge
        if self.spin is not None:
            atoms.info["spin"] = self.spin
        return atoms

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def periodic(self) -> bool:
        return all(self.pbc)

    @property
    def kind(self) -> StructureKind:
        return "periodic" if self.periodic else "molecule"

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(chemical_symbols[z] for z in self.numbers)

    @cached_property
    def formula(self) -> str:
        """Metals first, then the rest in the order of the periodic table's custom: ASE's `metal` notation."""
        return ase.Atoms(numbers=self.numbers).get_chemical_formula(mode="metal", empirical=False)

    @cached_property
    def content_id(self) -> str:
        """SHA-256 of what a model sees: numbers, positions, cell, pbc, charge, spin; not of names."""
        h = hashlib.sha256(b"fdcore.Structure.1")
        h.update(self.numbers.tobytes() + self.positions.tobytes() + self.cell.tobytes())
        h.update(repr((self.pbc, self.charge, self.spin)).encode())
        return h.hexdigest()


def _whole(info: Mapping[str, object], *keys: str) -> int | None:
    """The first of these keys that is there, as a whole number."""
    for key in keys:
        value = info.get(key)
        if value is None:
            continue
        if isinstance(value, (int, float, np.integer, np.floating)) and float(value).is_integer():
            return int(value)
        raise UsageError(f"{key} = {value!r} is not a whole number.", f"Give {key} as an integer, e.g. {key}=0.")
    return None


@dataclass(frozen=True)
class Evaluation:
    """One structure seen by one model: energy (eV), forces_direct and forces_conservative (N, 3) in eV/Å.

    confidence: (N,) per-atom expected error of the direct force in eV/Å as the model's own confidence head sees it, or None.
    graph_tie_A: for models that keep only the k nearest neighbours, the smallest gap (Å) between the last neighbour that
    was kept and the first that was dropped; None where there is no cap. A gap of zero makes the answer depend on tie-breaking.
    """

    energy: float
    forces_direct: FloatArray
    forces_conservative: FloatArray
    confidence: FloatArray | None = None
    graph_tie_A: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "forces_direct", frozen_array(self.forces_direct))
        object.__setattr__(self, "forces_conservative", frozen_array(self.forces_conservative))
        if self.confidence is not None:
            object.__setattr__(self, "confidence", frozen_array(self.confidence))

    @cached_property
    def force_delta(self) -> float:
        """U_Delta in eV/Å (eq. 2)."""
        return delta.force_delta(self.forces_direct, self.forces_conservative)

    @cached_property
    def force_delta_per_atom(self) -> FloatArray:
        """u_i (N,) in eV/Å."""
        return frozen_array(delta.force_delta_per_atom(self.forces_direct, self.forces_conservative))


@dataclass(frozen=True)
class Prediction:
    """One structure seen by a member of an ensemble: energy (eV) and the force that the model is run with, forces_driving (N, 3) in
    eV/Å: F_nc of a direct model, F_c of a conservative one."""

    energy: float
    forces_driving: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "forces_driving", frozen_array(self.forces_driving))


@dataclass(frozen=True)
class Gradients:
    """What an adversarial step needs: grad U_Delta (N, 3) in eV/Å^2 and grad E (N, 3) in eV/Å, with the evaluation they belong to.

    Where U_Delta is exactly zero it has no gradient; zeros are returned and `at_zero` says so. With strain asked for, also the
    derivatives with respect to a homogeneous deformation r -> r (1 + e) of atoms and cell, symmetric (3, 3): that of U_Delta
    in eV/Å, that of E in eV (the virial).
    """

    evaluation: Evaluation
    force_delta_gradient: FloatArray
    energy_gradient: FloatArray
    at_zero: bool = False
    force_delta_strain_gradient: FloatArray | None = None
    energy_strain_gradient: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in (
            "force_delta_gradient",
            "energy_gradient",
            "force_delta_strain_gradient",
            "energy_strain_gradient",
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen_array(getattr(self, name)))


# "local": made on this machine by fine-tuning. "file": only from a file that --weights names.
WeightsPlace = Literal["embedded", "local", "download", "gated", "file"]
ModelKind = Literal["direct", "conservative"]


StructureKind = Literal["periodic", "molecule"]


@dataclass(frozen=True)
class ModelCard:
    """What a user must know of a model before trusting it. `kind` is what the model's own users call its force.

    `trained_on` are the kinds of structure that its training data held, as far as its makers say; `member_of` names the model of
    which it is only another seed.
    """

    id: str
    family: str
    kind: ModelKind
    summary: str
    training_data: str
    reference_method: str
    elements: tuple[str, ...]
    licence: str
    weights: WeightsPlace
    n_parameters: int
    cutoff_A: float
    neighbour_cap: int | None
    needs_charge_spin: bool = False
    # Whether atoms further apart than the cutoff act on each other all the same (attention over all atoms).
    acts_beyond_cutoff: bool = False
    periodic: str = "crystals, surfaces and molecules"
    trained_on: tuple[StructureKind, ...] = ("periodic", "molecule")
    member_of: str = ""
    confidence_head: bool = False
    download_MB: float = 0.0
    gradient_proof: str = ""
    held_out: Mapping[str, float] = field(default_factory=dict)
    not_for: str = ""
    source: str = ""
    citation: str = ""
    # Where the package's own loader fetches the weights from; empty for embedded ones.
    address: str = ""
    sha256: str = ""
    # The optional package that it needs, called as the module that it brings is; empty for none.
    extra: str = ""
    # What one edge of the neighbour graph costs in one evaluation (one core, single precision), for estimates made before the model is
    # loaded; 0 where the number of parameters says it well enough.
    seconds_per_edge: float = 0.0
    bytes_per_edge: float = 0.0

    def covers(self, numbers: ArrayLike) -> tuple[str, ...]:
        """The element symbols in `numbers` that the model was NOT trained on, sorted; empty when all are covered."""
        known = set(self.elements)
        seen = {chemical_symbols[int(z)] for z in np.unique(np.asarray(numbers))}
        return tuple(sorted(seen - known))


EvidenceStatus = Literal["pass", "look", "fail", "unknown"]
VerdictLevel = Literal["consistent", "caution", "unreliable", "unknown"]


@dataclass(frozen=True)
class Evidence:
    """One line of evidence: what was looked at, how it came out, in words; `atoms` are the indices that caused it."""

    name: str
    status: EvidenceStatus
    text: str
    atoms: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Words first: `level`, one `sentence`, then the evidence. `percentile`: where U stands in the model's reference
    distribution (0-100), None when the model has none."""

    level: VerdictLevel
    sentence: str
    evidence: tuple[Evidence, ...]
    percentile: float | None = None


@dataclass(frozen=True)
class Score:
    """A structure, its evaluation by one model, and the verdict: one row of a result."""

    structure: Structure
    model_id: str
    evaluation: Evaluation
    verdict: Verdict


@dataclass(frozen=True)
class Failure:
    """A file or structure that could not be scored: kept as a row with its reason."""

    file: str
    error: str
    hint: str
    index: int | None = None
