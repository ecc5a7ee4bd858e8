"""EquiformerV2 from fairchem-core 1.10 as a worker (see `wire` for the messages). Runs in its own environment; must not import fdcore.

Orders, with S structures and A atoms in all; lengths in Å, energies in eV:

    load       weights (path), device, dtype -> parameters, layers, lmax, mmax, channels, dens, cutoff_A, neighbour_cap
    evaluate   counts (S,), numbers (A,), positions (A, 3), cells (S, 3, 3), periodic (S,); direct, conservative, pairs: what is wanted
               -> energy (S,), tie (S,), forces_direct and forces_conservative (A, 3); with pairs edges (2, E) and lengths (E,)
    displaced  one structure and displacements (M, N, 3) -> energy (M,), both forces (M N, 3), with the graph of the undisplaced one
    gradients  as evaluate, and method -> as evaluate, and slope (A, 3), the gradient of sum |F_nc - F_c|^2

The checkpoint is a pickle: it is read here, without rights that the user does not have, and only because the user or the operator named it.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve import Failed, loop, repeatable, short, streams

# The longest step (Å) of an atom in the differences of the low-memory gradients, by precision: as for every other family.
HVP_STEP_A = {torch.float32: 5e-3, torch.float64: 1e-4}
ONE_SIDED_STEP_A = {torch.float32: 3e-4, torch.float64: 1e-5}
HEADS = ("energy", "forces")
REGISTERED = (
    "trainers",
    "models.base",
    "models.equiformer_v2.equiformer_v2",
    "models.equiformer_v2.equiformer_v2_dens",
    "models.equiformer_v2.trainers.forces_trainer",
)
# H2, for structures that are nothing but single atoms.
COMPANION = {
    "counts": np.array([2]),
    "numbers": np.array([1, 1]),
    "positions": np.array([[0.0, 0.0, 0.0], [0.43, 0.43, 0.43]]),
    "cells": np.zeros((1, 3, 3)),
    "periodic": np.array([False]),
}


@dataclass
class Batch:
    """A neighbour graph over a batch, fixed: edges (2, E) from neighbour to centre, shifts (E, 3) in Å, and what the package reads."""

    natoms: torch.Tensor
    batch: torch.Tensor
    atomic_numbers: torch.Tensor
    pos: torch.Tensor
    edges: torch.Tensor
    shifts: torch.Tensor
    ties: list[float]

    def vectors(self) -> torch.Tensor:
        return self.pos[self.edges[0]] - self.pos[self.edges[1]] + self.shifts


class Loaded:
    """One checkpoint, with its averaged weights: training validates with them, and the package's files for inference hold nothing else. A file
    for training holds both kinds; there the package's own calculator takes the others."""

    def __init__(self, weights: str, device: str, dtype: str) -> None:
        torch.set_default_dtype(torch.float32)
        trainer, averaged = _trainer(weights, device)
        self.dtype = getattr(torch, dtype)
        self.device = torch.device(device)
        self.model: Any = trainer._unwrapped_model
        if averaged is not None:
            _take(averaged, self.model)
        self.model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.backbone: Any = self.model.backbone
        missing = [h for h in HEADS if h not in self.model.output_heads]
        if missing:
            raise Failed("weights", f"It has no head for {' and '.join(missing)}.")
        self.normalizers = {k: v.to(self.device).double() for k, v in trainer.normalizers.items()}
        self.references = {k: v.to(self.device).double() for k, v in trainer.elementrefs.items()}
        # Parts of the package make tensors without saying of which type.
        torch.set_default_dtype(self.dtype)
        from exact import make_exact

        make_exact(self.backbone)
        self.backbone.generate_graph = types.MethodType(_graph, self.backbone)

    def facts(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layers": int(self.backbone.num_layers),
            "lmax": max(self.backbone.lmax_list),
            "mmax": max(self.backbone.mmax_list),
            "channels": int(self.backbone.sphere_channels),
            "dens": hasattr(self.backbone, "force_embedding"),
            "cutoff_A": float(self.backbone.max_radius),
            "neighbour_cap": int(self.backbone.max_neighbors),
        }

    # ---- graphs ----------------------------------------------------------------------------------------------------

    def batch(self, arrays: dict[str, np.ndarray]) -> Batch:
        """Each graph alone, as the package is configured to, so that the partners in a batch change nothing."""
        found = self.graph(arrays)
        if found.edges.shape[1]:
            return found
        # The package cannot do without any edge: a molecule goes along, whose results `_found` leaves out.
        return self.graph({name: np.concatenate([arrays[name], COMPANION[name]]) for name in COMPANION})

    def graph(self, arrays: dict[str, np.ndarray]) -> Batch:
        counts = arrays["counts"]
        ends = np.cumsum(counts)
        edges, shifts, ties = [], [], []
        for index, (count, end) in enumerate(zip(counts, ends, strict=True)):
            rows = slice(end - count, end)
            pairs, images, tie = self._neighbours(
                arrays["positions"][rows], arrays["cells"][index], bool(arrays["periodic"][index])
            )
            edges.append(pairs + int(end - count))
            shifts.append(images.double() @ torch.as_tensor(arrays["cells"][index], device=self.device))
            ties.append(tie)
        natoms = torch.as_tensor(counts, device=self.device)
        return Batch(
            natoms=natoms,
            batch=torch.repeat_interleave(torch.arange(len(counts), device=self.device), natoms),
            atomic_numbers=torch.as_tensor(arrays["numbers"], device=self.device),
            pos=torch.as_tensor(arrays["positions"], device=self.device, dtype=self.dtype),
            edges=torch.cat(edges, dim=1),
            shifts=torch.cat(shifts).to(self.dtype),
            ties=ties,
        )

    def _neighbours(
        self, positions: np.ndarray, cell: np.ndarray, periodic: bool
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The package's own search, in single precision as there: edges (2, E), cell images (E, 3), and the smallest gap (Å) between the
        last neighbour kept and the first one dropped, NaN without a cut."""
        from fairchem.core.common import utils

        nothing = torch.zeros((2, 0), dtype=torch.long, device=self.device), torch.zeros((0, 3), device=self.device)
        if len(positions) == 1 and not periodic:
            return *nothing, float("nan")
        single = {"dtype": torch.float32, "device": self.device}
        data = types.SimpleNamespace(
            pos=torch.as_tensor(positions, **single),
            cell=torch.as_tensor(cell if periodic else np.eye(3), **single).reshape(1, 3, 3),
            natoms=torch.tensor([len(positions)], device=self.device),
            pbc=torch.tensor([periodic] * 3),
        )
        gap = float("nan")
        choose = utils.get_max_neighbors_mask

        def watched(natoms, index, atom_distance, **options):
            nonlocal gap
            kept, count = choose(natoms=natoms, index=index, atom_distance=atom_distance, **options)
            gap = _smallest_gap(index, atom_distance.sqrt(), kept, len(positions))
            return kept, count

        default = torch.get_default_dtype()
        utils.get_max_neighbors_mask = watched
        torch.set_default_dtype(torch.float32)
        try:
            edges, images, _ = utils.radius_graph_pbc(
                data,
                self.backbone.max_radius,
                self.backbone.max_neighbors,
                self.backbone.enforce_max_neighbors_strictly,
                [periodic] * 3,
            )
        finally:
            utils.get_max_neighbors_mask = choose
            torch.set_default_dtype(default)
        return edges, images, gap

    # ---- one pass --------------------------------------------------------------------------------------------------

    def heads(self, batch: Batch, *, direct: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Energy (S,) float64 in eV and F_nc (A, 3) in eV/Å, as functions of batch.pos. The stress head is left out."""
        features = self.backbone(batch)
        heads = self.model.output_heads
        energy = heads["energy"](batch, features)["energy"].reshape(len(batch.natoms), -1).double()
        if "energy" in self.normalizers:
            energy = self.normalizers["energy"](energy)
        if "energy" in self.references:
            energy = self.references["energy"](energy, batch)
        forces = None
        if direct:
            forces = heads["forces"](batch, features)["forces"].reshape(len(batch.pos), 3)
            if "forces" in self.normalizers:
                forces = self.normalizers["forces"](forces)
        return energy.reshape(-1), forces

    def two_forces(
        self, batch: Batch, *, direct: bool = True, conservative: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        batch.pos = batch.pos.detach().clone().requires_grad_(conservative)
        energy, forces_direct = self.heads(batch, direct=direct)
        slope = None
        if conservative:
            slope = _gradient(energy.sum(), batch.pos)
        return energy, forces_direct, None if slope is None else -slope

    # ---- gradients: grad s with s = sum |F_nc - F_c|^2, in the ways of `fdcore.models.base.GradientMethod` -------------

    def double_backward(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """By differentiating through F_c = -dE/dR."""
        batch.pos = batch.pos.detach().clone().requires_grad_(True)
        energy, direct = self.heads(batch, direct=True)
        assert direct is not None
        slope = _gradient(energy.sum(), batch.pos, create_graph=True)
        return energy, direct, -slope, _gradient((direct + slope).square().sum(), batch.pos)

    def central_difference(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """grad s = 2 (J_nc^T d + H d) with d = F_nc - F_c: the first term by one more backward pass, the second by a central difference
        of dE/dR along d at fixed graph."""
        start = batch.pos.detach().clone()
        batch.pos = start.clone().requires_grad_(True)
        energy, direct = self.heads(batch, direct=True)
        assert direct is not None
        slope = _gradient(energy.sum(), batch.pos, retain_graph=True)
        difference = (direct + slope).detach()
        first = _gradient((direct * difference).sum(), batch.pos)
        step = _step(batch, difference, HVP_STEP_A[self.dtype])
        ends = []
        for sign in (1.0, -1.0):
            batch.pos = (start + sign * step[batch.batch, None] * difference).requires_grad_(True)
            ends.append(_gradient(self.heads(batch, direct=False)[0].sum(), batch.pos))
        second = (ends[0] - ends[1]) / (2 * step[batch.batch, None])
        return energy, direct, -slope, 2 * (first + second)

    def one_sided(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The gradient of F_nc . d + E / h at R + h d, less dE/dR / h, is J_nc^T d + H d to first order in h."""
        start = batch.pos.detach().clone()
        batch.pos = start.clone().requires_grad_(True)
        energy, direct = self.heads(batch, direct=True)
        assert direct is not None
        slope = _gradient(energy.sum(), batch.pos)
        difference = (direct + slope).detach()
        step = _step(batch, difference, ONE_SIDED_STEP_A[self.dtype])
        batch.pos = (start + step[batch.batch, None] * difference).requires_grad_(True)
        there, moved = self.heads(batch, direct=True)
        assert moved is not None
        both = _gradient((moved * difference).sum() + (there / step).sum(), batch.pos)
        return energy, direct, -slope, 2 * (both - slope / step[batch.batch, None])


class Worker:
    """The orders, on one loaded model."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None

    def load(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        del arrays
        repeatable(order["device"])
        self.loaded = Loaded(order["weights"], order["device"], order["dtype"])
        return self.loaded.facts(), {}

    def evaluate(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        model = self._model()
        batch = model.batch(arrays)
        energy, direct, conservative = model.two_forces(
            batch, direct=order["direct"], conservative=order["conservative"]
        )
        found = _found(arrays, energy, direct, conservative, tie=np.array(batch.ties))
        if order["pairs"]:
            found["edges"] = batch.edges.cpu().numpy()
            found["lengths"] = _array(batch.vectors().norm(dim=-1))
        return {}, found

    def displaced(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        del order
        model = self._model()
        shifts = arrays["displacements"]
        many = {"counts": np.repeat(arrays["counts"], len(shifts)), "numbers": np.tile(arrays["numbers"], len(shifts))}
        one = model.graph(arrays)
        if not one.edges.shape[1]:
            raise Failed("compute", "An atom without neighbours cannot be displaced.")
        several = _copies(one, torch.as_tensor(shifts, device=model.device, dtype=model.dtype))
        return {}, _found(many, *model.two_forces(several), tie=np.array(several.ties))

    def gradients(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        model = self._model()
        ways = {"double-backward": model.double_backward, "one-sided": model.one_sided}
        batch = model.batch(arrays)
        energy, direct, conservative, slope = ways.get(order["method"], model.central_difference)(batch)
        return {}, _found(arrays, energy, direct, conservative, slope=slope, tie=np.array(batch.ties))

    def _model(self) -> Loaded:
        if self.loaded is None:
            raise Failed("compute", "No model was loaded.")
        return self.loaded


def _trainer(weights: str, device: str) -> tuple[Any, list[torch.Tensor] | None]:
    """The package's trainer with this checkpoint, through the package's own calculator, and the averaged weights if they are apart."""
    load = torch.load
    try:
        # Published checkpoints hold more than tensors; torch >= 2.6 refuses that unless it is told. No page and no run names this file: it is
        # the one of --weights, of the operator's folder, or of the publisher's place on the hub.
        checkpoint = load(weights, map_location="cpu", weights_only=False)
    except Exception as error:
        raise Failed("weights", f"It is no checkpoint that torch can read ({short(error)}).") from error
    if not isinstance(checkpoint, dict) or not {"config", "state_dict", "normalizers"} <= set(checkpoint):
        raise Failed("weights", "It is no checkpoint of fairchem-core 1.x.")
    calculator = _import_package()
    torch.load = lambda *_, **__: checkpoint
    try:
        # DeNS models too: their own trainer adds noise for training and nothing for predictions.
        ready = calculator(
            checkpoint_path=weights, trainer="equiformerv2_forces", cpu=device == "cpu", only_output=list(HEADS), seed=0
        )
    except Exception as error:
        raise Failed("weights", f"fairchem-core 1.10 does not load it ({short(error)}).") from error
    finally:
        torch.load = load
    return ready.trainer, (checkpoint.get("ema") or {}).get("shadow_params")


def _take(averaged: list[torch.Tensor], model: Any) -> None:
    """The averages are listed in the order of the parameters that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if [p.shape for p in trained] != [a.shape for a in averaged]:
        raise Failed("weights", "Its averaged weights are not those of its architecture.")
    with torch.no_grad():
        for parameter, average in zip(trained, averaged, strict=True):
            parameter.copy_(average)


def _import_package() -> Any:
    """fairchem-core's calculator. Its own `setup_imports` imports every model there is, some of which want compiled extensions."""
    torch.serialization.add_safe_globals([slice])
    # They enter their classes in the package's registry, where the checkpoint's configuration looks for them.
    for module in REGISTERED:
        importlib.import_module(f"fairchem.core.{module}")
    from fairchem.core.common.registry import registry
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    registry.register("imports_setup", True)
    logging.getLogger().setLevel(logging.ERROR)
    return OCPCalculator


def _graph(self: Any, data: Batch, **options: Any) -> Any:
    """In the place of the backbone's own search: the graph that the batch brings, with vectors that know the positions."""
    del self, options
    from fairchem.core.models.base import GraphData

    vectors = data.vectors()
    return GraphData(
        edge_index=data.edges,
        edge_distance=vectors.norm(dim=-1),
        edge_distance_vec=vectors,
        cell_offsets=data.shifts,
        offset_distances=data.shifts,
        neighbors=data.natoms,
        batch_full=data.batch,
        atomic_numbers_full=data.atomic_numbers,
    )


def _copies(one: Batch, shifts: torch.Tensor) -> Batch:
    """M times the same graph, with positions moved by shifts (M, N, 3)."""
    many, count = shifts.shape[:2]
    start = torch.arange(many, device=shifts.device)
    return Batch(
        natoms=one.natoms.repeat(many),
        batch=torch.repeat_interleave(start, count),
        atomic_numbers=one.atomic_numbers.repeat(many),
        pos=(one.pos.detach() + shifts).reshape(-1, 3),
        edges=(one.edges[:, None] + (start * count)[None, :, None]).reshape(2, -1),
        shifts=one.shifts.repeat(many, 1),
        ties=[float("nan")] * many,
    )


def _smallest_gap(index: torch.Tensor, lengths: torch.Tensor, kept: torch.Tensor, count: int) -> float:
    if bool(kept.all()):
        return float("nan")
    last = torch.zeros(count, device=lengths.device, dtype=lengths.dtype)
    last = last.scatter_reduce(0, index[kept], lengths[kept], "amax")
    first = torch.full_like(last, torch.inf).scatter_reduce(0, index[~kept], lengths[~kept], "amin")
    return float((first - last).min())


def _step(batch: Batch, difference: torch.Tensor, longest_A: float) -> torch.Tensor:
    """The h (S,) by which h d moves the farthest atom of each structure by longest_A."""
    longest = torch.zeros(len(batch.natoms), dtype=difference.dtype, device=difference.device)
    longest = longest.scatter_reduce(0, batch.batch, difference.norm(dim=-1), "amax")
    return longest_A / longest.clamp(min=1e-12)


def _gradient(of: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
    """d of / d positions; zeros where nothing depends on them, as for an atom without neighbours."""
    (found,) = torch.autograd.grad(of, positions, allow_unused=True, materialize_grads=True, **options)
    return found


def _found(
    arrays: dict[str, np.ndarray], energy: Any, direct: Any, conservative: Any, **more: Any
) -> dict[str, np.ndarray]:
    """What was asked for, of the structures that were asked about."""
    rows = {"energy": len(arrays["counts"]), "tie": len(arrays["counts"])}
    found = {"energy": energy, "forces_direct": direct, "forces_conservative": conservative, **more}
    return {
        name: (_array(value) if isinstance(value, torch.Tensor) else value)[: rows.get(name, len(arrays["numbers"]))]
        for name, value in found.items()
        if value is not None
    }


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def main() -> None:
    incoming, outgoing = streams()
    worker = Worker()
    handlers = {n: getattr(worker, n) for n in ("load", "evaluate", "displaced", "gradients")}
    loop(incoming, outgoing, handlers, packages=("fairchem-core", "torch"))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
