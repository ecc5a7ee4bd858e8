"""The charts of a report on one structure. Altair in, no widgets."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
from ase.geometry import get_distances

from fdcore.plots import ACCENT, INK, QUIET, chart_title
from fdcore.report import Examined
from fdcore.units import MEV_PER_EV

Chart = alt.LayerChart | alt.FacetChart | alt.Chart | alt.VConcatChart | alt.HConcatChart
# F_nc and F_c have the same colours as on the other pages; the form of the line says it, too.
DIRECT, CONSERVATIVE = "F_nc", "F_c"
MOST_PAIRS = 3000
MOST_ATOMS = 40
# What a logarithmic axis shows of what is zero to rounding, in eV/Å^2 and in meV.
FLOOR_EV_PER_A2, FLOOR_MEV = 1e-8, 1e-7
_WHO = alt.Scale(domain=[DIRECT, CONSERVATIVE], range=[ACCENT, INK])


def _who(legend: bool = True) -> alt.Color:
    shown = alt.Legend(title=None, orient="top", direction="horizontal") if legend else None
    return alt.Color("force:N", scale=_WHO, legend=shown)


def charts(found: Examined) -> dict[str, Chart]:
    """Those that there is something to draw of, by file name."""
    out: dict[str, Chart] = {}
    if found.pairs is not None:
        out["pairs"] = asymmetry_by_distance(found)
        out["atoms"] = asymmetry_by_atom(found)
    if found.loops:
        out["loops"] = loop_work(found)
    if found.lines:
        out["jumps"] = jumps(found)
    if found.noises:
        out["copies"] = copies(found)
    if found.drifts:
        out["drift"] = drift(found)
    return out


def pair_table(found: Examined) -> pd.DataFrame:
    """One row per pair of atoms: distance to the nearest image (Å), |J_ij| and |A_ij| of F_nc (eV/Å^2), lambda_ij."""
    pairs, structure = found.pairs, found.structure
    assert pairs is not None
    r = structure.positions
    lattice = {"cell": structure.cell, "pbc": structure.pbc} if structure.periodic else {}
    apart = get_distances(r, r, **lattice)[1][pairs.first, pairs.second]
    symbols = np.array(structure.symbols)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(pairs.norm > 0, pairs.antisymmetric_norm / pairs.norm, np.nan)
    return pd.DataFrame(
        {
            "first_atom": pairs.first,
            "second_atom": pairs.second,
            "pair": [f"{symbols[i]}{i}-{symbols[j]}{j}" for i, j in zip(pairs.first, pairs.second, strict=True)],
            "distance_A": apart,
            "jacobian_norm_eV_per_A2": pairs.norm,
            "antisymmetric_norm_eV_per_A2": pairs.antisymmetric_norm,
            "lambda": share,
        }
    )


def asymmetry_by_distance(found: Examined) -> Chart:
    """Figure 1 of Bigi et al.: how both norms of the blocks of J fall with the distance of the atoms."""
    table = pair_table(found)
    if len(table) > MOST_PAIRS:
        table = table.sample(MOST_PAIRS, random_state=0)
    names = {"jacobian_norm_eV_per_A2": "|J_ij|", "antisymmetric_norm_eV_per_A2": "|A_ij|"}
    long = table.melt(["pair", "distance_A", "lambda"], list(names), "what", "norm")
    long["what"] = long["what"].map(names)
    long = long[long["norm"] > FLOOR_EV_PER_A2]
    return (
        alt.Chart(long)
        .mark_point(filled=True, size=22, opacity=0.55)
        .encode(
            x=alt.X("distance_A:Q", title="distance of the atoms (Å)"),
            y=alt.Y(
                "norm:Q",
                title="norm of the block (eV/Å²)",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~e", tickCount=6),
            ),
            color=alt.Color(
                "what:N",
                scale=alt.Scale(domain=list(names.values()), range=[QUIET, ACCENT]),
                legend=alt.Legend(title=None, orient="top", direction="horizontal"),
            ),
            shape=alt.Shape(
                "what:N", scale=alt.Scale(domain=list(names.values()), range=["circle", "triangle-up"]), legend=None
            ),
            tooltip=[
                alt.Tooltip("pair:N"),
                alt.Tooltip("distance_A:Q", title="Å", format=".3g"),
                alt.Tooltip("norm:Q", title="eV/Å²", format=".3g"),
                alt.Tooltip("lambda:Q", title="λ_ij", format=".3g"),
            ],
        )
        .properties(
            height=340,
            title=chart_title(
                "The Jacobian of F_nc and its asymmetric part", "pair by pair; at 0 Å an atom with itself"
            ),
        )
    )


def atom_table(found: Examined) -> pd.DataFrame:
    """One row per atom: its share of |A|^2 and the lambda of its own entries, for F_nc."""
    known = found.by_atom
    assert known is not None
    own, share = known
    return pd.DataFrame(
        {
            "atom": np.arange(len(own)),
            "element": found.structure.symbols,
            "name": [f"{s}{k}" for k, s in enumerate(found.structure.symbols)],
            "share_of_asymmetry": share,
            "lambda": own,
        }
    )


def asymmetry_by_atom(found: Examined) -> Chart:
    """Which atoms the asymmetry comes from: the largest shares of |A|^2."""
    table = atom_table(found).sort_values("share_of_asymmetry", ascending=False)
    few = table.head(MOST_ATOMS)
    return (
        alt.Chart(few)
        .mark_bar(color=ACCENT)
        .encode(
            x=alt.X("name:N", sort=None, title=None, axis=alt.Axis(labelAngle=-60, labelOverlap=True)),
            y=alt.Y("share_of_asymmetry:Q", title="share of |A|²", axis=alt.Axis(format=".0%")),
            tooltip=[
                alt.Tooltip("name:N", title="atom"),
                alt.Tooltip("share_of_asymmetry:Q", title="share of |A|²", format=".2%"),
                alt.Tooltip("lambda:Q", title="λ of its entries", format=".3g"),
            ],
        )
        .properties(
            height=240,
            title=chart_title(
                "Which atoms the asymmetry comes from",
                f"the first {len(few)} of {len(table)}" if len(few) < len(table) else "",
            ),
        )
    )


def loop_table(found: Examined) -> pd.DataFrame:
    """One row per loop: its kind, length (Å), and the work of both forces (meV) with what half of the points would change it by."""
    return pd.DataFrame(
        {
            "loop": np.arange(len(found.loops)),
            "kind": [k.kind for k in found.loops],
            "points": [k.direct.points for k in found.loops],
            "length_A": [k.length_A for k in found.loops],
            "work_direct_meV": [k.direct.value * MEV_PER_EV for k in found.loops],
            "work_conservative_meV": [k.conservative.value * MEV_PER_EV for k in found.loops],
            "quadrature_direct_meV": [k.direct.error * MEV_PER_EV for k in found.loops],
            "quadrature_conservative_meV": [k.conservative.error * MEV_PER_EV for k in found.loops],
        }
    )


def loop_work(found: Examined) -> Chart:
    """The work of both forces on every loop."""
    table = loop_table(found)
    table["name"] = [
        f"{n + 1}" if k == "random" else "molecule" for n, k in zip(table["loop"], table["kind"], strict=True)
    ]
    names = {"work_direct_meV": DIRECT, "work_conservative_meV": CONSERVATIVE}
    long = table.melt(["name", "kind"], list(names), "force", "work")
    long["force"] = long["force"].map(names)
    return (
        alt.Chart(long)
        .mark_bar()
        .encode(
            x=alt.X("name:N", sort=None, title="loop", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("force:N", sort=[DIRECT, CONSERVATIVE]),
            y=alt.Y("work:Q", title="work (meV)"),
            color=_who(),
            tooltip=[
                alt.Tooltip("name:N", title="loop"),
                alt.Tooltip("force:N"),
                alt.Tooltip("work:Q", title="meV", format=".4g"),
            ],
        )
        .properties(
            height=320, title=chart_title("Work on closed loops", "that of F_c is zero where the energy is smooth")
        )
    )


def line_table(found: Examined) -> pd.DataFrame:
    """One row per step of every straight walk."""
    parts = [
        pd.DataFrame(
            {
                "line": k,
                "distance_A": line.distance_A,
                "unexplained_meV": line.unexplained_eV * MEV_PER_EV,
                "neighbour_changes": line.neighbour_changes,
            }
        )
        for k, line in enumerate(found.lines)
    ]
    return pd.concat(parts, ignore_index=True)


def jumps(found: Examined) -> Chart:
    """What the energy does that F_c does not explain, along the straight walks."""
    table = line_table(found)
    table["size"] = np.maximum(table["unexplained_meV"].abs(), FLOOR_MEV)
    table["neighbours"] = np.where(table["neighbour_changes"] > 0, "came or went", "the same")
    return (
        alt.Chart(table)
        .mark_point(filled=True, size=28)
        .encode(
            x=alt.X("distance_A:Q", title="distance from the structure (Å per atom)"),
            y=alt.Y(
                "size:Q",
                title="unexplained (meV)",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~e", tickCount=6),
            ),
            color=alt.Color(
                "neighbours:N",
                scale=alt.Scale(domain=["the same", "came or went"], range=[QUIET, ACCENT]),
                legend=alt.Legend(title="neighbours", orient="top", direction="horizontal"),
            ),
            shape=alt.Shape(
                "neighbours:N",
                scale=alt.Scale(domain=["the same", "came or went"], range=["circle", "triangle-up"]),
                legend=None,
            ),
            tooltip=[
                alt.Tooltip("line:Q", title="walk"),
                alt.Tooltip("distance_A:Q", title="Å", format=".3g"),
                alt.Tooltip("unexplained_meV:Q", title="meV", format=".3g"),
                alt.Tooltip("neighbour_changes:Q", title="neighbours changed"),
            ],
        )
        .properties(height=320, title=chart_title("Steps of the energy that F_c does not explain"))
    )


def copy_table(found: Examined) -> pd.DataFrame:
    """One row per kind of copies."""
    return pd.DataFrame(
        {
            "kind": [n.kind for n in found.noises],
            "copies": [n.copies for n in found.noises],
            "deviation_direct_eV_per_A": [n.direct for n in found.noises],
            "deviation_conservative_eV_per_A": [n.conservative for n in found.noises],
            "energy_meV_per_atom": [n.energy_meV_per_atom for n in found.noises],
        }
    )


def copies(found: Examined) -> Chart:
    """How much copies that are the same thing deviate, beside U_Delta."""
    names = {"deviation_direct_eV_per_A": DIRECT, "deviation_conservative_eV_per_A": CONSERVATIVE}
    long = copy_table(found).melt(["kind"], list(names), "force", "deviation")
    long["force"] = long["force"].map(names)
    long["deviation"] = np.maximum(long["deviation"], 1e-17)
    long["kind"] = long["kind"].map({"rotation": "turned", "permutation": "permuted", "translation": "shifted"})
    points = (
        alt.Chart(long)
        .mark_point(filled=True, size=90)
        .encode(
            x=alt.X(
                "deviation:Q",
                title="root mean square deviation (eV/Å)",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~e", tickCount=6),
            ),
            y=alt.Y("kind:N", title=None, sort=None),
            color=_who(),
            shape=alt.Shape(
                "force:N", scale=alt.Scale(domain=[DIRECT, CONSERVATIVE], range=["triangle-up", "circle"]), legend=None
            ),
            tooltip=[
                alt.Tooltip("kind:N"),
                alt.Tooltip("force:N"),
                alt.Tooltip("deviation:Q", title="eV/Å", format=".3g"),
            ],
        )
    )
    assert found.evaluation is not None
    rule = (
        alt.Chart(pd.DataFrame({"deviation": [max(found.evaluation.force_delta, 1e-17)]}))
        .mark_rule(color=QUIET, strokeDash=[5, 4], strokeWidth=2)
        .encode(x="deviation:Q", tooltip=[alt.Tooltip("deviation:Q", title="U_Delta (eV/Å)", format=".3g")])
    )
    return (points + rule).properties(
        height=250, title=chart_title("Turned, permuted and shifted copies", "the dashed line is U_Delta")
    )


def drift(found: Examined) -> Chart:
    """Total energy per atom against time, under either force."""
    parts = [
        pd.DataFrame(
            {
                "force": DIRECT if force == "direct" else CONSERVATIVE,
                "time_ps": d.time_ps,
                "energy": d.energy_meV_per_atom,
                "temperature_K": d.temperature_K,
            }
        )
        for force, d in found.drifts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    table = table[np.isfinite(table["energy"])]
    return (
        alt.Chart(table)
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("time_ps:Q", title="time (ps)"),
            y=alt.Y("energy:Q", title="total energy (meV/atom)"),
            color=_who(),
            strokeDash=alt.StrokeDash(
                "force:N", scale=alt.Scale(domain=[DIRECT, CONSERVATIVE], range=[[1, 0], [5, 3]]), legend=None
            ),
            tooltip=[
                alt.Tooltip("force:N"),
                alt.Tooltip("time_ps:Q", title="ps", format=".3g"),
                alt.Tooltip("energy:Q", title="meV/atom", format=".3g"),
                alt.Tooltip("temperature_K:Q", title="K", format=".3g"),
            ],
        )
        .properties(
            height=320, title=chart_title("NVE under either force", "from the same atoms with the same momenta")
        )
    )
