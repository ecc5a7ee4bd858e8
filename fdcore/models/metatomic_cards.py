"""The card of metatomic models (`pip install 'force-delta[metatomic]'`): one for every exported file. Light: no torch, no metatomic.

What the file is good for (elements, cutoff, precision) is in the file; the loader takes it from there.
"""

from __future__ import annotations

from pathlib import Path

from fdcore.records import ModelCard

CARDS: tuple[ModelCard, ...] = (
    ModelCard(
        id="metatomic",
        family="metatomic",
        kind="direct",
        summary="Any exported metatomic model (.pt) that gives non_conservative_force beside its energy, such as PET-MAD; both forces "
        "from one call. The file is named with --weights.",
        training_data="what the file was trained on",
        reference_method="of the file",
        elements=(),
        licence="of the file",
        weights="file",
        n_parameters=0,
        cutoff_A=0.0,
        neighbour_cap=None,
        gradient_proof="central differences in float64 at fixed graph, of a small exported model (tests/contracts)",
        source="metatomic-torch 0.1.19",
        citation="Bigi et al. 2025, The dark side of the forces, arXiv:2412.11569",
        extra="metatomic",
    ),
)


def cached_file(card: ModelCard) -> Path | None:
    """There is nothing to download."""
    del card
    return None
