"""The MACE family (mace-torch 0.3.16): conservative models in a worker, in an environment of their own, for the package pins an e3nn that
fairchem-core of ours refuses.

Source: Batatia et al. 2022, MACE: Higher Order Equivariant Message Passing Neural Networks (arXiv:2206.07697).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from fdcore.errors import WeightsError
from fdcore.models.apart import Apart, another_size, refuse, split, started
from fdcore.models.base import estimated_edges, file_sha256
from fdcore.models.isolated import Worker
from fdcore.models.mace_cards import cached_file, costs
from fdcore.records import ModelCard, Prediction, Structure

PACKAGES = {"mace-torch": "0.3.16"}


def load_predictor(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> MacePredictor:
    """Start the worker (its environment is built on first use) on a local file, or on the published one, which the package downloads.

    A checkpoint is a pickled module: a file must come from a place you trust.
    Raises WeightsError when the file is damaged, is another model or cannot be downloaded; BuildError.
    """
    order = {
        "weights": None if weights is None else str(weights.absolute()),
        "address": card.address,
        "device": device,
        "dtype": dtype,
    }
    if weights is None and cached_file(card) is None:
        # Whose licence applies is known before anything is fetched; the worker's own words go to its log.
        print(f"fdcore: fetching {card.id} from {card.address}; licence: {card.licence}", file=sys.stderr, flush=True)
    try:
        worker = started("mace", PACKAGES, order)
    except WeightsError as error:
        raise _unreadable(card, weights, error.message) from error
    file = Path(worker.facts["file"])
    elements = tuple(chemical_symbols[z] for z in worker.facts["elements"])
    refuse(worker, card, file.name, _differences(card, worker, elements))
    facts = worker.facts
    known = replace(
        card,
        n_parameters=facts["parameters"],
        cutoff_A=facts["cutoff_A"],
        elements=elements,
        **costs(facts["layers"], facts["channels"], facts["width"]),
    )
    model = MacePredictor(known, worker, device, dtype)
    model.weights_sha256 = file_sha256(file)
    return model


class MacePredictor(Apart):
    """Energy and F_c = -dE/dR."""

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        found = self.ask("predict", structures)
        parts = split(structures, found["forces_conservative"])
        return [Prediction(float(e), f) for e, f in zip(found["energy"], parts, strict=True)]

    @property
    def bytes_per_edge(self) -> float:
        return self.card.bytes_per_edge * np.dtype(self.dtype).itemsize / 4

    def _edge_count(self, structure: Structure) -> float:
        return estimated_edges(structure, self.card.cutoff_A, None)


def _differences(card: ModelCard, worker: Worker, elements: tuple[str, ...]) -> list[str]:
    """In words how the file differs from the card."""
    facts = worker.facts
    found = [another_size(card, facts["parameters"])]
    if abs(facts["cutoff_A"] - card.cutoff_A) > 1e-3:
        found.append(f"of cutoff {facts['cutoff_A']:g} Å instead of {card.cutoff_A:g} Å")
    if set(elements) != set(card.elements):
        found.append(f"of {len(elements)} elements instead of {len(card.elements)}")
    return [f for f in found if f]


def _unreadable(card: ModelCard, weights: Path | None, reason: str) -> WeightsError:
    if weights is not None:
        return WeightsError(
            f"{weights.name} cannot be loaded as {card.id}: {reason}",
            "It must be a model that mace saved (.model), complete, and belong to this name (--model).",
        )
    return WeightsError(
        f"The weights of {card.id} could not be had from {card.address}: {reason}",
        f"Check the network, or fetch that file elsewhere and pass it with --weights. Licence: {card.licence}.",
    )
