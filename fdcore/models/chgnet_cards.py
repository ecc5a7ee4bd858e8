"""The card of CHGNet 0.3.0, whose weights travel in its wheel (`pip install 'force-delta[chgnet]'`). Light: no torch, no chgnet."""

from __future__ import annotations

from pathlib import Path

from fdcore.models.orb_cards import MP_ELEMENTS, MPTRJ
from fdcore.records import ModelCard

CARDS: tuple[ModelCard, ...] = (
    ModelCard(
        id="chgnet-0.3.0",
        family="chgnet",
        kind="conservative",
        summary="CHGNet, the teacher of the embedded models: a small graph network with magnetic moments. No direct force head, so no "
        "U_Delta of its own.",
        training_data=MPTRJ[0],
        reference_method=MPTRJ[1],
        elements=MP_ELEMENTS,
        licence="modified BSD (the package's own)",
        weights="embedded",
        n_parameters=412_525,
        cutoff_A=6.0,
        neighbour_cap=None,
        periodic="crystals",
        not_for="Molecules, surfaces far from any crystal, and single atoms.",
        source="chgnet 0.4.2",
        citation="Deng et al. 2023, CHGNet as a pretrained universal neural network potential, Nature Machine Intelligence 5, 1031",
        extra="chgnet",
    ),
)


def cached_file(card: ModelCard) -> Path | None:
    """There is nothing to download."""
    del card
    return None
