"""Cards of the published EquiformerV2 models. Light on purpose: listing models must not import torch.

Numbers of parameters, training sets and files: Barroso-Luque et al. 2024 (arXiv:2410.12771) and fairchem's list of pretrained models; DeNS:
Liao et al. 2024 (arXiv:2403.09549). How large the files are is shown behind the hub's gate only, so that no card says it.
"""

from __future__ import annotations

from pathlib import Path

from fdcore.models.orb_cards import MP_ELEMENTS, MPTRJ
from fdcore.records import ModelCard

HUB_REPOSITORY = "facebook/OMAT24"
HUB_PAGE = f"https://huggingface.co/{HUB_REPOSITORY}"
# Named so in public text; the licence itself is shown on the hub's page only, which needs an account.
LICENCE = "OMat24 License (Meta's own, with conditions of use), accepted on the hub's page"
CITATION = (
    "Barroso-Luque et al. 2024, Open Materials 2024 (OMat24) Inorganic Materials Dataset and Models, arXiv:2410.12771"
)
PROOF = "four-point differences in float64 at fixed graph, same architecture with random weights (tests/contracts)"
CAP = (
    "Keeps about the 20 nearest neighbours within 12 Å (all that are as near as the 21st): its energy jumps when that set changes, also in "
    "perfect crystals."
)
OMAT_MP_SALEX = (
    "OMat24, then MPtrj and sAlex: ab initio MD, rattled and relaxing inorganic crystals",
    "PBE / PBE+U, Materials Project settings",
)

# Layers and lmax, by size.
SHAPES = {"small": (8, 4), "medium": (10, 6), "large": (20, 6)}


def cached_file(card: ModelCard) -> Path | None:
    """Where the hub's download cache holds these weights, or None; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(HUB_REPOSITORY, file_name(card))
    return Path(found) if isinstance(found, str) else None


def file_name(card: ModelCard) -> str:
    """What the file is called on the hub."""
    return f"{card.id}.pt"


def is_dens(card: ModelCard) -> bool:
    return "_dens_" in card.id


def seconds_per_edge(n_parameters: int) -> float:
    """Both forces on one core: every parameter is used for many components and grid points. Measured: 6 to 8 ms with the
    31M, 17 to 22 with the 86M, 30 with the 153M."""
    return 2e-10 * n_parameters


def bytes_per_edge(layers: int, lmax: int, channels: int) -> float:
    """What the backward pass keeps, in single precision: 19 numbers of each component of a feature. Measured: 1.9 MB with the 31M
    (1.6 to 2.5), 2.6 to 4.4 with the 86M, 3.8 to 6.9 with the 153M."""
    return 4 * 19.0 * layers * (lmax + 1) ** 2 * channels


def _card(id: str, n_parameters: int, data: tuple[str, str], size: str) -> ModelCard:
    dens = "trained with denoising of non-equilibrium structures (DeNS), " if "_dens_" in id else ""
    return ModelCard(
        id=id,
        family="eqv2",
        kind="direct",
        summary=f"EquiformerV2, {size}, {dens}direct. Runs in an environment of its own (fairchem-core 1.10). {CAP}",
        training_data=data[0],
        reference_method=data[1],
        elements=MP_ELEMENTS,
        licence=LICENCE,
        weights="gated",
        n_parameters=n_parameters,
        cutoff_A=12.0,
        neighbour_cap=20,
        gradient_proof=PROOF,
        not_for="Charged systems, and molecules far from anything inorganic.",
        source="fairchem-core 1.10.0",
        citation=CITATION,
        address=f"{HUB_PAGE}/blob/main/{id}.pt",
        seconds_per_edge=seconds_per_edge(n_parameters),
        bytes_per_edge=bytes_per_edge(*SHAPES[size], channels=128),
    )


CARDS: tuple[ModelCard, ...] = (
    _card("eqV2_31M_mp", 31_207_434, MPTRJ, "small"),
    _card("eqV2_dens_31M_mp", 34_339_083, MPTRJ, "small"),
    _card("eqV2_dens_86M_mp", 94_033_933, MPTRJ, "medium"),
    _card("eqV2_dens_153M_mp", 160_673_293, MPTRJ, "large"),
    _card("eqV2_31M_omat_mp_salex", 31_207_434, OMAT_MP_SALEX, "small"),
    _card("eqV2_86M_omat_mp_salex", 86_589_068, OMAT_MP_SALEX, "medium"),
    _card("eqV2_153M_omat_mp_salex", 153_769_868, OMAT_MP_SALEX, "large"),
)
