"""EquiformerV2 (fairchem-core 1.10) behind the contract of `Model`: the network runs in a worker, in an environment of its own.

Source: Liao et al. 2024, EquiformerV2 (arXiv:2306.12059). What is computed, and why its gradient needs care, is in
`envs/eqv2/worker.py` and `envs/eqv2/exact.py`; this file checks, asks and makes records of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fdcore.errors import UsageError, WeightsError
from fdcore.models.apart import Apart, another_size, refuse, split, started
from fdcore.models.base import GradientMethod, Model, estimated_edges, file_sha256
from fdcore.models.eqv2_cards import (
    HUB_PAGE,
    HUB_REPOSITORY,
    LICENCE,
    bytes_per_edge,
    file_name,
    is_dens,
    seconds_per_edge,
)
from fdcore.models.isolated import Arrays, Worker
from fdcore.models.potential import Forces, Potential
from fdcore.records import Evaluation, Gradients, ModelCard, Prediction, Structure

PACKAGES = {"fairchem-core": "1.10.0"}
# All that are as near as the 21st neighbour are kept; in the crystals tried these were up to three more.
KEPT_NEIGHBOURS = 22
# A gradient by double backward, or a displaced structure, takes a few evaluations' time.
GRADIENT_COST = 6.0
# Below this U_Delta (eV/Å) its gradient is numerical noise: a square root has no gradient at zero.
ZERO_FORCE_DELTA = 1e-10


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> EqV2Model:
    """Start the worker (its environment is built on first use) on the hub's file or a local one of the same architecture.

    Raises WeightsError when the file is damaged, belongs to another architecture or may not be downloaded; BuildError.
    """
    file = weights or _download(card)
    order = {"weights": str(file.absolute()), "device": device, "dtype": dtype}
    try:
        worker = started("eqv2", PACKAGES, order)
    except WeightsError as error:
        raise WeightsError(
            f"{file.name} cannot be loaded as {card.id}: {error.message}",
            "Check that the file is complete and belongs to this model (--model).",
        ) from error
    _check_architecture(card, file, worker)
    facts = worker.facts
    known = replace(
        card,
        n_parameters=facts["parameters"],
        seconds_per_edge=seconds_per_edge(facts["parameters"]),
        bytes_per_edge=bytes_per_edge(facts["layers"], facts["lmax"], facts["channels"]),
    )
    model = EqV2Model(known, worker, device, dtype)
    model.weights_sha256 = file_sha256(file)
    return model


class EqV2Model(Apart, Model):
    """An EquiformerV2 with its direct force head."""

    # Gaussians of 0.04 Å width describe the distances: a two-point difference of 1e-4 Å is off by 1e-5.
    difference_points = 4

    # ---- what the contract asks for --------------------------------------------------------------------------------

    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        return _records(structures, self.ask("evaluate", structures, direct=True, conservative=True, pairs=False))

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        found = self.ask("evaluate", structures, direct=True, conservative=False, pairs=False)
        parts = split(structures, found["forces_direct"])
        return [Prediction(float(e), f) for e, f in zip(found["energy"], parts, strict=True)]

    def _displaced(self, structure: Structure, displacements: NDArray[np.float64]) -> list[Evaluation]:
        per_order = max(1, int(self.batch_edges // max(1.0, self._edge_count(structure))))
        out: list[Evaluation] = []
        for start in range(0, len(displacements), per_order):
            part = displacements[start : start + per_order]
            found = self.ask("displaced", [structure], {"displacements": part}, cost=float(len(part)))
            out += _records([structure] * len(part), found)
        return out

    def _gradients(self, structure: Structure, method: GradientMethod) -> Gradients:
        return self._gradients_of([structure], method, strain=False)[0]

    def _gradients_of(self, structures: Sequence[Structure], method: GradientMethod, strain: bool) -> list[Gradients]:
        if strain:
            raise UsageError(f"{self.card.id} has no gradient with respect to the cell here.", "Attack at fixed cell.")
        found = self.ask("gradients", structures, cost=GRADIENT_COST, method=method)
        out = []
        for evaluation, slope in zip(_records(structures, found), split(structures, found["slope"]), strict=True):
            # U = sqrt(s / 3N), so grad U = grad s / (6 N U): differentiating s keeps U = 0 free of 0/0.
            at_zero = evaluation.force_delta < ZERO_FORCE_DELTA
            scale = 0.0 if at_zero else 1 / (6 * len(slope) * evaluation.force_delta)
            out.append(Gradients(evaluation, slope * scale, -evaluation.forces_conservative, at_zero))
        return out

    def potential(self, structures: Sequence[Structure]) -> Potential:
        return EqV2Potential(self, structures)

    @property
    def bytes_per_edge(self) -> float:
        return self.card.bytes_per_edge * np.dtype(self.dtype).itemsize / 4

    def _edge_count(self, structure: Structure) -> float:
        return estimated_edges(structure, self.card.cutoff_A, KEPT_NEIGHBOURS)


class EqV2Potential(Potential):
    """Both forces, or the one that is asked for, at changing positions; a new graph every time, as its neighbours are capped."""

    def __init__(self, model: EqV2Model, structures: Sequence[Structure]) -> None:
        super().__init__(structures, "cpu")
        self._model = model
        self._ends = np.cumsum([s.n_atoms for s in self.structures])

    def evaluate(self, positions: torch.Tensor, *, direct: bool, conservative: bool) -> Forces:
        parts = np.split(positions.detach().cpu().numpy(), self._ends[:-1])
        if not torch.isfinite(positions).all():
            return self._not_a_number(positions, direct, conservative)
        moved = [replace(s, positions=p) for s, p in zip(self.structures, parts, strict=True)]
        with self._model._lock:
            found = self._model.ask("evaluate", moved, direct=direct, conservative=conservative, pairs=True)
        tensors = {name: torch.as_tensor(array) for name, array in found.items()}
        return Forces(
            energy=tensors["energy"],
            forces_direct=tensors.get("forces_direct"),
            forces_conservative=tensors.get("forces_conservative"),
            edges=tensors["edges"],
            lengths=tensors["lengths"],
        )

    def _not_a_number(self, positions: torch.Tensor, direct: bool, conservative: bool) -> Forces:
        """What a simulation that has blown up gets: nothing but NaN, in the right shape."""
        nothing = torch.full_like(positions, torch.nan)
        energy = torch.full((len(self.structures),), torch.nan, dtype=torch.float64)
        pairs = torch.zeros((2, 0), dtype=torch.long)
        return Forces(energy, nothing if direct else None, nothing if conservative else None, pairs, energy[:0])


def _records(structures: Sequence[Structure], found: Arrays) -> list[Evaluation]:
    return [
        Evaluation(float(energy), direct, conservative, graph_tie_A=None if np.isnan(tie) else float(tie))
        for energy, tie, direct, conservative in zip(
            found["energy"],
            found["tie"],
            split(structures, found["forces_direct"]),
            split(structures, found["forces_conservative"]),
            strict=True,
        )
    ]


def _check_architecture(card: ModelCard, file: Path, worker: Worker) -> None:
    facts = worker.facts
    problems = [another_size(card, facts["parameters"])]
    if facts["dens"] != is_dens(card):
        problems.append("a DeNS model" if facts["dens"] else "no DeNS model")
    refuse(worker, card, file.name, [p for p in problems if p])


def _download(card: ModelCard) -> Path:
    """The file from the hub, or from its cache. The hub's errors derive from each other: the order of the clauses matters."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    local = f"or fetch {file_name(card)} elsewhere and pass it with --weights"
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, file_name(card)))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise WeightsError(
            f"The weights of {card.id} are gated: their licence ({LICENCE}) has to be accepted.",
            f"Request access on {HUB_PAGE}, then log in with a token that may read gated repositories (`hf auth login`, or HF_TOKEN), "
            f"{local}.",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"The weights of {card.id} are not on this machine and the hub cannot be reached. They are gated ({LICENCE}).",
            f"With a network: request access on {HUB_PAGE} and log in (`hf auth login`, or HF_TOKEN); {local}.",
        ) from error
