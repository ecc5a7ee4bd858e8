"""Runs of relaxation, dynamics and the advisor as files: JSON and CSV for programs, extended xyz with both forces per frame.

Every format reads back: JSON without NaN (what was not computed is null), trajectories with cell, pbc, velocities, F_nc, F_c
and u_i under the names of DESIGN.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pandas as pd
from ase import units as ase_units

from fdcore.export import failure_row
from fdcore.motion import (
    COMPLETED,
    FrameView,
    Motion,
    Summary,
    Track,
    frame_count,
    frames,
    pooled,
    summary,
)
from fdcore.mts_advice import Advice, advice
from fdcore.records import Failure, Structure
from fdcore.statistics import Slope
from fdcore.tasks.motion import RELAXATION

# How a driver is called where there is little room.
DRIVER_WORDS = {"direct": "F_nc", "conservative": "F_c", "mts": "F_nc + F_c"}


def md_json(motion: Motion, failures: Iterable[Failure] = (), provenance: Mapping[str, Any] | None = None) -> str:
    """The document of `fdcore md --json`. `summary` is that of the first structure, of all of its replicas together (means, slopes with
    the interval of their spread); `series` that of its first replica; `systems` has every structure's own."""
    leg = motion.production
    found = [summary(motion, leg, k) for k in range(len(motion.systems))]
    document: dict[str, Any] = {
        "spec": json.loads(motion.spec.to_json()),
        "summary": _pooled(found[: motion.replicas], found),
        "series": _series(motion.tracks.get((leg, 0)), motion.elements),
        "systems": [
            {
                "name": motion.name_of(k),
                "file": motion.systems[k].file,
                "index": motion.systems[k].index,
                "replica": k % motion.replicas,
                "formula": motion.systems[k].formula,
                "summary": _summary(found[k]),
                "legs": [_summary(summary(motion, other, k)) for other in range(leg)],
                **({} if k == 0 else {"series": _series(motion.tracks.get((leg, k)), motion.elements)}),
            }
            for k in range(len(motion.systems))
        ],
        "relaxation": _relaxation(motion),
        "errors": [failure_row(f) for f in failures],
    }
    return _text(document, provenance)


def relax_json(
    motion: Motion, folder: Path, failures: Iterable[Failure] = (), provenance: Mapping[str, Any] | None = None
) -> str:
    """The document of `fdcore relax --json`."""
    ends = {f.system: f for f in frames(motion, folder) if f.leg == RELAXATION}
    results = _relaxation(motion)
    for row in results:
        end = ends.get(row["system"])
        if end is not None:
            row["positions_A"] = end.positions.tolist()
            row["force_delta_per_atom_eV_per_A"] = end.force_delta_per_atom.tolist()
    document = {
        "spec": json.loads(motion.spec.to_json()),
        "results": results,
        "errors": [failure_row(f) for f in failures],
    }
    return _text(document, provenance)


def advice_json(motion: Motion, failures: Iterable[Failure] = (), provenance: Mapping[str, Any] | None = None) -> str:
    """The document of `fdcore mts-advisor --json`."""
    found = advice(motion)
    document = {
        "spec": json.loads(motion.spec.to_json()),
        "recommended_mts_stride": found.recommended,
        "tolerance_meV_per_atom_per_ps": found.tolerance,
        "text": found.text,
        "arms": [
            {
                "name": arm.name,
                "driver": arm.driver,
                "mts_stride": arm.stride,
                **_slope("drift_meV_per_atom_per_ps", arm.drift),
                "temperature_K": arm.temperature_K,
                "temperature_error_K": arm.temperature_error_K,
                "ns_per_day": arm.ns_per_day,
                "cost_of_direct": arm.cost_of_direct,
                "allowed": arm.allowed,
            }
            for arm in found.arms
        ],
        "errors": [failure_row(f) for f in failures],
    }
    return _text(document, provenance)


def _text(document: dict[str, Any], provenance: Mapping[str, Any] | None) -> str:
    if provenance is not None:
        document["provenance"] = dict(provenance)
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _pooled(replicas: Sequence[Summary], everybody: Sequence[Summary]) -> dict[str, Any]:
    summary = _summary(pooled(replicas))
    if len(everybody) == 1:
        return summary
    completed = sum(s.stopped_because == COMPLETED for s in everybody)
    return {**summary, "n_replicas": len(replicas), "n_systems": len(everybody), "n_completed": completed}


def _slope(name: str, slope: Slope | None) -> dict[str, Any]:
    """A slope and its interval, `drift_ci` for the one that DESIGN names so."""
    ends = None if slope is None or slope.half_width is None else [slope.low, slope.high]
    return {
        name: None if slope is None else slope.slope,
        "drift_ci" if name.startswith("drift_meV") else f"{name}_ci": ends,
    }


def _summary(found: Summary) -> dict[str, Any]:
    return {
        "leg": found.name,
        "driver": found.driver,
        "ensemble": found.ensemble,
        **_slope("drift_meV_per_atom_per_ps", found.drift),
        **_slope("drift_K_per_ps", found.drift_K_per_ps),
        "drift_over_kinetic_fluctuation_per_ps": found.drift_over_fluctuation_per_ps,
        "temperature_K": {"all": found.temperature_K, **found.temperature_by_element_K},
        "temperature_error_K": found.temperature_error_K,
        "temperature_fluctuation_K": found.temperature_fluctuation_K,
        "force_delta_mean": found.force_delta_mean,
        "force_delta_max": found.force_delta_max,
        "worst_atom": found.worst_atom,
        "closest_A": found.closest_A,
        "net_momentum_sqrt_amu_eV": found.net_momentum,
        "time_ps": found.time_ps,
        "steps_done": found.steps_done,
        "steps_asked": found.steps_asked,
        "stopped_because": found.stopped_because,
        "stopped_text": found.stopped_text,
        "steps_per_second": found.steps_per_second,
    }


def _series(track: Track | None, elements: Sequence[str]) -> dict[str, Any]:
    table = {} if track is None else series_columns(track, elements)
    return {name: [_or_none(v) for v in np.asarray(column).tolist()] for name, column in table.items()}


def series_columns(track: Track, elements: Sequence[str]) -> dict[str, Any]:
    """Columns under their published names; NaN where a number was not computed."""
    columns = track.columns
    by_element = columns["temperature_by_element_K"]
    worst = columns["worst_atom"].astype(float)
    return {
        "step": columns["step"],
        "time_ps": columns["time_ps"],
        "energy_total_eV": track.energy_total_eV,
        "energy_potential_eV": columns["energy_potential_eV"],
        "energy_kinetic_eV": columns["energy_kinetic_eV"],
        "conserved_eV": columns["conserved_eV"],
        "temperature_K": columns["temperature_K"],
        **{
            f"temperature_{e}_K": by_element[:, k]
            for k, e in enumerate(elements)
            if np.isfinite(by_element[:, k]).any()
        },
        "force_delta_eV_per_A": columns["force_delta_eV_per_A"],
        "worst_atom": np.where(worst < 0, np.nan, worst),
        "worst_atom_eV_per_A": columns["worst_atom_eV_per_A"],
        "closest_A": np.where(np.isfinite(columns["closest_A"]), columns["closest_A"], np.nan),
        "net_momentum_sqrt_amu_eV": columns["net_momentum"],
    }


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _relaxation(motion: Motion) -> list[dict[str, Any]]:
    out = []
    for system, descent in motion.descents.items():
        columns = descent.columns
        out.append(
            {
                "system": system,
                "name": motion.name_of(system),
                "file": motion.systems[system].file,
                "index": motion.systems[system].index,
                "formula": motion.systems[system].formula,
                "driver": motion.relaxation.driver if motion.relaxation else None,
                "converged": descent.converged,
                "text": descent.text,
                "iterations": int(columns["iteration"][-1]),
                "energy_eV": float(columns["energy_eV"][-1]),
                "energy_change_eV": float(columns["energy_eV"][-1] - columns["energy_eV"][0]),
                "fmax_eV_per_A": float(columns["fmax_eV_per_A"][-1]),
                "fmax_other_eV_per_A": _or_none(float(columns["fmax_other_eV_per_A"][-1])),
                "force_delta_eV_per_A": _or_none(float(columns["force_delta_eV_per_A"][-1])),
                "series": {
                    name: [_or_none(v) for v in column.tolist()] for name, column in columns.items() if name != "system"
                },
            }
        )
    return out


def archived(
    motion: Motion, folder: Path, failures: Sequence[Failure], provenance: Mapping[str, Any] | None
) -> dict[str, str]:
    """The files of a run's zip, by name."""
    files = {"motion.json": document_json(motion, folder, failures, provenance)}
    if motion.tracks:
        files["series.csv"] = series_csv(motion)
    if motion.descents:
        files["relaxation.csv"] = relaxation_csv(motion)
    if frame_count(motion):
        files["trajectory.extxyz"] = trajectory_extxyz(motion, folder)
    return files


def document_json(
    motion: Motion, folder: Path, failures: Iterable[Failure] = (), provenance: Mapping[str, Any] | None = None
) -> str:
    """The JSON document of whichever task it was."""
    if motion.spec.task == "relax":
        return relax_json(motion, folder, failures, provenance)
    if motion.spec.task == "md":
        return md_json(motion, failures, provenance)
    return advice_json(motion, failures, provenance)


# ---- tables --------------------------------------------------------------------------------------------------------


def series_csv(motion: Motion) -> str:
    """Every recorded step of every structure and leg as one table."""
    tables = []
    for (leg, system), track in sorted(motion.tracks.items()):
        table = pd.DataFrame(series_columns(track, motion.elements))
        table.insert(0, "leg", motion.legs[leg].name)
        table.insert(0, "name", motion.name_of(system))
        table.insert(0, "system", system)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).to_csv(index=False) if tables else "system,name,leg,step,time_ps\n"


def relaxation_csv(motion: Motion) -> str:
    """Every iteration of every relaxation as one table."""
    tables = []
    for system, descent in sorted(motion.descents.items()):
        table = pd.DataFrame(dict(descent.columns))
        table.insert(0, "name", motion.name_of(system))
        table.insert(0, "system", system)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).to_csv(index=False) if tables else "system,name,iteration,energy_eV\n"


def summary_table(found: Sequence[tuple[str, Summary]]) -> pd.DataFrame:
    """One row per run or structure: what a comparison shows. Missing numbers are missing."""
    return pd.DataFrame(
        [
            {
                "run": name,
                "driver": s.driver,
                "ensemble": s.ensemble.upper(),
                "time_ps": s.time_ps,
                "drift_meV_per_atom_per_ps": None if s.drift is None else s.drift.slope,
                "drift_half_width": None if s.drift is None else s.drift.half_width,
                "drift_K_per_ps": None if s.drift_K_per_ps is None else s.drift_K_per_ps.slope,
                "drift_over_fluctuation_per_ps": s.drift_over_fluctuation_per_ps,
                "temperature_K": s.temperature_K,
                "temperature_fluctuation_K": s.temperature_fluctuation_K,
                "force_delta_mean": s.force_delta_mean,
                "force_delta_max": s.force_delta_max,
                "steps_per_second": s.steps_per_second,
                "ended": s.stopped_because,
            }
            for name, s in found
        ]
    )


def advice_table(found: Advice) -> pd.DataFrame:
    """One row per arm."""
    return pd.DataFrame(
        [
            {
                "arm": a.name,
                "mts_stride": a.stride,
                "drift_meV_per_atom_per_ps": None if a.drift is None else a.drift.slope,
                "drift_half_width": None if a.drift is None else a.drift.half_width,
                "temperature_K": a.temperature_K,
                "temperature_error_K": a.temperature_error_K,
                "ns_per_day": a.ns_per_day,
                "cost_of_direct": a.cost_of_direct,
                "allowed": a.allowed,
            }
            for a in found.arms
        ]
    )


# ---- trajectories --------------------------------------------------------------------------------------------------


def frame_atoms(motion: Motion, frame: FrameView):
    """One frame as ase.Atoms with velocities, both forces, u_i, and where it belongs."""
    structure: Structure = motion.systems[frame.system]
    atoms = structure.to_atoms()
    atoms.positions = frame.positions
    if frame.leg != RELAXATION:
        atoms.set_velocities(frame.velocities / ase_units.fs)
    atoms.new_array("forces_direct", np.array(frame.forces_direct))
    atoms.new_array("forces_conservative", np.array(frame.forces_conservative))
    atoms.new_array("force_delta_per_atom", np.array(frame.force_delta_per_atom))
    atoms.info |= {
        "leg": "relaxation" if frame.leg == RELAXATION else motion.legs[frame.leg].name,
        "system": frame.system,
        "step": frame.step,
        "time_ps": frame.time_ps,
        "force_delta": float(np.sqrt(np.mean(frame.force_delta_per_atom**2))),
        # extended xyz escapes what it writes, and reads a backslash as an escape.
        "source_file": structure.file.replace("\\", "/"),
    }
    return atoms


def trajectory_extxyz(motion: Motion, folder: Path, system: int | None = None) -> str:
    """All kept frames (of one structure) as extended xyz; empty where there is none."""
    listed = [frame_atoms(motion, frame) for frame in frames(motion, folder, system)]
    if not listed:
        return ""
    buffer = io.StringIO()
    ase.io.write(buffer, listed, format="extxyz")
    return buffer.getvalue()


def trajectory_hdf5(motion: Motion, folder: Path, system: int) -> bytes:
    """The frames of one structure in one HDF5 file: `position_A`, `velocity_A_per_fs`, `forces_direct_eV_per_A`,
    `forces_conservative_eV_per_A` (frames, N, 3), `time_ps`, `step`, `leg` (frames), `numbers` (N), `cell_A` (3, 3), `pbc` (3)."""
    import h5py

    listed = list(frames(motion, folder, system))
    structure = motion.systems[system]
    n = structure.n_atoms
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, key in (
            ("position_A", "positions"),
            ("velocity_A_per_fs", "velocities"),
            ("forces_direct_eV_per_A", "forces_direct"),
            ("forces_conservative_eV_per_A", "forces_conservative"),
        ):
            stacked = np.array([getattr(f, key) for f in listed]).reshape(-1, n, 3)
            file.create_dataset(name, data=stacked, compression="gzip", shuffle=True)
        file["time_ps"] = [f.time_ps for f in listed]
        file["step"] = [f.step for f in listed]
        file["leg"] = [f.leg for f in listed]
        file["numbers"], file["cell_A"], file["pbc"] = structure.numbers, structure.cell, np.array(structure.pbc)
        file.attrs["spec"] = motion.spec.to_json()
        file.attrs["legs"] = json.dumps([leg.name for leg in motion.legs])
    return buffer.getvalue()
