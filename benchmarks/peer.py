"""What one does without this package: orb-models as it is installed, F_nc from its ASE calculator and F_c from a second evaluation."""

from __future__ import annotations

import ase
import numpy as np
import torch
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
from orb_models.forcefield.inference.calculator import ORBCalculator
from orb_models.forcefield.pretrained import orb_v3_direct_architecture

from fdcore import data
from fdcore.models import small_orb
from fdcore.models.orb import OrbModel


class Peer:
    """The network of a loaded model in the package's own modules: fdcore changes those of the models that it loads."""

    def __init__(self, model: OrbModel) -> None:
        if hasattr(model.module, "small_orb_config"):
            self._module, _, _, _ = small_orb.load(data.path("models", f"{model.card.id}.safetensors"), model.device)
        else:
            self._module = orb_v3_direct_architecture(device="cpu").to(model.device).eval()
            self._module.load_state_dict(model.module.state_dict())
        self._module.requires_grad_(False)
        self._adapter: ForcefieldAtomsAdapter = model.adapter
        self._device = model.device
        self.calculator = ORBCalculator(self._module, self._adapter, device=self._device)

    def two_calls(self, atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
        """F_nc and F_c (N, 3) in eV/Å."""
        self.calculator.calculate(atoms, ["energy", "forces"], ["positions"])
        batch = self._adapter.from_ase_atoms(atoms, device=self._device)
        vectors, _, _ = batch.compute_differentiable_edge_vectors(use_stress_displacement=False, use_rotation=False)
        batch.edge_features["vectors"] = vectors
        energy = self._module.predict(batch)["energy"]
        (gradient,) = torch.autograd.grad(energy.sum(), batch.node_features["positions"])
        return self.calculator.results["forces"], -gradient.cpu().numpy()
