"""Small Orb-v3-style direct models out of orb-models' own classes, kept as safetensors with their recipe as metadata.

The file holds the state dict (normalisers and reference energies included); its metadata hold everything else that is needed
to build the module, so a file explains itself and nothing is ever unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.common.models.angular import SphericalHarmonics
from orb_models.common.models.gns import MoleculeGNS
from orb_models.common.models.rbf import BesselBasis
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor
from orb_models.forcefield.models.forcefield_heads import EnergyHead, ForceHead
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fdcore.errors import WeightsError

FORMAT = "fdcore.small_orb.1"
# The package's cutoff function is written for this radius (Å).
PACKAGE_CUTOFF_A = 6.0
# More neighbours than any structure has within 5 Å short of a collapsed one.
MAX_NEIGHBOURS = 200


@dataclass(frozen=True)
class SmallOrbConfig:
    """The architecture. Widths and depths as in `orb_models.forcefield.pretrained.orb_v3_direct_architecture`."""

    latent_dim: int = 64
    hidden_dim: int = 128
    head_hidden_dim: int = 64
    mlp_depth: int = 2
    message_passing_steps: int = 3
    cutoff_A: float = 5.0
    radial_basis: int = 8
    angular_lmax: int = 3
    max_neighbours: int = MAX_NEIGHBOURS


class ShortRangeGNS(MoleculeGNS):
    """The package's backbone with another cutoff: it sees edge vectors scaled so that its own 6 Å fall on `cutoff_A`."""

    def __init__(self, cutoff_A: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.scale = PACKAGE_CUTOFF_A / cutoff_A

    def forward(self, batch: AtomGraphs) -> dict[str, torch.Tensor]:
        """The package's forward pass on scaled vectors; the batch gets its own vectors back (ZBL reads them)."""
        vectors = batch.edge_features["vectors"]
        batch.edge_features["vectors"] = vectors * self.scale
        try:
            return super().forward(batch)
        finally:
            batch.edge_features["vectors"] = vectors


def build(config: SmallOrbConfig) -> tuple[DirectForcefieldRegressor, ForcefieldAtomsAdapter]:
    """An untrained module with its adapter, in single precision, trainable, normalisers fixed (not learnt online)."""
    if torch.get_default_dtype() != torch.float32:
        raise RuntimeError("Small Orb models are built in single precision; convert the module afterwards.")
    shared = {"activation": "silu", "online_normalisation": False}
    head = {"latent_dim": config.latent_dim, "num_mlp_layers": 1, "mlp_hidden_dim": config.head_hidden_dim}
    module = DirectForcefieldRegressor(
        heads={
            "energy": EnergyHead(**head, predict_atom_avg=True, **shared),
            "forces": ForceHead(**head, remove_mean=True, remove_torque_for_nonpbc_systems=True, **shared),
        },
        model=ShortRangeGNS(
            config.cutoff_A,
            latent_dim=config.latent_dim,
            num_message_passing_steps=config.message_passing_steps,
            num_mlp_layers=config.mlp_depth,
            mlp_hidden_dim=config.hidden_dim,
            rbf_transform=BesselBasis(r_max=PACKAGE_CUTOFF_A, num_bases=config.radial_basis),
            angular_transform=SphericalHarmonics(lmax=config.angular_lmax, normalize=True, normalization="component"),
            outer_product_with_cutoff=True,
            use_embedding=True,
            interaction_params={"distance_cutoff": True, "attention_gate": "sigmoid"},
            node_feature_names=["feat"],
            edge_feature_names=["feat"],
            activation="silu",
            mlp_norm="rms_norm",
        ),
        # lambda_E : lambda_F = 1 : 1, as Orb was trained.
        loss_weights={"energy": 1.0, "forces": 1.0},
        pair_repulsion=True,
    )
    # Whoever has the module can write it down again.
    module.small_orb_config = config  # pyright: ignore[reportArgumentType] (torch's stubs know only tensors and modules)
    return module, ForcefieldAtomsAdapter(radius=config.cutoff_A, max_num_neighbors=config.max_neighbours)


def save(
    path: Path, module: DirectForcefieldRegressor, config: SmallOrbConfig, metadata: dict[str, str] | None = None
) -> None:
    """Write the state dict and the recipe; `metadata` (strings) travels along."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, str(path), {"format": FORMAT, "config": json.dumps(asdict(config)), **(metadata or {})})


def load(
    path: Path, device: str = "cpu", dtype: str = "float32"
) -> tuple[DirectForcefieldRegressor, ForcefieldAtomsAdapter, SmallOrbConfig, dict[str, str]]:
    """Read a file written by `save`: module (frozen, eval mode), adapter, config, metadata.

    Raises WeightsError when the file is damaged, of another format, or does not fill the module exactly.
    """
    again = "Use a file written by fdcore, complete and unchanged."
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} is not a readable safetensors file: {error}", again) from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path.name} is not an embedded fdcore model (format {metadata.get('format')!r}).", again)
    try:
        config = _read_config(metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path.name} carries no usable recipe: {error}", again) from error
    module, adapter = build(config)
    expected = module.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or [n for n in expected if expected[n].shape != state[n].shape]
    if wrong:
        raise WeightsError(f"{path.name} does not fill its own architecture: {', '.join(wrong[:3])} ...", again)
    # The package's own load_state_dict only warns about missing heads; everything was checked above.
    torch.nn.Module.load_state_dict(module, state, strict=True)
    module = module.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    return module, adapter, config, metadata


# Larger than any model that is called small: a recipe from outside must not allocate the machine's memory.
_LIMITS = {"latent_dim": 1024, "hidden_dim": 4096, "head_hidden_dim": 4096, "mlp_depth": 8, "message_passing_steps": 32}


def _read_config(text: str) -> SmallOrbConfig:
    content = json.loads(text)
    names = {f.name for f in fields(SmallOrbConfig)}
    if set(content) != names:
        raise ValueError(f"fields {sorted(set(content) ^ names)}")
    for name, value in content.items():
        whole = name != "cutoff_A"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value <= 0:
            raise ValueError(f"{name} = {value!r}")
        if value > _LIMITS.get(name, 1000):
            raise ValueError(f"{name} = {value} is too large")
    return SmallOrbConfig(**content)
