"""The CHGNet family (chgnet 0.4.2): a conservative model of inorganic crystals, as a member of an ensemble and as a reference.

Source: Deng et al. 2023. The package computes in single precision; in double its graph is made again from the coordinates.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list

from fdcore.errors import UnsupportedStructureError, WeightsError
from fdcore.models.base import AtomsInput, Predictor, estimated_edges, file_sha256
from fdcore.models.process_settings import settings_kept
from fdcore.models.torch_calls import array, guarded
from fdcore.records import ModelCard, Prediction, Structure

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from chgnet.graph.converter import CrystalGraphConverter
    from chgnet.model.model import CHGNet
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as Crystal

# More and it wants gigabytes where cells are compressed (FACTS of this project, measured).
BATCH = 8
# The angles between bonds shorter than 3 Å come on top of the edges: measured with salt and with metals.
BYTES_PER_EDGE = 30_000


def load_predictor(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> ChgnetPredictor:
    """The weights in the wheel, or those of a file that the package saved (a pickle: only from a place you trust).

    Raises WeightsError when the file is not such a file.
    """
    with settings_kept():
        if weights is None:
            module: Any = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
        else:
            try:
                module = CHGNet.from_file(str(weights))
            except Exception as error:  # the boundary: a file fails in its own way
                raise WeightsError(
                    f"{weights.name} cannot be loaded as {card.id}: {str(error)[:200]}",
                    "It must be a file that CHGNet itself saved.",
                ) from error
    model = ChgnetPredictor(card, module, device, dtype)
    if weights is not None:
        model.weights_sha256 = file_sha256(weights)
    return model


class ChgnetPredictor(Predictor):
    """Energy and F_c = -dE/dR of a crystal."""

    reads_single_atoms = False

    def __init__(self, card: ModelCard, module: Any, device: str, dtype: str) -> None:
        super().__init__(card, device, dtype)
        self.torch_dtype = getattr(torch, dtype)
        # Reference energies know nothing of positions, and the package sums them in single precision only.
        self._references = module.composition_model.to(device).requires_grad_(False)
        module.composition_model = None
        self.module = module.to(device=device, dtype=self.torch_dtype).eval().requires_grad_(False)
        self._converter = CrystalGraphConverter(
            atom_graph_cutoff=module.graph_converter.atom_graph_cutoff,
            bond_graph_cutoff=module.graph_converter.bond_graph_cutoff,
            on_isolated_atoms="ignore",
        )

    def check(self, atoms: AtomsInput) -> Structure:
        structure = super().check(atoms)
        if not structure.periodic:
            raise UnsupportedStructureError(
                f"{self.card.id} reads crystals only, and {structure.formula} is not periodic in three directions.",
                "Leave it out, or choose a model of molecules.",
            )
        neighbours = primitive_neighbor_list(
            "i", structure.pbc, structure.cell, structure.positions, self.card.cutoff_A
        )
        alone = structure.n_atoms - len(np.unique(neighbours))
        if alone:
            raise UnsupportedStructureError(
                f"{alone} of the {structure.n_atoms} atoms of {structure.formula} are alone within {self.card.cutoff_A:g} Å, which "
                f"{self.card.id} does not compute.",
                "Leave it out, or choose a model of molecules.",
            )
        return structure

    @property
    def bytes_per_edge(self) -> float:
        return BYTES_PER_EDGE * self.torch_dtype.itemsize / 4

    def _edge_count(self, structure: Structure) -> float:
        return estimated_edges(structure, self.card.cutoff_A, None)

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            out = []
            for start in range(0, len(structures), BATCH):
                out += self._of_batch(structures[start : start + BATCH])
            return out

        return guarded(self.device, run)

    def _of_batch(self, structures: Sequence[Structure]) -> list[Prediction]:
        graphs = [self._graph(s) for s in structures]
        with torch.enable_grad():
            found = self.module(graphs, task="ef")
        # Per atom, both.
        energies = (array(found["e"]) + array(self._references(graphs))) * np.array([s.n_atoms for s in structures])
        return [Prediction(float(e), array(f)) for e, f in zip(energies, found["f"], strict=True)]

    def _graph(self, structure: Structure) -> Any:
        crystal = Crystal(
            Lattice(structure.cell), list(structure.symbols), structure.positions, coords_are_cartesian=True
        )
        graph = self._converter(crystal)
        graph.atom_frac_coord = torch.tensor(crystal.frac_coords, dtype=self.torch_dtype, requires_grad=True)
        graph.lattice = torch.tensor(crystal.lattice.matrix, dtype=self.torch_dtype)
        graph.neighbor_image = graph.neighbor_image.to(self.torch_dtype)
        return graph.to(self.device)
