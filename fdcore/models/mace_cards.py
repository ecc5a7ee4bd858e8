"""Cards of published MACE models. Light on purpose: listing models must not import torch.

Names, training sets, licences, addresses: the table of ACEsuit/mace-foundations and the package's own list of addresses (mace-torch 0.3.16).
Numbers of parameters: of the architectures in the published training scripts, built with the package (matbench-discovery states the same for
MACE-MP-0 medium and MACE-MPA-0). Those of MACE-OFF23, and the sizes of most files, were not found in public text: the former are taken from the
file when it is loaded, the latter are left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fdcore.models.orb_cards import MP_ELEMENTS, MPA, MPTRJ, OMAT
from fdcore.records import ModelCard

RELEASES = "https://github.com/ACEsuit/mace-mp/releases/download/"
MP_0 = f"{RELEASES}mace_mp_0/"
ORGANIC_FILES = "https://raw.githubusercontent.com/ACEsuit/mace-off/main/mace_off23/"
FOUNDATIONS = "Batatia et al. 2023, A foundation model for atomistic materials chemistry, arXiv:2401.00096"
ORGANIC = "Kovács et al. 2023, MACE-OFF: Transferable Short Range Machine Learning Force Fields for Organic Molecules, arXiv:2312.15211"
ASL = "Academic Software License (ASL): no commercial use; whoever downloads the file accepts it"
SPICE = ("SPICE and further organic molecules, dimers and water clusters", "omegaB97M-D3(BJ)/def2-TZVPPD")
# Numbers that the first layer keeps of an atom, by the size in the name; for MACE-OFF23 a guess, until the file is read.
WIDTHS = {"small": 128, "medium": 512, "large": 1152}
OFF_ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")
PROOF = "central differences in float64, same architecture with random weights (tests/mace)"


def cached_file(card: ModelCard) -> Path | None:
    """Where the package's download cache holds these weights, or None; imports neither torch nor the package."""
    name = card.address.rsplit("/", 1)[-1]
    # Of most names the package leaves letters, digits and underscores.
    cached = name if card.id.startswith("mace-off23") else "".join(c for c in name if c.isalnum() or c == "_")
    path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mace" / cached
    return path if path.is_file() else None


def costs(layers: int, channels: int, width: int) -> dict[str, float]:
    """What a card says of the cost of an edge, from the shape of the network; `width`: numbers that a layer keeps of an atom. Measured on one
    core with 216 atoms, the three sizes of MACE-MP-0 (2 layers, 128 channels, width 128, 512, 1152): 0.17, 0.37, 0.9 ms; 37, 94, 186 kB."""
    numbers = layers * (channels + width)
    return {"seconds_per_edge": 3e-7 * numbers, "bytes_per_edge": 75.0 * numbers}


def _materials(
    id: str, address: str, n_parameters: int, data: tuple[str, str], licence: str = "MIT", note: str = ""
) -> ModelCard:
    return _card(
        id,
        address,
        n_parameters,
        6.0,
        data,
        licence,
        note,
        elements=MP_ELEMENTS,
        not_for="Charged systems, and molecules far from anything inorganic.",
        citation=FOUNDATIONS,
    )


def _organic(size: str, cutoff_A: float, download_MB: float = 0.0) -> ModelCard:
    return _card(
        f"mace-off23-{size}",
        f"{ORGANIC_FILES}MACE-OFF23_{size}.model",
        0,
        cutoff_A,
        SPICE,
        ASL,
        "",
        elements=OFF_ELEMENTS,
        trained_on=("molecule",),
        download_MB=download_MB,
        not_for="Charged molecules, radicals, and anything that is not organic.",
        citation=ORGANIC,
    )


def _card(
    id: str,
    address: str,
    n_parameters: int,
    cutoff_A: float,
    data: tuple[str, str],
    licence: str,
    note: str,
    **more: Any,
) -> ModelCard:
    return ModelCard(
        id=id,
        family="mace",
        kind="conservative",
        summary="MACE, conservative: a member of ensembles and a reference; no direct force head, so no U_Delta of its own. Runs in an "
        f"environment of its own (mace-torch 0.3.16).{note}",
        training_data=data[0],
        reference_method=data[1],
        licence=licence,
        weights="download",
        n_parameters=n_parameters,
        cutoff_A=cutoff_A,
        neighbour_cap=None,
        gradient_proof=PROOF,
        source="mace-torch 0.3.16",
        address=address,
        **costs(2, 128, WIDTHS[id.rsplit("-", 1)[1]]),
        **more,
    )


CARDS: tuple[ModelCard, ...] = (
    _materials("mace-mp-0-small", f"{MP_0}2023-12-10-mace-128-L0_energy_epoch-249.model", 3_847_696, MPTRJ),
    _materials("mace-mp-0-medium", f"{MP_0}2023-12-03-mace-128-L1_epoch-199.model", 4_688_656, MPTRJ),
    _materials(
        "mace-mp-0-large",
        f"{MP_0}2024-01-07-mace-128-L2_epoch-199.model",
        5_725_072,
        MPTRJ,
        note=' This is the file that its authors list; the package\'s own name "large" stands for an older one, MACE_MPtrj_2022.9.model.',
    ),
    _materials("mace-mpa-0-medium", f"{RELEASES}mace_mpa_0/mace-mpa-0-medium.model", 9_063_204, MPA),
    _materials("mace-omat-0-small", f"{RELEASES}mace_omat_0/mace-omat-0-small.model", 8_222_244, OMAT, ASL),
    _materials("mace-omat-0-medium", f"{RELEASES}mace_omat_0/mace-omat-0-medium.model", 9_063_204, OMAT, ASL),
    _organic("small", 4.5, download_MB=7),
    _organic("medium", 5.0),
    _organic("large", 5.0),
)
