"""Run by the tests in the environment of MACE: a model with random weights, saved as mace's own training program saves one.

    PYTHONPATH=WORKER_FOLDER:ENVS_FOLDER python save_checkpoint.py OUT ARCHITECTURE

The arguments are those of the published training scripts (ACEsuit/mace-foundations).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

# As mace.calculators does when it is imported: e3nn's tables hold more than tensors.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

import torch
from e3nn import o3
from mace import modules

# The first generation, and what has the density of neighbours in its first layer, other distances and a core repulsion.
FIRST = {
    "interaction_cls": modules.RealAgnosticResidualInteractionBlock,
    "interaction_cls_first": modules.RealAgnosticResidualInteractionBlock,
}
LATER = {
    "interaction_cls": modules.RealAgnosticDensityResidualInteractionBlock,
    "interaction_cls_first": modules.RealAgnosticDensityInteractionBlock,
    "pair_repulsion": True,
    "distance_transform": "Agnesi",
}
ARCHITECTURES = {
    "mace-mp-0-small": ("128x0e", FIRST),
    "mace-mp-0-medium": ("128x0e + 128x1o", FIRST),
    "mace-mp-0-large": ("128x0e + 128x1o + 128x2e", FIRST),
    "mace-mpa-0-medium": ("128x0e + 128x1o", LATER),
    "mace-omat-0-small": ("128x0e", LATER),
}
ELEMENTS = [*range(1, 84), *range(89, 95)]


def build(architecture: str) -> torch.nn.Module:
    irreps, more = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        atomic_inter_scale=0.8,
        atomic_inter_shift=0.1,
        r_max=6.0,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.random.default_rng(1).normal(-3.0, 1.0, len(ELEMENTS)),
        avg_num_neighbors=60.0,
        atomic_numbers=ELEMENTS,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_type="bessel",
        **more,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    given = parser.parse_args()
    model = build(given.architecture)
    torch.save(model, given.out)
    print(sum(p.numel() for p in model.parameters()))
