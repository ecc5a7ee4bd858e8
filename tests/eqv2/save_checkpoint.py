"""Run by the tests in the environment of EquiformerV2: a checkpoint with random weights, as the published ones are saved.

    PYTHONPATH=WORKER_FOLDER:ENVS_FOLDER python save_checkpoint.py OUT ARCHITECTURE [--dens] [--ema]

The configuration is the published one (fairchem's configs/omat24), the sizes those of the paper; "small" is for quick tests.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from worker import _import_package

SIZES = {
    "31M": {"num_layers": 8, "lmax_list": [4], "mmax_list": [2]},
    "86M": {"num_layers": 10, "lmax_list": [6], "mmax_list": [4]},
    "153M": {"num_layers": 20, "lmax_list": [6], "mmax_list": [3]},
    "small": {
        "num_layers": 2,
        "lmax_list": [3],
        "mmax_list": [2],
        "sphere_channels": 16,
        "attn_hidden_channels": 8,
        "num_heads": 2,
        "attn_alpha_channels": 8,
        "attn_value_channels": 4,
        "ffn_hidden_channels": 16,
        "edge_channels": 16,
    },
}
BACKBONE = {
    "model": "equiformer_v2_backbone",
    "use_pbc": True,
    "use_pbc_single": True,
    "otf_graph": True,
    "enforce_max_neighbors_strictly": False,
    "max_neighbors": 20,
    "max_radius": 12.0,
    "max_num_elements": 96,
    "avg_num_nodes": 31.16592360068011,
    "avg_degree": 61.94676351484548,
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "norm_type": "layer_norm_sh",
    "grid_resolution": 18,
    "num_sphere_samples": 128,
    "edge_channels": 128,
    "use_atom_edge_embedding": True,
    "share_atom_edge_embedding": False,
    "use_m_share_rad": False,
    "distance_function": "gaussian",
    "num_distance_basis": 512,
    "attn_activation": "silu",
    "use_s2_act_attn": False,
    "use_attn_renorm": True,
    "ffn_activation": "silu",
    "use_gate_act": False,
    "use_grid_mlp": True,
    "use_sep_s2_act": True,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
    "proj_drop": 0.0,
    "weight_init": "uniform",
}
STRESS = {"output_name": "stress", "use_source_target_embedding": True, "decompose": True}
DENS = "fairchem.core.models.equiformer_v2.equiformer_v2_dens."


def model_config(architecture: str, dens: bool) -> dict:
    backbone = {**BACKBONE, **SIZES[architecture]}
    heads = {
        "energy": {"module": "equiformer_v2_energy_head"},
        "forces": {"module": "equiformer_v2_force_head"},
        "stress": {"module": "rank2_symmetric_head", **STRESS},
    }
    if dens:
        backbone["model"] = DENS + "EqV2DeNSBackbone"
        backbone |= {"use_force_encoding": True, "use_noise_schedule_sigma_encoding": False}
        heads = {
            "energy": {"module": DENS + "DeNSScalarHead", "use_denoising": True},
            "forces": {"module": DENS + "DeNSVectorHead"},
            "stress": {"module": DENS + "DeNSRank2Head", **STRESS, "use_denoising": False},
        }
    return {
        "name": "hydra",
        "pass_through_head_outputs": True,
        "otf_graph": True,
        "backbone": backbone,
        "heads": heads,
    }


def config(architecture: str, dens: bool) -> dict:
    parts = {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}}
    optim = {"batch_size": 8, "lr_initial": 2e-4, "max_epochs": 16, "ema_decay": 0.999, "scheduler_params": {}}
    optim |= {"optimizer": "AdamW", "optimizer_params": {"weight_decay": 0.001}, "scheduler": "LambdaLR"}
    if dens:
        noise = {"prob": 0.5, "fixed_noise_std": True, "std": 0.1}
        optim |= {"use_denoising_pos": True, "denoising_pos_params": noise, "denoising_pos_coefficient": 10}
    return {
        "trainer": "equiformerv2_dens" if dens else "equiformerv2_forces",
        "model": model_config(architecture, dens),
        "dataset": {"train": None, "src": "nowhere", "format": "ase_db"},
        "outputs": {
            "energy": {"level": "system", "property": "energy"},
            "forces": {"level": "atom", "property": "forces"},
            "stress": {"level": "system", "property": "stress", "decomposition": parts},
        },
        "loss_functions": [{"energy": {"fn": "per_atom_mae", "coefficient": 5}}],
        "evaluation_metrics": {"primary_metric": "energy_mae", "metrics": {"energy": ["mae"]}},
        "optim": optim,
        "task": {},
        "cmd": {"seed": 0},
    }


def save(out: Path, architecture: str, dens: bool, ema: bool) -> int:
    from fairchem.core.common.registry import registry
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import Normalizer

    settings = config(architecture, dens)
    arguments = copy.deepcopy(settings["model"])
    torch.manual_seed(0)
    model = registry.get_model_class(arguments.pop("name"))(**arguments)

    def normalizer(rmsd: float) -> dict:
        return Normalizer(mean=torch.tensor(0.0), rmsd=torch.tensor(rmsd)).state_dict()

    # Random weights give forces a hundredth of real ones: larger factors make up for it.
    moments = {"energy": 142.3, "forces": 142.3, "stress_isotropic": 674.166, "stress_anisotropic": 143.728}
    references = torch.randn(120, generator=torch.Generator().manual_seed(1))
    state, averaged = model.state_dict(), None
    if ema:
        # The averaged weights are the real ones; those beside them must not be used.
        averaged = {"decay": 0.999, "num_updates": None, "collected_params": []}
        averaged["shadow_params"] = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        state = {k: 1.5 * v if k in trained else v for k, v in state.items()}
    document = {
        "config": settings,
        "state_dict": state,
        "normalizers": {name: normalizer(rmsd) for name, rmsd in moments.items()},
        "elementrefs": {"energy": LinearReferences(element_references=references).state_dict()},
        "ema": averaged,
        "epoch": 0,
        "step": 0,
        "amp": None,
        "scale_dict": None,
    }
    torch.save(document, out)
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("architecture", choices=SIZES)
    parser.add_argument("--dens", action="store_true")
    parser.add_argument("--ema", action="store_true")
    given = parser.parse_args()
    _import_package()
    print(save(given.out, given.architecture, given.dens, given.ema))
