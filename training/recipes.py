"""What tells one embedded model from another: how its data is made, and the words of its card.

The programs beside this one read it, so that a number in a card is the number the data was made with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recipe:
    """`sigma_range_A`: displacements, log-uniform, except for `held_out_band_A`, which only the held-out set sees. `strain`: largest
    component of the strain of a cell. Frames with a larger force than `force_cap` (eV/Å) are dropped: a handful would dominate
    the loss. `ordinary_sigma_A`: what the verdict calls ordinary is a frame displaced by up to this, and MD. `bands_A`: the ladder.

    `training_data` may name {frames}; `periodic`, `not_for` and the others are fields of the card.
    """

    made_by: str
    sigma_range_A: tuple[float, float]
    held_out_band_A: tuple[float, float]
    strain: float
    force_cap: float
    ordinary_sigma_A: float
    bands_A: tuple[float, ...]
    summary: str
    training_data: str
    reference_method: str
    trained_on: tuple[str, ...]
    periodic: str
    not_for: str
    citation: str

    def summary_of_member(self, first: str, seed: str, epochs: str) -> str:
        """The summary of a further seed of the model `first`."""
        return f"Another seed ({seed}, {epochs} epochs) of {first}, trained on the same data: a member of an ensemble."

    def command_of_member(self, model_id: str, first: str, seed: str, epochs: str) -> str:
        """How a further seed is made, once the data of the first is there."""
        return f"{self.made_by} --id {model_id} --member-of {first} --seed {seed} --epochs {epochs} --skip data"

    def draw_sigma(self, rng: np.random.Generator, inside_band: bool) -> float:
        """A displacement in Å; the held-out band is skipped unless it is asked for."""
        low, high = self.held_out_band_A
        while True:
            sigma = float(np.exp(rng.uniform(*np.log(self.sigma_range_A))))
            if (low <= sigma < high) == inside_band:
                return sigma


CRYSTALS = Recipe(
    made_by="python training/make_embedded.py",
    sigma_range_A=(0.01, 0.5),
    held_out_band_A=(0.15, 0.20),
    strain=0.06,
    # CHGNet has never seen larger forces either.
    force_cap=15.0,
    ordinary_sigma_A=0.1,
    bands_A=(0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    summary="Small Orb-v3-style direct model that travels with the package: a specialist for a few families of crystals.",
    training_data="{frames} frames of Mg, Al and Mg-Al phases, NaCl, MgO, LiF, Li2S, Li3PS4, LGPS and ice XI, displaced, strained "
    "and from short MD",
    reference_method="CHGNet 0.4.2 (a PBE+U surrogate), not DFT",
    trained_on=("periodic",),
    periodic="crystals; it has seen no molecule, no surface and no liquid",
    not_for="Research results. Its reference is another potential; other elements, molecules, surfaces, liquids, charged defects and "
    "bond breaking are outside what it knows. It is here to show the method at once, offline.",
    citation="this software (CITATION.cff); teacher: Deng et al. 2023, CHGNet; architecture: Rhodes et al. 2025, Orb-v3",
)

MOLECULES = Recipe(
    made_by="python training/make_embedded.py --id fd-orb-molecules-v1",
    sigma_range_A=(0.01, 0.4),
    held_out_band_A=(0.10, 0.14),
    strain=0.0,
    force_cap=30.0,
    ordinary_sigma_A=0.05,
    bands_A=(0.0, 0.02, 0.05, 0.1, 0.14, 0.2, 0.3, 0.4),
    summary="Small Orb-v3-style direct model that travels with the package: for molecules of H, C, N and O, and water.",
    training_data="{frames} frames of neutral closed-shell molecules, their dimers and droplets of water, displaced and from short MD",
    reference_method="GFN2-xTB (a semi-empirical method), not DFT",
    trained_on=("molecule",),
    periodic="molecules and clusters; liquid water only from droplets of 17 to 21 molecules",
    not_for="Research results. Its reference is a semi-empirical method; other elements, ions, radicals, crystals and reactions are "
    "outside what it knows. It is here to show the method at once, offline.",
    citation="this software (CITATION.cff); teacher: Bannwarth et al. 2019, GFN2-xTB, by tblite; architecture: Rhodes et al. 2025, "
    "Orb-v3",
)

RECIPES = {"fd-orb-small-v1": CRYSTALS, "fd-orb-molecules-v1": MOLECULES}


def recipe_of(model_id: str) -> Recipe:
    """The recipe of an embedded model."""
    if model_id not in RECIPES:
        raise SystemExit(
            f"{model_id} has no recipe; known: {', '.join(RECIPES)}. A further seed is made with --member-of."
        )
    return RECIPES[model_id]
