"""What the paper found ("When forces disagree", tables and text), to be set beside what is found here."""

from __future__ import annotations

from dataclasses import dataclass

# What differs between any run of ours and the paper's, whatever is asked for.
PROVISO = (
    "The paper's models are pretrained on MPtraj and more and its labels are VASP (PBE, Materials Project settings); the embedded models are small, "
    "trained on a few materials, and labelled by their teachers. Numbers agree in kind, not in size."
)


@dataclass(frozen=True)
class Correlation:
    """r_s of U_Delta with both errors (None: not given) for one system, model and way of leaving equilibrium ("attack" or "nve")."""

    model: str
    way: str
    system: str
    direct: float
    conservative: float


def _rows(model: str, way: str, *rows: tuple[str, float, float]) -> tuple[Correlation, ...]:
    return tuple(Correlation(model, way, *row) for row in rows)


# Table 2. A row of the block "NVE" has no name there; by its order it is LGPS.
TABLE2: tuple[Correlation, ...] = (
    *_rows(
        "orb-v3-direct-inf-mpa",
        "attack",
        ("Mg17Al12", 1.00, 1.00),
        ("LGPS", 1.00, 1.00),
        ("ice", 0.91, 0.99),
        ("MoF5", -0.31, 0.98),
        ("CaPd-NH2", 0.58, 1.00),
        ("paracetamol", 0.97, 1.00),
        ("stachyose", 0.93, 1.00),
        ("Ac-Ala3-NHMe", 0.95, 1.00),
        ("DHA", 0.72, 0.99),
        ("aspirin", -0.02, 0.98),
    ),
    *_rows(
        "orb-v3-direct-inf-mpa",
        "nve",
        ("Mg17Al12", 0.85, 0.99),
        ("LGPS", 0.92, 0.93),
        ("ice", 0.71, 0.98),
        ("Water", 0.88, 0.94),
    ),
    *_rows("orb-v3-direct-20-mpa", "attack", ("LGPS", 0.78, 0.99), ("ice", 0.96, 1.00)),
    *_rows(
        "orb-d3-xs-v2",
        "attack",
        ("Mg17Al12", 0.73, 0.94),
        ("LGPS", 0.70, 0.93),
        ("ice", 0.70, 0.99),
        ("MoF5", -0.24, 0.05),
    ),
    *_rows(
        "eqV2_dens_31M_mp",
        "attack",
        ("ice", 0.84, 0.99),
        ("Mg17Al12", 0.42, 0.98),
        ("LGPS", 0.18, 0.99),
        ("CaPd-NH2", 0.23, 1.00),
        ("aspirin", 0.44, 0.99),
        ("paracetamol", 0.08, 0.98),
    ),
)
# Figure 2, orb-v3-direct-20-mpa under attack (its caption; Table 2 has other numbers for the same model).
FIGURE2: tuple[Correlation, ...] = _rows(
    "orb-v3-direct-20-mpa", "attack", ("ice", 0.91, 0.99), ("LGPS", 1.00, 0.88), ("Mg17Al12", 1.00, 1.00)
)
# Figure 3 and the text beside it: r_s of the drift with the mean of each along the run, OrbV3.
FIGURE3 = {"error_direct": 0.24, "force_delta": 0.91, "error_conservative": 0.97}
# Table 1: family, members, mean r_s(U_Delta, eps_nc) over models with its error, r_s(U_var, eps_nc), cost of the ensemble over one model.
TABLE1 = (("Orb", 5, 0.70, 0.04, 0.73, 5.0), ("EquiformerV2", 7, 0.91, 0.02, 0.79, 7.0))
# Appendix A.2.1: standard deviation of the temperature (K) of the water box in NVT, Nosé-Hoover with 200 fs, orb-v3-direct-inf-mpa.
NVT = {"direct": 19.9, "conservative": 10.6}
# What the figures that are only drawn say.
SAID = {
    "fig1": "The run driven by F_nc is unstable, the one driven by F_c is stable (orb-v3-direct-inf-mpa, water box of 15 Å).",
    "fig4": "The drift falls from the base model to F_nc only, to both forces, to the second generation (orb-v3-direct-inf-mpa, ice, 10 ps).",
    "fig5": "F_c of a smooth model is the most stable; F_nc drifts, and so does F_c of a model with a neighbour cap.",
    "fig6": "orb-d3-xs-v2: eps_nc, eps_c and U_Delta are all correlated with the drift.",
    "fig7": "eqV2_dens_31M_mp: eps_nc, eps_c and U_Delta are all correlated with the drift.",
    "fig8": "Each stage of fine-tuning leads to a more stable trajectory, for ice and for LGPS (orb-d3-xs-v2).",
}
