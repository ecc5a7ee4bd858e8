"""Train an embedded model on the labelled frames by the standard direct loss: energy + F_nc, 1:1, nothing else.

    python training/train.py --data training/work --out training/work/fd-orb-small-v1 --epochs 40 --seed 0

The conservative pathway is never looked at (as in the paper: asymmetric supervision). Rotation augmentation, AdamW with a
cosine schedule, exponential moving average of the weights. Writes the averaged weights after every epoch, so that an
interrupted run leaves a usable model, and resumes from `state.pt` (trusted: written by this program on this machine).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.common.dataset.augmentations.geometric_augmentations import rand_matrix
from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor

from fdcore.models.small_orb import SmallOrbConfig, build, load, save


def graph(adapter, atoms: Atoms) -> AtomGraphs:
    """The neighbour graph with the teacher's energy and forces as targets."""
    bare = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    out = adapter.from_ase_atoms(bare, device="cpu")
    out.system_targets = {"energy": torch.tensor([atoms.info["energy_eV"]], dtype=torch.float64)}
    out.node_targets = {"forces": torch.tensor(atoms.arrays["forces_reference"], dtype=torch.float32)}
    return out


def rotated(batch: AtomGraphs) -> AtomGraphs:
    """Every structure of the batch turned by its own random rotation: Orb learns equivariance, it does not have it."""
    turns = rand_matrix(len(batch.n_node), dtype=torch.float32)
    of_edge = torch.arange(len(batch.n_node)).repeat_interleave(batch.n_edge)

    def turn(vectors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.bmm(vectors.unsqueeze(1), turns[index]).squeeze(1)

    batch.node_features["positions"] = turn(batch.node_features["positions"], batch.node_batch_index)
    batch.edge_features["vectors"] = turn(batch.edge_features["vectors"], of_edge)
    batch.system_features["cell"] = torch.bmm(batch.system_features["cell"], turns)
    batch.node_targets["forces"] = turn(batch.node_targets["forces"], batch.node_batch_index)
    return batch


def set_normalisers(module: DirectForcefieldRegressor, frames: list[Atoms]) -> None:
    """Reference energies by ridge regression on composition; normalisers from the residual energies and the forces."""
    counts = np.zeros((len(frames), 118))
    for row, atoms in enumerate(frames):
        np.add.at(counts[row], atoms.numbers, 1)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    per_atom = np.array([a.info["energy_eV"] / len(a) for a in frames])
    ridge = 1e-6 * len(frames) * np.eye(118)
    weights = np.linalg.solve(fractions.T @ fractions + ridge, fractions.T @ per_atom)
    energy, forces = module.heads["energy"], module.heads["forces"]
    energy.reference.linear.weight.data = torch.tensor(weights, dtype=torch.float32)
    residual = per_atom - fractions @ weights
    components = np.concatenate([a.arrays["forces_reference"].ravel() for a in frames])
    for head, mean, std in ((energy, residual.mean(), residual.std()), (forces, 0.0, components.std())):
        head.normalizer.bn.running_mean = torch.tensor([mean], dtype=torch.float32)
        head.normalizer.bn.running_var = torch.tensor([std**2], dtype=torch.float32)
        # The package's own shape, which differs from head to head: a file must fill its architecture exactly.
        head.normalizer.bn.num_batches_tracked.fill_(1000)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then a cosine to zero."""
    warm = max(1, total // 50)
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("training/work"))
    parser.add_argument("--out", type=Path, default=Path("training/work/fd-orb-small-v1"))
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--batch", type=int, default=8, help="structures per step")
    parser.add_argument("--peak-learning-rate", type=float, default=8e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--start-from", type=Path, help="weights of a trained model of the same architecture to begin with"
    )
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of SmallOrbConfig fields")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    config = SmallOrbConfig(**arguments.config)
    module, adapter = build(config)
    metadata, before = {"seed": str(arguments.seed)}, ""
    if arguments.start_from is not None:
        # What edges mean for forces is learnt slowly (a long plateau where bonds are stiff) and carries over.
        begun, _, begun_config, begun_metadata = load(arguments.start_from)
        if begun_config != config:
            parser.error(f"{arguments.start_from} has another architecture")
        torch.nn.Module.load_state_dict(module, begun.state_dict())
        # A further stage of the same training says where the first began, and how long each was.
        metadata["started_from"] = begun_metadata.get("started_from", arguments.start_from.stem)
        before = f"{begun_metadata['epochs']} + " if "started_from" in begun_metadata else ""
    frames = ase.io.read(arguments.data / "train.extxyz", ":")
    set_normalisers(module, frames)
    graphs = [graph(adapter, a) for a in frames]
    print(
        f"{len(graphs)} frames, {sum(map(len, frames))} atoms, {sum(int(g.n_edge.sum()) for g in graphs)} edges,",
        end=" ",
    )
    print(f"{sum(p.numel() for p in module.parameters()):,} parameters", flush=True)

    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=arguments.peak_learning_rate, weight_decay=1e-5
    )
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(arguments.ema), use_buffers=False
    )
    steps_per_epoch = math.ceil(len(graphs) / arguments.batch)
    total = steps_per_epoch * arguments.epochs
    step, first_epoch = 0, 0
    state_file = arguments.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        torch.nn.Module.load_state_dict(module, state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, step = state["epoch"], state["step"]
        torch.set_rng_state(state["rng"])
        print(f"resumed after epoch {first_epoch}", flush=True)

    started = time.time()
    for epoch in range(first_epoch, arguments.epochs):
        module.train()
        order = torch.randperm(len(graphs)).tolist()
        sums = {"loss": 0.0, "energy_mae_per_atom": 0.0, "forces_mae_raw": 0.0}
        for start in range(0, len(order), arguments.batch):
            batch = rotated(AtomGraphs.batch([graphs[i] for i in order[start : start + arguments.batch]]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, arguments.peak_learning_rate)
            optimizer.zero_grad(set_to_none=True)
            output = module.loss(batch)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(module)
            step += 1
            for name in sums:
                sums[name] += float(output.log.get(name, output.loss if name == "loss" else 0.0))
        save(
            arguments.out / "model.safetensors", average.module, config, {**metadata, "epochs": f"{before}{epoch + 1}"}
        )
        torch.save(
            {
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
                "step": step,
                "rng": torch.get_rng_state(),
            },
            state_file,
        )
        means = {k: v / steps_per_epoch for k, v in sums.items()}
        print(
            f"epoch {epoch + 1:3d}/{arguments.epochs}  loss {means['loss']:.4f}  "
            f"E MAE {1e3 * means['energy_mae_per_atom']:.1f} meV/atom  F_nc MAE {1e3 * means['forces_mae_raw']:.0f} meV/Å  "
            f"{time.time() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
