"""Shared by all tests: one thread per worker, so that two workers on two cores do not fight; random full-size weights."""

from __future__ import annotations

import os

# Before torch is imported anywhere.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Nothing in the tests may reach the network for weights.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import fairchem_weights
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
        if model_id.startswith("metatomic-"):
            import metatomic_weights

            path = folder / f"{model_id}.pt"
            if not path.exists():
                metatomic_weights.save(path, model_id.removeprefix("metatomic-"))
            return path
        if model_id in fairchem_weights.ARCHITECTURES:
            path = folder / f"{model_id}.pt"
            if not path.exists():
                fairchem_weights.save(model_id, path)
            return path
        kind = kind_of.get(model_id, model_id)
        if kind not in architectures:
            kind = "orb-v3-conservative" if "conservative" in kind else "orb-v3"
        path = folder / f"{kind}.ckpt"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(architectures[kind]().state_dict(), path)
        return path

    return make


@pytest.fixture(scope="session")
def isolated_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """isolated_checkpoint(environment, architecture, *options) -> (path, number of parameters): random weights saved as the published ones are,
    by tests/<environment>/save_checkpoint.py in that environment, which is built where it is not there yet."""
    import functools
    import subprocess

    from fdcore.models import envs

    folder = tmp_path_factory.mktemp("isolated")

    @functools.cache
    def make(environment: str, architecture: str, *options: str) -> tuple[Path, int]:
        path = folder / f"{environment}-{architecture}{''.join(options)}.pt"
        program = Path(__file__).parent / environment / "save_checkpoint.py"
        command = [envs.python_of(environment), program, path, architecture, *options]
        variables = {**os.environ, "PYTHONPATH": envs.python_path(environment)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        assert done.returncode == 0, done.stderr
        return path, int(done.stdout.split()[-1])

    return make


@pytest.fixture(scope="session")
def eqv2_model(isolated_checkpoint):
    """eqv2_model(architecture, dtype, *options) -> the model of such a checkpoint, behind the card of a published one."""
    from dataclasses import replace

    from fdcore.models import card, eqv2

    def load(architecture: str, dtype: str, *options: str):
        path, count = isolated_checkpoint("eqv2", architecture, *options)
        published = card("eqV2_dens_31M_mp" if "--dens" in options else "eqV2_31M_mp")
        return eqv2.load(replace(published, n_parameters=count), "cpu", dtype, path)

    return load
