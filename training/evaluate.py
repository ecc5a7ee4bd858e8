"""What the card of an embedded model says: held-out errors, the reference distribution, a labelled subset to check both.

    python training/evaluate.py --data training/work --model training/work/fd-orb-small-v1/model.safetensors --id fd-orb-small-v1

Writes fdcore/data/models/<id>.safetensors, .card.json, .distribution.json and fdcore/data/labels/<id>.extxyz. A further seed of
a model (--member-of) shares the labels of the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from recipes import recipe_of
from scipy.stats import spearmanr

from fdcore.delta import rms_difference
from fdcore.models.base import file_sha256
from fdcore.models.orb import OrbModel
from fdcore.models.small_orb import load
from fdcore.records import ModelCard, Structure
from fdcore.structures import closest_per_pair

DATA = Path(__file__).resolve().parent.parent / "fdcore" / "data"
SUBSET_FRAMES = 48


@dataclass(frozen=True)
class Row:
    """One labelled frame under the model: errors and U in eV/Å, energy error in eV/atom."""

    atoms: Atoms
    force_delta: float
    error_direct: float
    error_conservative: float
    mae_direct: float
    energy_error: float

    @property
    def sigma(self) -> float | None:
        return self.atoms.info.get("sigma_A")


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def evaluated(model: OrbModel, frames: Sequence[Atoms]) -> list[Row]:
    """The model on labelled frames."""
    rows = []
    for atoms, ev in zip(frames, model.evaluate([bare(a) for a in frames]), strict=True):
        reference = atoms.arrays["forces_reference"]
        rows.append(
            Row(
                atoms,
                ev.force_delta,
                rms_difference(ev.forces_direct, reference),
                rms_difference(ev.forces_conservative, reference),
                float(np.abs(ev.forces_direct - reference).mean()),
                (ev.energy - atoms.info["energy_eV"]) / len(atoms),
            )
        )
    return rows


def summary(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """Means over frames of one set, and how well U_Delta ranks the frames by each error."""
    delta = [r.force_delta for r in rows]

    def rank(values: list[float]) -> float | None:
        return float(spearmanr(delta, values).statistic) if len(rows) >= 8 else None

    def rms(values: list[float]) -> float:
        return float(np.sqrt(np.mean(np.square(values))))

    return {
        "frames": len(rows),
        "force_delta_median_eV_per_A": float(np.median(delta)),
        "direct_mae_eV_per_A": float(np.mean([r.mae_direct for r in rows])),
        "error_direct_eV_per_A": rms([r.error_direct for r in rows]),
        "error_conservative_eV_per_A": rms([r.error_conservative for r in rows]),
        "error_direct_median_eV_per_A": float(np.median([r.error_direct for r in rows])),
        "error_conservative_median_eV_per_A": float(np.median([r.error_conservative for r in rows])),
        "energy_mae_eV_per_atom": float(np.mean([abs(r.energy_error) for r in rows])),
        "spearman_force_delta_error_direct": rank([r.error_direct for r in rows]),
        "spearman_force_delta_error_conservative": rank([r.error_conservative for r in rows]),
    }


def grouped(rows: Sequence[Row], key) -> dict[str, dict]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: summary(members) for name, members in sorted(groups.items())}


def bands(rows: Sequence[Row], edges_A: Sequence[float]) -> list[dict]:
    """The ladder of growing displacement."""
    out = []
    for low, high in itertools.pairwise(edges_A):
        members = [r for r in rows if r.sigma is not None and low <= r.sigma < high]
        if members:
            out.append({"sigma_low_A": low, "sigma_high_A": high, **summary(members)})
    return out


def closest_in(frames: Sequence[Atoms]) -> dict[str, float]:
    """Smallest distance (Å) per element pair over all frames."""
    out: dict[str, float] = {}
    for atoms in frames:
        for pair, (distance, _, _) in closest_per_pair(Structure.from_atoms(bare(atoms)), 5.0).items():
            out[pair] = min(out.get(pair, np.inf), distance)
    return {pair: round(distance, 3) for pair, distance in sorted(out.items())}


def names(frames: Sequence[Atoms]) -> list[str]:
    """What the frames are of, each once, in their order."""
    return list(dict.fromkeys(a.info["prototype"] for a in frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("training/work"))
    parser.add_argument("--model", type=Path, default=Path("training/work/fd-orb-small-v1/model.safetensors"))
    parser.add_argument("--id", default="fd-orb-small-v1")
    parser.add_argument("--member-of", default="", help="the model of which this is another seed")
    parser.add_argument("--epochs", help="of the training, for a file that does not say it")
    arguments = parser.parse_args()
    first = arguments.member_of or arguments.id
    recipe = recipe_of(first)

    module, adapter, config, metadata = load(arguments.model)
    started_from = metadata.get("started_from", "")
    seed, epochs = metadata.get("seed"), metadata.get("epochs", arguments.epochs)
    train = ase.io.read(arguments.data / "train.extxyz", ":")
    elements = tuple(sorted({s for a in train for s in a.get_chemical_symbols()}))
    draft = ModelCard(
        id=arguments.id, family="embedded", kind="direct", summary="", training_data="", reference_method="", elements=elements,
        licence="", weights="embedded", n_parameters=sum(p.numel() for p in module.parameters()), cutoff_A=config.cutoff_A,
        neighbour_cap=None,
    )  # fmt: skip
    model = OrbModel(draft, module, adapter, "cpu", "float32")
    sets = {
        n: evaluated(model, ase.io.read(arguments.data / f"{n}.extxyz", ":")) for n in ("inside", "band", "structures")
    }
    everything = [r for rows in sets.values() for r in rows]

    ordinary = [r for r in sets["inside"] if r.sigma is None or r.sigma <= recipe.ordinary_sigma_A]
    labels = DATA / "labels" / f"{first}.extxyz"
    if not arguments.member_of:
        rng = np.random.default_rng(0)
        chosen = [everything[i].atoms for i in sorted(rng.choice(len(everything), SUBSET_FRAMES, replace=False))]
        labels.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(labels, chosen, format="extxyz")
    # As shipped: what the file rounds is rounded here, too.
    subset = evaluated(model, ase.io.read(labels, ":"))

    weights = DATA / "models" / f"{arguments.id}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(arguments.model, weights)

    inside, unseen = summary(sets["inside"]), summary(sets["structures"])
    card = {
        "id": arguments.id,
        "family": "embedded",
        "kind": "direct",
        "summary": recipe.summary_of_member(first, seed, epochs) if arguments.member_of else recipe.summary,
        "training_data": recipe.training_data.format(frames=f"{len(train):,}"),
        "reference_method": recipe.reference_method,
        "elements": list(elements),
        "licence": "Apache-2.0",
        "weights": "embedded",
        "n_parameters": sum(p.numel() for p in module.parameters()),
        "cutoff_A": config.cutoff_A,
        "neighbour_cap": None,
        "needs_charge_spin": False,
        "periodic": recipe.periodic,
        "trained_on": recipe.trained_on,
        "confidence_head": False,
        "download_MB": 0,
        "gradient_proof": "central differences in float64, with these weights (tests/contracts; `fdcore models --check`)",
        "held_out": {
            "direct MAE, same structures (eV/Å)": round(inside["direct_mae_eV_per_A"], 4),
            "eps_nc, same structures (eV/Å)": round(inside["error_direct_eV_per_A"], 4),
            "eps_c, same structures (eV/Å)": round(inside["error_conservative_eV_per_A"], 4),
            "energy MAE, same structures (eV/atom)": round(inside["energy_mae_eV_per_atom"], 4),
            "eps_nc, unseen structures (eV/Å)": round(unseen["error_direct_eV_per_A"], 4),
            "eps_c, unseen structures (eV/Å)": round(unseen["error_conservative_eV_per_A"], 4),
            "r_s(U, eps_c), all held-out frames": round(
                summary(everything)["spearman_force_delta_error_conservative"], 3
            ),
            "r_s(U, eps_nc), all held-out frames": round(summary(everything)["spearman_force_delta_error_direct"], 3),
        },
        "not_for": recipe.not_for,
        "source": "trained in this project" + (f", from the weights of {started_from}" if started_from else ""),
        "citation": recipe.citation,
        "member_of": arguments.member_of,
        "sha256": file_sha256(weights),
        "made_by": recipe.command_of_member(arguments.id, first, seed, epochs)
        if arguments.member_of
        else recipe.made_by,
        "seed": seed,
        "epochs": epochs,
        "data": {
            "frames": len(train),
            "atoms": sum(map(len, train)),
            "sigma_range_A": recipe.sigma_range_A,
            "held_out_band_A": recipe.held_out_band_A,
            "strain": recipe.strain,
            "force_cap_eV_per_A": recipe.force_cap,
            "structures": names(train),
            "held_out_structures": names([r.atoms for r in sets["structures"]]),
        },
        "tables": {
            "inside": inside,
            "inside_by_family": grouped(sets["inside"], lambda r: r.atoms.info["family"]),
            "held_out_band": summary(sets["band"]),
            "held_out_structures": unseen,
            "held_out_structures_each": grouped(sets["structures"], lambda r: r.atoms.info["prototype"]),
            "shipped_subset": summary(subset),
        },
    }
    largest = max(float(np.linalg.norm(a.arrays["forces_reference"], axis=1).max()) for a in train)
    distribution = {
        "model": arguments.id,
        "description": f"{len(ordinary)} held-out frames like the training data: displaced by up to {recipe.ordinary_sigma_A} Å, "
        + (f"strained by up to {recipe.strain:.0%}, " if recipe.strain else "")
        + "and MD at 300-900 K",
        "values_eV_per_A": sorted(round(r.force_delta, 6) for r in ordinary),
        "bands": bands(sets["inside"] + sets["band"], recipe.bands_A),
        "closest_A": closest_in(train),
        "largest_force_eV_per_A": round(largest, 2),
    }
    for name, content in (("card", card), ("distribution", distribution)):
        path = DATA / "models" / f"{arguments.id}.{name}.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({k: card["tables"][k] for k in ("inside", "held_out_band", "held_out_structures")}, indent=1))
    for row in distribution["bands"]:
        print(f"sigma {row['sigma_low_A']}-{row['sigma_high_A']} Å: U {row['force_delta_median_eV_per_A']:.3f}  eps_nc "
              f"{row['error_direct_median_eV_per_A']:.3f}  eps_c {row['error_conservative_median_eV_per_A']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
