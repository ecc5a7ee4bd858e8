"""Cards of the models that fairchem-core 2.22 lists (`fairchem.core.calculate.pretrained_mlip`). Light: no torch, no fairchem.

Sizes: the architectures of the training configurations that the package's repository publishes, counted (eSEN-sm K4L2, eSEN-md
K10L4, AllScAIP md), and the UMA page of the hub. The loader replaces cutoff, cap and size by what the file itself says. Left out:
`esen-sm-filtered-odac25` and `esen-sm-full-odac25`, of which the registry does not say whether they are direct.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdcore.models.orb_cards import MP_ELEMENTS, OMOL_ELEMENTS
from fdcore.records import ModelCard

HUB = "https://huggingface.co/"
LICENCE = "FAIR Chemistry License"
SOURCE = "fairchem-core 2.22"

ESEN = "Fu et al. 2025, Learning Smooth and Expressive Interatomic Potentials (eSEN), arXiv:2502.12147"
OMOL25 = "Levine et al. 2025, The Open Molecules 2025 (OMol25) Dataset, arXiv:2505.08762"
OC25 = "Sahoo et al. 2025, The Open Catalyst 2025 (OC25) Dataset and Models, arXiv:2509.17862"
UMA = "Wood et al. 2025, UMA: A Family of Universal Models for Atoms, arXiv:2506.23971"

PROOF = "central differences in float64 at fixed graph, same architecture with random weights (tests/contracts)"
PROOF_SOFT = (
    "central differences in float64 with the same neighbours throughout, same architecture with random weights "
    "(tests/contracts)"
)

# Training data, reference method, elements and reach of each task of a checkpoint.
TASKS = {
    "omol": (
        "OMol25: molecules, complexes, electrolytes, charged and open-shell",
        "omegaB97M-V/def2-TZVPD",
        OMOL_ELEMENTS,
        "molecules and clusters",
    ),
    "oc25": (
        "OC25: solid-liquid interfaces with explicit solvent and ions (88 elements)",
        "RPBE with D3 dispersion, VASP",
        MP_ELEMENTS,
        "surfaces with adsorbates and solvent",
    ),
    "omat": (
        "OMat24: ab initio MD and rattled inorganic crystals",
        "PBE / PBE+U, OMat24 settings (newer pseudopotentials)",
        MP_ELEMENTS,
        "crystals",
    ),
    "oc20": ("OC20: adsorbates on metal surfaces", "RPBE, VASP", MP_ELEMENTS, "surfaces with adsorbates"),
    "omc": ("OMC25: molecular crystals", "PBE with D3 dispersion, VASP", OMOL_ELEMENTS, "molecular crystals"),
    "odac": (
        "ODAC: CO2, H2O and others in metal-organic frameworks",
        "PBE with D3 dispersion, VASP",
        MP_ELEMENTS,
        "MOFs",
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where a file lies on the hub; `name` in the package's registry, `task` of those that the file can do."""

    name: str
    repo: str
    file: str
    task: str


CHECKPOINTS: dict[str, Checkpoint] = {
    "esen-sm-direct-all-omol": Checkpoint(
        "esen-sm-direct-all-omol", "facebook/OMol25", "checkpoints/esen_sm_direct_all.pt", "omol"
    ),
    "esen-md-direct-all-omol": Checkpoint(
        "esen-md-direct-all-omol", "facebook/OMol25", "checkpoints/esen_md_direct_all.pt", "omol"
    ),
    "esen-md-direct-all-oc25": Checkpoint(
        "esen-md-direct-all-oc25", "facebook/OC25", "checkpoints/esen_md_direct.pt", "oc25"
    ),
    "allscaip-md-direct-all-omol": Checkpoint(
        "allscaip-md-direct-all-omol", "facebook/OMol25", "checkpoints/AllScAIP/AllScAIP-OMol102M-md-d.pt", "omol"
    ),
    "esen-sm-conserving-all-omol": Checkpoint(
        "esen-sm-conserving-all-omol", "facebook/OMol25", "checkpoints/esen_sm_conserving_all.pt", "omol"
    ),
    "esen-sm-conserving-all-oc25": Checkpoint(
        "esen-sm-conserving-all-oc25", "facebook/OC25", "checkpoints/esen_sm_conserve.pt", "oc25"
    ),
    "allscaip-md-conserving-all-omol": Checkpoint(
        "allscaip-md-conserving-all-omol",
        "facebook/OMol25",
        "checkpoints/AllScAIP/AllScAIP-OMol102M-md-cons.pt",
        "omol",
    ),
}
# A UMA checkpoint answers as the method of any of its tasks: as a member of an ensemble each is a model of its own.
UMA_TASKS = ("omol", "omat", "oc20", "omc", "odac")
UMA_MODELS = ("uma-s-1p1", "uma-s-1p2", "uma-s-1p2p1", "uma-m-1p1")
CHECKPOINTS |= {
    f"{name}-{task}": Checkpoint(name, "facebook/UMA", f"checkpoints/{name}.pt", task)
    for name in UMA_MODELS
    for task in UMA_TASKS
}


def cached_file(card: ModelCard) -> Path | None:
    """Where the hub's cache, as the package uses it, holds these weights, or None; imports neither torch nor the package."""
    import os

    from huggingface_hub import try_to_load_from_cache

    checkpoint = CHECKPOINTS[card.id]
    # As fairchem.core._config has it.
    cache = os.environ.get("FAIRCHEM_CACHE_DIR", os.path.join(os.path.expanduser("~"), ".cache/fairchem"))
    found = try_to_load_from_cache(checkpoint.repo, checkpoint.file, cache_dir=cache)
    return Path(found) if isinstance(found, str) else None


def _card(
    id: str,
    summary: str,
    millions: float,
    cap: int | None,
    *,
    citation: str,
    download_MB: float = 0,
    proof: str = PROOF,
) -> ModelCard:
    checkpoint = CHECKPOINTS[id]
    data, method, elements, periodic = TASKS[checkpoint.task]
    direct = "-direct-" in id
    return ModelCard(
        id=id,
        family="fairchem",
        kind="direct" if direct else "conservative",
        summary=summary if direct else f"{summary} No direct force head, so no U_Delta of its own.",
        training_data=data,
        reference_method=method,
        elements=elements,
        licence=LICENCE,
        weights="gated",
        n_parameters=round(millions * 1e6),
        cutoff_A=6.0,
        neighbour_cap=cap,
        needs_charge_spin=checkpoint.task == "omol",
        # Its attention is over all atoms.
        acts_beyond_cutoff=id.startswith("allscaip-"),
        periodic=periodic,
        download_MB=download_MB,
        gradient_proof=proof if direct else "",
        not_for="Crystals and metals; single atoms." if checkpoint.task == "omol" else "Single atoms.",
        source=SOURCE,
        citation=citation,
        address=f"{HUB}{checkpoint.repo}",
    )


SHELLS = "Keeps the 30 nearest neighbours and what is as far as the last one: its energy jumps when that set changes."
ALL = "Sees every neighbour within 6 Å."

CARDS: tuple[ModelCard, ...] = (
    _card("esen-sm-direct-all-omol", f"eSEN small, direct. {SHELLS}", 6.35, 30, citation=OMOL25, download_MB=52),
    _card("esen-md-direct-all-omol", f"eSEN medium, direct. {SHELLS}", 50.7, 30, citation=OMOL25, download_MB=406),
    _card("esen-md-direct-all-oc25", f"eSEN medium, direct. {SHELLS}", 50.7, 30, citation=OC25, download_MB=406),
    _card(
        "allscaip-md-direct-all-omol",
        "AllScAIP medium, direct: attention over all atoms, neighbours ranked softly. Not equivariant by construction.",
        86.8,
        None,
        citation=OMOL25,
        download_MB=695,
        proof=PROOF_SOFT,
    ),
    _card("esen-sm-conserving-all-omol", f"eSEN small. {ALL}", 6.35, None, citation=OMOL25, download_MB=52),
    _card("esen-sm-conserving-all-oc25", f"eSEN small. {ALL}", 6.35, None, citation=OC25, download_MB=52),
    _card("allscaip-md-conserving-all-omol", "AllScAIP medium.", 86.8, None, citation=OMOL25, download_MB=695),
    *(
        _card(
            f"{name}-{task}", f"UMA {name.removeprefix('uma-')} as its task {task}. {ALL}", millions, None, citation=UMA
        )
        for name, millions in zip(UMA_MODELS, (147, 290, 290, 1400), strict=True)
        for task in UMA_TASKS
    ),
)
