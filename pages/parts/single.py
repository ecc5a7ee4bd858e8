"""One scored structure: verdict, number, picture, evidence, atoms."""

from __future__ import annotations

import time

import streamlit as st

from fdcore import export, plots, tables
from fdcore.distribution import reference_distribution
from fdcore.human import count, three_digits
from fdcore.records import Evidence, Score
from pages.parts import downloads, session, words
from pages.parts.viewer import viewer
from pages.parts.words import plain

# The atoms table is sent to the browser: beyond this many rows the rest is in the download.
ROWS_SHOWN = 2000
# A longer table scrolls inside itself.
ROWS_UNSCROLLED = 10


def show(score: Score, *, alone: bool = True) -> None:
    """The whole result of one structure; `alone` when it is not one of many."""
    _verdict(score)
    _details(score, alone)
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("#### What this tells")
        st.write(words.TELLS)
    with right:
        st.markdown("#### What it does not tell")
        st.write(words.DOES_NOT_TELL)


def _verdict(score: Score) -> None:
    sign = words.LEVELS[score.verdict.level]
    value = score.evaluation.force_delta
    reference = reference_distribution(score.model_id)
    with st.container(border=True, key="verdict"):
        sentence, number, place = st.columns([4.5, 2.7, 4.8], gap="medium", vertical_alignment="center")
        with sentence:
            st.markdown(f"### :{sign.color}[{sign.icon} {sign.word}]")
            st.markdown(plain(score.verdict.sentence))
            st.caption(_about(score))
        with number:
            st.metric("U_Delta", f"{three_digits(value)} eV/Å", help=words.FORCE_DELTA_HELP)
            if score.verdict.percentile is not None:
                st.caption(
                    f"larger than on {score.verdict.percentile:.0f} % of known structures", help=words.PERCENTILE_HELP
                )
        with place:
            if reference is None:
                st.caption("No reference distribution ships for this model: compare structures with each other.")
            else:
                st.altair_chart(
                    plots.reference_bar(value, reference),
                    alt=f"Histogram of U_Delta over {len(reference.values)} known structures; this one is at {value:.3g} eV/Å.",
                )
    for warning in score.structure.warnings:
        st.info(plain(warning), icon=":material/info:")


def _about(score: Score) -> str:
    structure = score.structure
    kind = "crystal" if structure.periodic else "molecule"
    frame = f", frame {structure.index}" if structure.index else ""
    text = f"{plain(structure.file)}{frame} · {structure.formula} · {count(structure.n_atoms, 'atom')} · {kind} · {score.model_id}"
    known = session.results()
    if known is not None and known.provenance is not None:
        when = time.strftime("%H:%M", time.localtime(known.when))
        text += f" · {known.provenance['dtype']} on {known.provenance['device']} at {when}"
    errors = export.label_errors(score)
    if errors:
        direct, conservative = errors["error_direct_eV_per_A"], errors["error_conservative_eV_per_A"]
        text += f" · against the forces in the file: direct {direct:.3g}, conservative {conservative:.3g} eV/Å RMS"
    return text


@st.fragment
def _details(score: Score, alone: bool) -> None:
    """Picture, evidence, charts and atoms: a click on an atom draws only these again."""
    picture, evidence = st.columns([3, 2], gap="large")
    with picture:
        viewer(score)
        _selected(score)
    with evidence:
        st.markdown("#### Evidence")
        for number, item in enumerate(score.verdict.evidence):
            _evidence_line(score, number, item)
    st.space("small")
    elements, parity = st.columns(2, gap="large")
    with elements:
        st.altair_chart(
            plots.element_bars(export.per_element_table(score)),
            alt="Bars of the RMS of u_i per element; the table is below.",
        )
        _element_table(score)
    with parity:
        st.altair_chart(
            plots.force_parity(export.force_components_table(score)),
            alt="Every component of the direct force against the conservative force, with the diagonal.",
        )
    st.markdown("#### Atoms")
    _atoms_table(score)
    st.markdown("#### Take it away")
    downloads.one(score, alone=alone)


def _evidence_line(score: Score, number: int, item: Evidence) -> None:
    sign = words.STATUSES[item.status]
    with st.container(border=False, gap=None, key=f"evidence-{number}"):
        st.markdown(f":{sign.color}[{sign.icon} **{sign.word}**] &nbsp; **{item.name}**")
        st.markdown(plain(item.text))
        if item.atoms and item.status in ("look", "fail"):
            with st.container(horizontal=True, gap="small"):
                for atom in item.atoms[:4]:
                    label = f"{score.structure.symbols[atom]}{atom}"
                    st.button(
                        label,
                        type="tertiary",
                        icon=":material/my_location:",
                        key=f"evidence-{number}-{atom}",
                        on_click=_point_at,
                        args=(atom,),
                    )


def _point_at(atom: int) -> None:
    session.select_atom(atom, refresh_table=True)


def _selected(score: Score) -> None:
    atom = session.selected_atom()
    if atom is None or atom >= score.structure.n_atoms:
        st.caption("Click on an atom, in the picture or in the table, to see its numbers here.")
        return
    row = tables.atom_row(score, atom)
    with st.container(horizontal=True, vertical_alignment="center", key="selected-atom"):
        st.markdown(f"**{row['element']}{atom}**")
        st.markdown(f"u_i **{three_digits(row['force_delta_eV_per_A'])}** eV/Å", help=words.PER_ATOM_HELP)
        st.markdown(f"|F_nc| {three_digits(row['force_direct_norm_eV_per_A'])} eV/Å", help=words.DIRECT_HELP)
        st.markdown(f"|F_c| {three_digits(row['force_conservative_norm_eV_per_A'])} eV/Å", help=words.CONSERVATIVE_HELP)
        if "confidence_eV_per_A" in row:
            st.markdown(f"expected error {three_digits(row['confidence_eV_per_A'])} eV/Å", help=words.CONFIDENCE_HELP)
        st.button("Clear", type="tertiary", on_click=session.select_atom, args=(None,), kwargs={"refresh_table": True})


def _element_table(score: Score) -> None:
    number = st.column_config.NumberColumn
    st.dataframe(
        export.per_element_table(score),
        hide_index=True,
        alt="The numbers of the bars above, one row per element.",
        column_config={
            "element": "Element",
            "n_atoms": number("Atoms", format="localized"),
            "force_delta_eV_per_A": number("RMS u_i (eV/Å)", format="%.3g", help=words.PER_ATOM_HELP),
            "worst_atom_eV_per_A": number("Largest u_i (eV/Å)", format="%.3g"),
            "share_of_force_delta_squared": number("Share of U_Delta²", format="percent"),
        },
    )


def _atoms_table(score: Score) -> None:
    table = export.per_atom_table(score)
    shown = table.head(ROWS_SHOWN)
    if len(table) > len(shown):
        st.caption(f"The {ROWS_SHOWN:,} atoms with the largest u_i; all {len(table):,} are in the downloads.")
    selected = session.selected_atom()
    rows = shown.index[shown["atom"] == selected].tolist() if selected is not None else []
    number = st.column_config.NumberColumn
    key = f"atoms-{score.structure.content_id[:12]}-{session.table_generation()}"
    st.dataframe(
        shown,
        height="content" if len(shown) <= ROWS_UNSCROLLED else 420,
        placeholder="",
        hide_index=True,
        key=key,
        on_select=lambda: _table_clicked(key, shown),
        selection_mode="single-row",
        selection_default={"selection": {"rows": rows}},
        alt="One row per atom, the largest disagreement first. Selecting a row marks the atom in the picture.",
        column_config={
            "atom": number("Atom", format="%d", help="Place in the file, counted from 0."),
            "element": "Element",
            "force_delta_eV_per_A": st.column_config.ProgressColumn(
                "u_i (eV/Å)",
                format="%.3g",
                min_value=0.0,
                max_value=float(table["force_delta_eV_per_A"].max()) or 1.0,
                help=words.PER_ATOM_HELP,
            ),
            "force_direct_norm_eV_per_A": number("|F_nc| (eV/Å)", format="%.3g", help=words.DIRECT_HELP),
            "force_conservative_norm_eV_per_A": number("|F_c| (eV/Å)", format="%.3g", help=words.CONSERVATIVE_HELP),
            "confidence_eV_per_A": number("Expected error (eV/Å)", format="%.3g", help=words.CONFIDENCE_HELP),
            **{f"position_{k}_A": number(f"{k} (Å)", format="%.3f") for k in "xyz"},
            **{f"force_direct_{k}_eV_per_A": number(f"F_nc {k}", format="%.3g") for k in "xyz"},
            **{f"force_conservative_{k}_eV_per_A": number(f"F_c {k}", format="%.3g") for k in "xyz"},
        },
    )


def _table_clicked(key: str, shown) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    session.select_atom(int(shown["atom"].iloc[rows[0]]) if rows else None)
