"""A small metatomic model: pair energies and a direct force that is not quite their gradient, exported as the package exports."""

from pathlib import Path
from typing import Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)

CUTOFF_A = 5.0


class PairModel(torch.nn.Module):
    """Both forces from one network of distances and species; smooth at the cutoff. `force` names the direct output."""

    def __init__(self, force: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.force = force
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).to(dtype)
        self.species = torch.nn.Embedding(100, 2).to(dtype)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [NeighborListOptions(cutoff=5.0, full_list=True, strict=True)]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        device = systems[0].positions.device
        energies: List[torch.Tensor] = []
        forces: List[torch.Tensor] = []
        rows: List[List[int]] = []
        for index, system in enumerate(systems):
            neighbours = system.get_neighbor_list(self.requested_neighbor_lists()[0])
            first = neighbours.samples.column("first_atom").to(torch.long)
            second = neighbours.samples.column("second_atom").to(torch.long)
            vectors = neighbours.values.reshape(-1, 3)
            lengths = vectors.square().sum(dim=1, keepdim=True).sqrt()
            kinds = self.species(system.types.to(torch.long))
            waves = [torch.sin(lengths * (k + 1.0)) for k in range(4)]
            inside = torch.cat([torch.cat(waves, dim=1), kinds[first], kinds[second]], dim=1)
            window = torch.clamp(1 - (lengths / 5.0) ** 2, min=0.0) ** 3
            found = self.net(inside) * window
            energies.append(found[:, 0].sum() + kinds.sum())
            direct = torch.zeros_like(system.positions)
            forces.append(direct.index_add(0, first, found[:, 1:2] * vectors / lengths))
            for atom in range(len(system)):
                rows.append([index, atom])
        answer: Dict[str, TensorMap] = {}
        keys = Labels(["_"], torch.tensor([[0]], device=device))
        if "energy" in outputs:
            block = TensorBlock(
                values=torch.stack(energies).reshape(-1, 1),
                samples=Labels(["system"], torch.arange(len(systems), device=device).reshape(-1, 1)),
                components=torch.jit.annotate(list[Labels], []),
                properties=Labels(["energy"], torch.tensor([[0]], device=device)),
            )
            answer["energy"] = TensorMap(keys, [block])
        if self.force in outputs:
            block = TensorBlock(
                values=torch.cat(forces).reshape(-1, 3, 1),
                samples=Labels(["system", "atom"], torch.tensor(rows, device=device)),
                components=[Labels(["xyz"], torch.tensor([[0], [1], [2]], device=device))],
                properties=Labels([self.force], torch.tensor([[0]], device=device)),
            )
            answer[self.force] = TensorMap(keys, [block])
        return answer


def save(path: Path, dtype: str = "float64", force: str | None = "non_conservative_force") -> None:
    """Export it; without `force` it gives an energy only."""
    outputs = {"energy": ModelOutput(unit="eV", sample_kind="system")}
    if force:
        outputs[force] = ModelOutput(unit="eV/Angstrom", sample_kind="atom")
    able = ModelCapabilities(
        outputs=outputs,
        atomic_types=[1, 6, 7, 8, 11, 17],
        interaction_range=CUTOFF_A,
        length_unit="angstrom",
        supported_devices=["cpu", "cuda"],
        dtype=dtype,
    )
    model = PairModel(force or "none", getattr(torch, dtype)).eval()
    AtomisticModel(model, ModelMetadata(name="pairs"), able).save(str(path))
