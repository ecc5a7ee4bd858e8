"""What can be taken away: every number on the page, in formats that read back, and the command that repeats them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import streamlit as st

from fdcore import export, services
from fdcore.records import Failure, Score
from pages.parts import session


def one(score: Score, *, alone: bool) -> None:
    """Downloads for a single structure; the source file and the command only where it is not one of many."""
    known = session.results()
    provenance = known.provenance if known else None
    name = PurePath(score.structure.file).stem or "structure"
    with st.container(horizontal=True, key="downloads-one"):
        _button(
            "JSON", lambda: export.scores_json([score], [], score.model_id, provenance), f"{name}.json", "Everything"
        )
        _button(
            "CSV of the atoms", lambda: export.per_atom_table(score).to_csv(index=False), f"{name}-atoms.csv", "u_i"
        )
        _button("extXYZ", lambda: export.scores_extxyz([score], provenance), f"{name}-scored.extxyz", "Both forces")
        if alone:
            _source_file("one")
    if alone:
        _repeat()


def many(scores: Sequence[Score], failures: Sequence[Failure]) -> None:
    """Downloads for all structures of the choice."""
    known = session.results()
    provenance = known.provenance if known else None
    model_id = session.settings().model_id
    with st.container(horizontal=True, key="downloads-many"):
        _button(
            "JSON", lambda: export.scores_json(scores, failures, model_id, provenance), "scores.json", "All", "many"
        )
        _button("CSV", lambda: export.scores_csv(scores, failures), "scores.csv", "One row per structure", "many")
        if scores:
            _button("extXYZ", lambda: export.scores_extxyz(scores, provenance), "scores.extxyz", "Both forces", "many")
        _button(
            "All as zip",
            lambda: export.scores_zip(scores, failures, model_id, provenance),
            "scores.zip",
            "With atoms",
            "many",
        )
        _source_file("many")
    _repeat()


_HELP = {
    "Everything": "The document of `fdcore score --json`: U_Delta, u_i, the verdict with its evidence, model, versions.",
    "u_i": "One row per atom: position, u_i, both forces.",
    "Both forces": "Positions and cell with F_nc, F_c and u_i as per-atom arrays: reads back in ASE and OVITO.",
    "All": "The document of `fdcore score --json` for all structures, failures included.",
    "One row per structure": "The table above, failures included.",
    "With atoms": "JSON, CSV, extXYZ and one table of atoms per structure.",
}


def _button(label: str, data, name: str, what: str, group: str = "one") -> None:
    # The content is made when it is asked for, and taking it away does not run the page again.
    st.download_button(
        label,
        data,
        file_name=name,
        help=_HELP[what],
        icon=":material/download:",
        on_click="ignore",
        key=f"download-{group}-{name}",
    )


def _source_file(group: str) -> None:
    """An example or pasted text is no file on the person's disk yet; the command below needs one."""
    current = session.choice()
    if current is None or current.origin in ("upload", "run"):
        return
    source = current.sources[0]
    name = source.name if current.origin == "example" else "pasted.txt"
    st.download_button(
        "Input file",
        source.data,
        file_name=name,
        icon=":material/description:",
        on_click="ignore",
        key=f"download-source-{group}",
    )


def _repeat() -> None:
    current, now = session.choice(), session.settings()
    if current is None:
        return
    brought = [s.file for s in session.structures()] if current.origin == "run" else [s.name for s in current.sources]
    files = ["pasted.txt"] if current.origin == "paste" else list(dict.fromkeys(brought))
    if len(files) > 8:
        files = [*files[:8], "..."]
    st.caption("Repeat this on a command line:")
    st.code(
        services.command_line(files, now.model_id, dtype=now.dtype, charge=now.charge, spin=now.spin),
        language=None,
        wrap_lines=True,
    )
