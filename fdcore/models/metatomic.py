"""The metatomic family (metatomic-torch 0.1): exported TorchScript models that give a direct force beside the energy.

Source: Bigi et al. 2025, who introduced the output `non_conservative_force`. F_c is the gradient of the energy at a fixed list of
neighbours; their vectors are made here from the positions, because those that the package registers can be differentiated
once only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from metatensor.torch import Labels, TensorBlock
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model
from numpy.typing import NDArray
from vesin import NeighborList

from fdcore.errors import UsageError, WeightsError
from fdcore.models.autograd import evaluations, gradient_of_squares, gradients, pull_back, two_forces
from fdcore.models.base import ForceName, GradientMethod, Model, estimated_edges, file_sha256, guessed_bytes_per_edge
from fdcore.models.process_settings import settings_kept
from fdcore.models.torch_calls import array, guarded
from fdcore.records import Evaluation, Gradients, ModelCard, Prediction, Structure

ENERGY = ("energy",)
# The second is what older exports call it.
DIRECT = ("non_conservative_force", "non_conservative_forces")
LEAST_BYTES_PER_EDGE = 20_000


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> MetatomicModel:
    """Load an exported model from a file.

    Raises WeightsError when there is no file, or it gives no direct force, or it is no such model; UsageError when it was exported
    in another precision or for other devices.
    """
    if weights is None:
        raise WeightsError(
            "metatomic models are files: none is downloaded.",
            "Name an exported one: --model metatomic --weights MODEL.pt.",
        )
    with settings_kept():
        try:
            network: Any = load_atomistic_model(str(weights))
        except Exception as error:  # the boundary: a file fails in its own way
            raise WeightsError(
                f"{weights.name} cannot be loaded as a metatomic model: {str(error).strip().splitlines()[0][:200]}",
                "It must be a model that metatomic exported (.pt), with what extensions it needs installed.",
            ) from error
    able = network.capabilities()
    if able.dtype != dtype:
        raise UsageError(f"{weights.name} was exported in {able.dtype}.", f"Use --dtype {able.dtype}.")
    if device.split(":")[0] not in able.supported_devices:
        raise UsageError(
            f"{weights.name} was exported for {', '.join(able.supported_devices)}, not for {device}.",
            "Choose another --device.",
        )
    inputs = sorted(network.requested_inputs(use_new_names=True))
    if inputs:
        raise WeightsError(
            f"{weights.name} asks for {', '.join(inputs)}, which is not given here.", "Use another model."
        )
    cutoffs = [options.engine_cutoff("angstrom") for options in network.requested_neighbor_lists()]
    known = replace(
        card,
        elements=tuple(chemical_symbols[z] for z in sorted(able.atomic_types)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        cutoff_A=max(cutoffs, default=0.0),
        summary=network.metadata().name or card.summary,
    )
    model = MetatomicModel(
        known, network, device, dtype, _output(able, ENERGY, weights), _output(able, DIRECT, weights)
    )
    model.weights_sha256 = file_sha256(weights)
    return model


def _output(able: Any, names: tuple[str, ...], weights: Path) -> str:
    """The plain output of that name; of several variants none is chosen silently."""
    found = [n for n in able.outputs if n in names]
    variants = sorted(n for n in able.outputs if n.split("/")[0] in names and n not in names)
    if found:
        return found[0]
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise WeightsError(f"{weights.name} gives {', '.join(variants)} and does not say which to take.")
    raise WeightsError(
        f"{weights.name} gives no {names[0]}: it has {', '.join(sorted(able.outputs)) or 'no output'}.",
        "U_Delta needs a model with an energy and a direct force.",
    )


class MetatomicModel(Model):
    """An exported model with both of its forces. F_nc has no net force: the package's own calculator takes it out, too."""

    pulls_back = True

    def __init__(self, card: ModelCard, network: Any, device: str, dtype: str, energy: str, direct: str) -> None:
        super().__init__(card, device, dtype)
        self.torch_dtype = getattr(torch, dtype)
        self.module = network.to(device=device).eval().requires_grad_(False)
        self.conditioned = False
        self._energy, self._direct = energy, direct
        self._lists = list(network.requested_neighbor_lists())

    @property
    def bytes_per_edge(self) -> float:
        return max(guessed_bytes_per_edge(self.card), LEAST_BYTES_PER_EDGE)

    def _edge_count(self, structure: Structure) -> float:
        return max(1.0, estimated_edges(structure, self.card.cutoff_A, None))

    # ---- one pass --------------------------------------------------------------------------------------------------

    def _positions(self, structures: Sequence[Structure]) -> torch.Tensor:
        return torch.as_tensor(
            np.concatenate([s.positions for s in structures]), dtype=self.torch_dtype, device=self.device
        )

    def _pass(self, structures: Sequence[Structure]) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Positions of these structures to energies and F_nc, with the neighbours that they have now."""
        counts = [s.n_atoms for s in structures]
        starts = torch.as_tensor(np.cumsum([0, *counts[:-1]]), device=self.device)
        pairs = [[self._pairs(s, options) for options in self._lists] for s in structures]
        wanted = {
            self._energy: ModelOutput(unit="eV", sample_kind="system"),
            self._direct: ModelOutput(unit="eV/Angstrom", sample_kind="atom"),
        }
        options = ModelEvaluationOptions(length_unit="angstrom", outputs=wanted)

        def run(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            parts = torch.split(positions, counts)
            systems = [self._system(*item) for item in zip(structures, parts, pairs, strict=True)]
            # Compiled anew on its second call, the last bits would depend on what was computed before.
            with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
                found = self.module(systems, options, check_consistency=False)
            block = found[self._energy].block()
            energy = torch.zeros(len(counts), dtype=self.torch_dtype, device=self.device)
            energy = energy.index_copy(0, block.samples.column("system").long(), block.values.reshape(-1))
            block = found[self._direct].block()
            rows = starts[block.samples.column("system").long()] + block.samples.column("atom").long()
            direct = torch.zeros_like(positions).index_copy(0, rows, block.values.reshape(-1, 3))
            means = [part.mean(dim=0, keepdim=True).expand_as(part) for part in torch.split(direct, counts)]
            return energy, direct - torch.cat(means)

        return run

    def _pairs(self, structure: Structure, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (E, 2) and their cell shifts (E, 3)."""
        finder = NeighborList(cutoff=options.engine_cutoff("angstrom"), full_list=options.full_list)
        first, second, shifts = finder.compute(
            points=structure.positions, box=_cell(structure), periodic=structure.periodic, quantities="ijS"
        )
        pairs = torch.as_tensor(np.stack([first, second], axis=1).astype(np.int64), device=self.device)
        return pairs, torch.as_tensor(np.asarray(shifts).reshape(-1, 3).astype(np.int64), device=self.device)

    def _system(
        self, structure: Structure, positions: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> Any:
        cell = torch.as_tensor(_cell(structure), dtype=self.torch_dtype, device=self.device)
        types = torch.as_tensor(np.array(structure.numbers), dtype=torch.int32, device=self.device)
        system = System(types, positions, cell, torch.tensor(structure.pbc, device=self.device))
        for options, (ends, shifts) in zip(self._lists, pairs, strict=True):
            vectors = positions[ends[:, 1]] - positions[ends[:, 0]] + shifts.to(cell.dtype) @ cell
            block = TensorBlock(
                values=vectors.reshape(-1, 3, 1),
                samples=Labels(
                    ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"],
                    torch.cat([ends, shifts], dim=1).to(torch.int32),
                ),
                components=[Labels(["xyz"], torch.tensor([[0], [1], [2]], dtype=torch.int32, device=self.device))],
                properties=Labels(["distance"], torch.tensor([[0]], dtype=torch.int32, device=self.device)),
            )
            system.add_neighbor_list(options, block)
        return system

    # ---- the contract ----------------------------------------------------------------------------------------------

    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            found = two_forces(self._pass(structures), self._positions(structures))
            return evaluations(found, [s.n_atoms for s in structures], [None] * len(structures))

        return guarded(self.device, run)

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            with torch.no_grad():
                energy, direct = self._pass(structures)(self._positions(structures))
            parts = np.split(array(direct), np.cumsum([s.n_atoms for s in structures])[:-1])
            return [Prediction(float(e), f) for e, f in zip(array(energy), parts, strict=True)]

        return guarded(self.device, run)

    def _gradients(self, structure: Structure, method: GradientMethod) -> Gradients:
        return self._gradients_of([structure], method, strain=False)[0]

    def _gradients_of(
        self, structures: Sequence[Structure], method: GradientMethod, strain: bool
    ) -> Sequence[Gradients]:
        if strain:
            return super()._gradients_of(structures, method, strain)
        counts = [s.n_atoms for s in structures]
        system = torch.repeat_interleave(torch.tensor(counts))

        def run() -> list[Gradients]:
            positions = self._positions(structures)
            with self._derivatives("the gradient of U_Delta asks for"):
                found, both = gradient_of_squares(self._pass(structures), positions, system.to(self.device), method)
            return gradients(found, evaluations(both, counts, [None] * len(counts)))

        return guarded(self.device, run)

    def _pull_back(self, structure: Structure, vectors: NDArray[np.float64], force: ForceName) -> NDArray[np.float64]:
        def run() -> NDArray[np.float64]:
            with self._derivatives("the Jacobian of a force asks for"):
                return pull_back(self._pass([structure]), self._positions([structure]), vectors, force)

        return guarded(self.device, run)

    @contextlib.contextmanager
    def _derivatives(self, what: str) -> Iterator[None]:
        """An exported model may have steps that torch cannot differentiate: UsageError then."""
        try:
            yield
        except RuntimeError as error:
            if "derivative" in str(error) or "does not require grad" in str(error):
                raise UsageError(
                    f"{self.card.summary} cannot be differentiated as {what}: "
                    f"{str(error).strip().splitlines()[-1][:200]}",
                    'Its forces can be compared; for an attack try method "finite-difference", or use another model.',
                ) from error
            raise

    def _displaced(self, structure: Structure, displacements: NDArray[np.float64]) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            pass_over, positions = self._pass([structure]), self._positions([structure])
            out = []
            for displacement in displacements:
                shift = torch.as_tensor(displacement, dtype=self.torch_dtype, device=self.device)
                out += evaluations(two_forces(pass_over, positions + shift), [structure.n_atoms], [None])
            return out

        return guarded(self.device, run)


def _cell(structure: Structure) -> NDArray[np.float64]:
    return np.array(structure.cell) if structure.periodic else np.zeros((3, 3))
