"""Shared by all tests: one thread per worker, so that two workers on two cores do not fight; random full-size weights."""

from __future__ import annotations

import os

# Before torch is imported anywhere.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Nothing in the tests may reach the network for weights.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import hypothesis
import pytest

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """random_checkpoint(model_id) -> path: a full-size checkpoint with random weights, made by the package's own
    architecture with the arguments that its official loader uses, saved as the published ones are."""
    import torch
    from orb_models.forcefield import pretrained

    architectures = {
        "orb-d3-xs-v2": lambda: pretrained.orb_v2_architecture(num_message_passing_steps=5, device="cpu"),
        "orb-d3-sm-v2": lambda: pretrained.orb_v2_architecture(num_message_passing_steps=10, device="cpu"),
        "orb-d3-v2": lambda: pretrained.orb_v2_architecture(device="cpu"),
        "orb-v3": lambda: pretrained.orb_v3_direct_architecture(device="cpu"),
        "orb-v3-direct-omol": lambda: pretrained.orb_v3_direct_architecture(
            device="cpu", has_charge_spin_cond=True, has_stress=False
        ),
        "orb-v3-conservative": lambda: pretrained.orb_v3_conservative_architecture(device="cpu"),
    }
    kind_of = {"orb-v2": "orb-d3-v2", "orb-mptraj-only-v2": "orb-d3-v2"}
    folder = tmp_path_factory.mktemp("weights")

    def make(model_id: str) -> Path:
        kind = kind_of.get(model_id, model_id)
        if kind not in architectures:
            kind = "orb-v3-conservative" if "conservative" in kind else "orb-v3"
        path = folder / f"{kind}.ckpt"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(architectures[kind]().state_dict(), path)
        return path

    return make
