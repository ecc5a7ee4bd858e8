"""Full-size fairchem checkpoints with random weights: made by the package's own architectures with the arguments of the training
configurations that its repository publishes, saved as the package saves inference checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BLOCKS = "fairchem.core.models.uma.escn_md."
MIXED = "fairchem.core.models.uma.escn_moe."
SOFT = "fairchem.core.models.allscaip.AllScAIP."
UNIT = "fairchem.core.units.mlip_unit.mlip_unit."
NORMS = "fairchem.core.modules.normalization."
NARROW = {"sphere_channels": 16, "edge_channels": 16, "hidden_channels": 16}
UMA_TASKS = ["omol", "omat", "oc20", "omc", "odac"]


def esen(size: str, *, direct: bool, datasets: list[str], experts: int | None = None, **changes: Any) -> dict:
    """eSEN: "sm" (K4L2) or "md" (K10L4); with `experts`, UMA."""
    backbone: dict[str, Any] = {
        "model": BLOCKS + "eSCNMDBackbone",
        "max_num_elements": 100,
        "sphere_channels": 128,
        "lmax": 2 if size == "sm" else 4,
        "mmax": 2,
        "otf_graph": True,
        "max_neighbors": 30 if direct else 300,
        "use_pbc": True,
        "use_pbc_single": True,
        "cutoff": 6.0,
        "edge_channels": 128,
        "distance_function": "gaussian",
        "num_distance_basis": 64 if size == "sm" else 128,
        "direct_forces": direct,
        "regress_forces": True,
        "regress_stress": experts is not None,
        "num_layers": 4 if size == "sm" else 10,
        "hidden_channels": 128,
        "norm_type": "rms_norm_sh",
        "act_type": "gate",
        "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb",
        "cs_emb_grad": True,
        "dataset_mapping": {d: d for d in datasets},
    }
    if direct:
        heads = {"energy": {"module": BLOCKS + "MLP_Energy_Head"}, "forces": {"module": BLOCKS + "Linear_Force_Head"}}
    elif experts is None:
        heads = {"energyandforcehead": {"module": BLOCKS + "MLP_EFS_Head"}}
    else:
        backbone |= {
            "model": MIXED + "eSCNMDMoeBackbone",
            "num_experts": experts,
            # By this the package knows UMA 1.1.
            "model_version": 1.1,
            "moe_dropout": 0.05,
            "moe_layer_type": "pytorch",
            "use_composition_embedding": True,
        }
        heads = _wrapped(BLOCKS + "MLP_EFS_Head", datasets)
    return _model(backbone | changes, heads, whole=not direct)


def allscaip(*, direct: bool, **changes: Any) -> dict:
    backbone = {
        "model": SOFT + "AllScAIPBackbone",
        "num_layers": 10,
        "hidden_size": 640,
        "direct_forces": direct,
        "regress_forces": True,
        "regress_stress": False,
        "use_compile": True,
        "use_padding": direct,
        "dataset_list": ["omol"],
        "use_node_path": True,
        "use_freq_mask": False,
        "use_sincx_mask": False,
        "max_num_elements": 110,
        "max_batch_size": 96,
        "max_atoms": 400,
        "max_radius": 6.0,
        "knn_k": 30,
        "knn_soft": True,
        "knn_sigmoid_scale": 0.2,
        "knn_lse_scale": 0.1,
        "knn_use_low_mem": True,
        "knn_pad_size": 50,
        "atten_name": "memory_efficient",
        "atten_num_heads": 10,
    } | changes
    if direct:
        heads = {
            "energy": {"module": SOFT + "AllScAIPEnergyHead"},
            "forces": {"module": SOFT + "AllScAIPDirectForceHead"},
        }
    else:
        heads = _wrapped(SOFT + "AllScAIPGradientEnergyForceStressHead", ["omol"])
    return _model(backbone, heads, whole=not direct)


def _wrapped(head: str, datasets: list[str]) -> dict:
    """A head whose outputs are called after their dataset."""
    return {
        "energyandforcehead": {
            "module": MIXED + "DatasetSpecificSingleHeadWrapper",
            "head_cls": head,
            "head_kwargs": {"wrap_property": False},
            "dataset_names": datasets,
        }
    }


def _model(backbone: dict, heads: dict, *, whole: bool) -> dict:
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": backbone,
        "heads": heads,
        "pass_through_head_outputs": whole,
    }


ARCHITECTURES: dict[str, tuple[Any, list[str]]] = {
    "esen-sm-direct-all-omol": (lambda: esen("sm", direct=True, datasets=["omol"]), ["omol"]),
    "esen-md-direct-all-omol": (lambda: esen("md", direct=True, datasets=["omol"]), ["omol"]),
    "esen-md-direct-all-oc25": (lambda: esen("md", direct=True, datasets=["oc25"]), ["oc25"]),
    "allscaip-md-direct-all-omol": (lambda: allscaip(direct=True), ["omol"]),
    "esen-sm-conserving-all-omol": (lambda: esen("sm", direct=False, datasets=["omol"]), ["omol"]),
    "esen-sm-conserving-all-oc25": (lambda: esen("sm", direct=False, datasets=["oc25"]), ["oc25"]),
    "allscaip-md-conserving-all-omol": (lambda: allscaip(direct=False), ["omol"]),
    "uma-s-1p1": (lambda: esen("sm", direct=False, datasets=UMA_TASKS, experts=32), UMA_TASKS),
    # For what does not depend on size.
    "small-esen": (lambda: esen("sm", direct=True, datasets=["omol"], **NARROW), ["omol"]),
    "small-oc25": (lambda: esen("sm", direct=True, datasets=["oc25"], max_neighbors=20, **NARROW), ["oc25"]),
    "small-conserving": (lambda: esen("sm", direct=False, datasets=["omol"], **NARROW), ["omol"]),
    "small-conserving-oc25": (lambda: esen("sm", direct=False, datasets=["oc25"], **NARROW), ["oc25"]),
    "small-allscaip-conserving": (
        lambda: allscaip(direct=False, num_layers=2, hidden_size=64, atten_num_heads=4),
        ["omol"],
    ),
    "small-allscaip": (lambda: allscaip(direct=True, num_layers=2, hidden_size=64, atten_num_heads=4), ["omol"]),
    "small-uma": (
        lambda: esen("sm", direct=False, datasets=UMA_TASKS, experts=4, **NARROW),
        UMA_TASKS,
    ),
}


def save(name: str, path: Path) -> None:
    """Write the checkpoint of that name with random weights."""
    import hydra
    import numpy as np
    import torch
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

    from fdcore.models.process_settings import settings_kept

    make, datasets = ARCHITECTURES[name]
    with settings_kept():
        torch.manual_seed(0)
        config = make()
        model = hydra.utils.instantiate(config)
        ema = torch.optim.swa_utils.AveragedModel(model)
        references = [0.0, *np.random.default_rng(0).normal(size=109).tolist()]
        tasks = [task for d in datasets for task in _tasks(d, references, named="dataset_names" in str(config))]
        torch.save(MLIPInferenceCheckpoint(config, model.state_dict(), ema.state_dict(), tasks), path)


def _tasks(dataset: str, references: list[float], *, named: bool) -> list[dict]:
    prefix = f"{dataset}_" if named else ""
    common = {
        "_target_": UNIT + "Task",
        "datasets": [dataset],
        "normalizer": {"_target_": NORMS + "normalizer.Normalizer", "mean": 0.0, "rmsd": 1.433569},
    }
    energy = {
        "name": prefix + "energy",
        "level": "system",
        "property": "energy",
        "out_spec": {"_target_": UNIT + "OutputSpec", "dim": [1], "dtype": "float32"},
        "element_references": {
            "_target_": NORMS + "element_references.ElementReferences",
            "element_references": {"_target_": "torch.DoubleTensor", "_args_": [references]},
        },
    }
    forces = {
        "name": prefix + "forces",
        "level": "atom",
        "property": "forces",
        "out_spec": {"_target_": UNIT + "OutputSpec", "dim": [3], "dtype": "float32"},
    }
    return [common | energy, common | forces]
