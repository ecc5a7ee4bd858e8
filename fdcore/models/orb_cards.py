"""Cards of the published Orb models. Light on purpose: listing models must not import torch.

Sizes and addresses: orb-models 0.7.0 (`orb_models.forcefield.pretrained`); training sets: Neumann et al. 2024
(arXiv:2410.22570) and Rhodes et al. 2025 (arXiv:2504.06231), OrbMol: the package's README.
"""

from __future__ import annotations

from pathlib import Path

from ase.data import chemical_symbols

from fdcore.records import ModelCard

# MPtrj, Alexandria and OMat24 share the 89 elements of the Materials Project: no Po, At, Rn, Fr, Ra.
MP_ELEMENTS = tuple(chemical_symbols[z] for z in [*range(1, 84), *range(89, 95)])
# OMol25: hydrogen to bismuth.
OMOL_ELEMENTS = tuple(chemical_symbols[z] for z in range(1, 84))

V2 = "Neumann et al. 2024, Orb: A Fast, Scalable Neural Network Potential, arXiv:2410.22570"
V3 = "Rhodes et al. 2025, Orb-v3: atomistic simulation at scale, arXiv:2504.06231"
PROOF = "central differences in float64 at fixed graph, same architecture with random weights (tests/contracts)"

MPA = (
    "MPtrj and Alexandria: inorganic crystals, relaxations and off-equilibrium frames",
    "PBE / PBE+U, Materials Project settings",
)
MPA_D3 = (MPA[0], "PBE / PBE+U with D3 dispersion, Materials Project settings")
OMAT = ("OMat24: ab initio MD and rattled inorganic crystals", "PBE / PBE+U, OMat24 settings (newer pseudopotentials)")
OMOL = ("OMol25: molecules, complexes, electrolytes, charged and open-shell", "omegaB97M-V/def2-TZVPD")
MPTRJ = ("MPtrj: relaxation trajectories of inorganic crystals", "PBE / PBE+U, Materials Project settings")

CAP_20 = "Keeps the 20 nearest neighbours: its energy jumps when that set changes, and in perfect crystals the cut splits a shell."
CAP_120 = "Keeps up to 120 neighbours within 6 Å, which is all of them except in very dense crystals."

# What orb-models' loaders download (their default `weights_path`; a test compares).
PUBLISHER = "https://orbitalmaterials-public-models.s3.us-west-1.amazonaws.com/forcefields/"
FILES = {
    "orb-v3-direct-inf-mpa": "orb-v3/orb-v3-direct-inf-mpa-20250404.ckpt",
    "orb-v3-direct-20-mpa": "orb-v3/orb-v3-direct-20-mpa-20250404.ckpt",
    "orb-v3-direct-inf-omat": "orb-v3/orb-v3-direct-inf-omat-20250404.ckpt",
    "orb-v3-direct-20-omat": "orb-v3/orb-v3-direct-20-omat-20250404.ckpt",
    "orb-v3-direct-omol": "orb-v3-direct-omol-20250820.ckpt",
    "orb-d3-xs-v2": "orb-d3-xs-v2-20241011.ckpt",
    "orb-d3-sm-v2": "orb-d3-sm-v2-20241011.ckpt",
    "orb-d3-v2": "orb-d3-v2-20241011.ckpt",
    "orb-v2": "orb-v2-20241011.ckpt",
    "orb-mptraj-only-v2": "orb-mptraj-only-v2-20241014.ckpt",
    "orb-v3-conservative-inf-mpa": "orb-v3/orb-v3-conservative-inf-mpa-20250404.ckpt",
    "orb-v3-conservative-20-mpa": "orb-v3/orb-v3-conservative-20-mpa-20250404.ckpt",
    "orb-v3-conservative-inf-omat": "orb-v3/orb-v3-conservative-inf-omat-20250404.ckpt",
    "orb-v3-conservative-20-omat": "orb-v3/orb-v3-conservative-20-omat-20250404.ckpt",
    "orb-v3-conservative-omol": "orb-v3-conservative-omol-20250820.ckpt",
}


def cached_file(card: ModelCard) -> Path | None:
    """Where the package's download cache holds these weights, or None; imports neither torch nor the package."""
    from cached_path import get_cache_dir
    from cached_path.util import find_latest_cached

    found = find_latest_cached(card.address, get_cache_dir())
    return Path(found) if found else None


def _v2(id: str, data: tuple[str, str], millions: float) -> ModelCard:
    return ModelCard(
        id=id,
        family="orb",
        kind="direct",
        summary=f"Orb v2, direct. {CAP_20}",
        training_data=data[0],
        reference_method=data[1],
        elements=MP_ELEMENTS,
        licence="Apache-2.0",
        weights="download",
        n_parameters=round(millions * 1e6),
        cutoff_A=6.0,
        neighbour_cap=20,
        download_MB=round(4 * millions),
        gradient_proof=PROOF,
        not_for="Charged systems, and molecules far from anything inorganic.",
        source="orb-models 0.7.0",
        citation=V2,
        address=PUBLISHER + FILES[id],
    )


def _v3(id: str, data: tuple[str, str], cap: int, *, kind: str = "direct", omol: bool = False) -> ModelCard:
    conservative = kind == "conservative"
    head = "no direct force head, so no U_Delta of its own" if conservative else "direct"
    return ModelCard(
        id=id,
        family="orb",
        kind="conservative" if conservative else "direct",
        summary=f"Orb v3, {head}. {CAP_20 if cap == 20 else CAP_120}",
        training_data=data[0],
        reference_method=data[1],
        elements=OMOL_ELEMENTS if omol else MP_ELEMENTS,
        licence="Apache-2.0",
        weights="download",
        n_parameters=25_600_000,
        cutoff_A=6.0,
        neighbour_cap=cap,
        needs_charge_spin=omol,
        periodic="molecules and clusters" if omol else "crystals, surfaces and molecules",
        trained_on=("molecule",) if omol else ("periodic", "molecule"),
        confidence_head=True,
        download_MB=102,
        gradient_proof="" if conservative else PROOF,
        not_for="Crystals and metals." if omol else "Charged systems, and molecules far from anything inorganic.",
        source="orb-models 0.7.0",
        citation=V3,
        address=PUBLISHER + FILES[id],
    )


CARDS: tuple[ModelCard, ...] = (
    _v3("orb-v3-direct-inf-mpa", MPA, 120),
    _v3("orb-v3-direct-20-mpa", MPA, 20),
    _v3("orb-v3-direct-inf-omat", OMAT, 120),
    _v3("orb-v3-direct-20-omat", OMAT, 20),
    _v3("orb-v3-direct-omol", OMOL, 120, omol=True),
    _v2("orb-d3-xs-v2", MPA_D3, 9.4),
    _v2("orb-d3-sm-v2", MPA_D3, 17.3),
    _v2("orb-d3-v2", MPA_D3, 25.2),
    _v2("orb-v2", MPA, 25.2),
    _v2("orb-mptraj-only-v2", MPTRJ, 25.2),
    _v3("orb-v3-conservative-inf-mpa", MPA, 120, kind="conservative"),
    _v3("orb-v3-conservative-20-mpa", MPA, 20, kind="conservative"),
    _v3("orb-v3-conservative-inf-omat", OMAT, 120, kind="conservative"),
    _v3("orb-v3-conservative-20-omat", OMAT, 20, kind="conservative"),
    _v3("orb-v3-conservative-omol", OMOL, 120, kind="conservative", omol=True),
)
