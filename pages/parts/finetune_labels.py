"""The second step of fine-tuning: who says what is true of these structures; live, half done, or from files."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from fdcore import label_files
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.labels import Label, LabelledSet
from fdcore.records import Failure
from fdcore.services import Source, finetune, labels, runs
from pages.parts import finetune_start, owner, run_parts, tuning
from pages.parts.run_parts import Download
from pages.parts.words import plain

TICK_S = 1.5
ROWS_UNSCROLLED = 10
METHOD_HELP = (
    "Energies and forces of different methods differ also where none is wrong: what is trained on both learns neither."
)
MATCHED_HELP = (
    "A frame belongs to a structure when both have the same elements in the same order and atoms and cell vectors as near as files round "
    "(2·10⁻⁵ Å, lattice translations aside); the order of the frames does not matter."
)


def show() -> None:
    now = tuning.taken()
    if now is None:
        st.info("First choose structures.", icon=":material/arrow_back:")
        st.button("Choose structures", on_click=tuning.go, args=("structures",), key="go-structures")
        return
    run = tuning.shown("labels")
    if run is not None and run.active:
        _live()
        return
    known = tuning.known() or now.known
    if run is not None:
        _ended(run)
    _numbers(known)
    _methods(known)
    _table(known)
    if known.without:
        left, right = st.columns(2, gap="large")
        with left:
            _ask(known)
        with right:
            _bring(known)
    _attached()
    _take_away(known, run)
    if known.labelled:
        st.button(
            f"Fine-tune on {count(len(known.labelled), 'labelled structure')}",
            type="secondary" if known.without else "primary",
            icon=":material/arrow_forward:",
            key="go-train",
            on_click=tuning.go,
            args=("train",),
        )


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = tuning.shown("labels")
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run, "What is labelled is kept, and it can go on from there.")
    known = tuning.known()
    if known is not None:
        _numbers(known)
        _failures(known)


def _ended(run: runs.Run) -> None:
    if run.state != "done":
        stopped = (
            f":material/stop_circle: **Stopped** after {run.done:,.0f} of {count(run.spec.n_structures, 'structure')}."
        )
        run_parts.not_finished(run, stopped, "Go on", partial(tuning.follow, "labels"))


def _numbers(known: LabelledSet) -> None:
    cells = st.columns(4)
    cells[0].metric("Structures", f"{len(known):,}")
    cells[1].metric("Labelled", f"{len(known.labelled):,}")
    cells[2].metric("Failed", f"{len(known.failed):,}")
    cells[3].metric("Without", f"{len(known.unlabelled):,}")


def _methods(known: LabelledSet) -> None:
    for method in known.methods:
        st.caption(f"Labelled by {plain(method)}", help=METHOD_HELP)
    note = finetune.method_note(tuning.base(), known)
    if note:
        st.warning(plain(note), icon=":material/join:")


def _failures(known: LabelledSet) -> None:
    if known.failed:
        first = known.failed[0]
        st.warning(
            f"{count(len(known.failed), 'structure')} could not be labelled, the first ({plain(first.file)}): {plain(first.error)} "
            f"{plain(first.hint)}",
            icon=":material/error:",
        )


def _table(known: LabelledSet) -> None:
    rows = [_row(item.structure, item.label) for item in known]
    st.dataframe(
        rows,
        hide_index=True,
        height="content" if len(rows) <= ROWS_UNSCROLLED else 390,
        column_config={
            "energy": st.column_config.NumberColumn("Energy (eV)", format="%.6g"),
            "largest": st.column_config.NumberColumn(
                "Largest force (eV/Å)", format="%.3g", help="Of the reference, over the atoms."
            ),
        },
        alt="One row per structure: whether it has a label, by whom, or why not.",
        placeholder="–",
    )


def _row(structure: Any, label: Any) -> dict[str, Any]:
    row = {"structure": structure.file, "frame": structure.index, "formula": structure.formula, "label": "none yet"}
    if isinstance(label, Label):
        largest = max((float((f @ f) ** 0.5) for f in label.forces_reference), default=0.0)
        return {**row, "label": label.provenance.reference, "energy": label.energy, "largest": largest}
    if isinstance(label, FdcoreError):
        return {**row, "label": f"failed: {label.message} {label.hint}"}
    return row


# ---- a reference ---------------------------------------------------------------------------------------------------


def _ask(known: LabelledSet) -> None:
    st.markdown("#### Let a reference label them")
    offered = {o.id: o for o in labels.offered_references()}
    here = [i for i, o in offered.items() if o.is_here]
    if not here:
        st.info("No reference is installed here. Bring a labelled file, or install one:", icon=":material/extension:")
    else:
        chosen = st.selectbox(
            "Reference", here, format_func=lambda i: offered[i].title, key="tune-reference", help=METHOD_HELP
        )
        about = offered[chosen]
        st.caption(plain(about.about))
        settings = _settings(about)
        st.button(
            f"Label {count(len(known.without), 'structure')} with {about.title}",
            type="primary",
            icon=":material/play_arrow:",
            key="tune-label",
            on_click=_start,
            args=(known, chosen, settings),
        )
        st.caption(
            "What a reference takes is known when the first are done: CHGNet and xTB about a second each, GPAW minutes to hours."
        )
    finetune_start.install_hints()


def _settings(about: labels.Offered) -> dict[str, Any]:
    """Fields for what a reference lets one choose."""
    if not about.settings:
        return {}
    out: dict[str, Any] = {}
    with st.expander("More settings", icon=":material/tune:"):
        for name, usual in about.settings.items():
            key = f"tune-reference-{about.id}-{name}"
            if isinstance(usual, str):
                out[name] = st.text_input(name, value=usual, key=key)
            else:
                out[name] = st.number_input(name, value=usual, key=key, format="%d" if isinstance(usual, int) else "%g")
    return {k: v for k, v in out.items() if v != about.settings[k]}


def _start(known: LabelledSet, reference: str, settings: dict[str, Any]) -> None:
    now = tuning.taken()
    assert now is not None
    run = run_parts.attempt(
        lambda: labels.submit(owner.viewer(), known.without, reference, settings, title=f"{now.label} by {reference}")
    )
    if run is not None:
        # What the run before has labelled stays.
        tuning.put_known(known)
        tuning.follow("labels", run)


# ---- files ---------------------------------------------------------------------------------------------------------


def _bring(known: LabelledSet) -> None:
    st.markdown("#### Or bring labels", help=MATCHED_HELP)
    place = f"tune-labels-{st.session_state.get('fd_tune_brought', 0)}"
    reorder = st.toggle(
        "Atoms may stand in another order",
        key="tune-reorder",
        help="VASP sorts atoms by element. Which is which then follows from where they are.",
    )
    st.file_uploader(
        "Labelled extended xyz, ASE database, vasprun.xml, OUTCAR",
        accept_multiple_files=True,
        key=place,
        on_change=_brought,
        args=(place, known, reorder),
        help=MATCHED_HELP,
    )


def _brought(place: str, known: LabelledSet, reorder: bool) -> None:
    files = st.session_state[place] or []
    if not files:
        return
    sources = [Source(f.name, f.getvalue()) for f in files]
    attached = run_parts.attempt(lambda: labels.attach(known, sources, reorder=reorder))
    if attached is not None:
        tuning.put_known(attached.known)
        st.session_state["fd_tune_attached"] = attached
        st.session_state["fd_tune_brought"] = st.session_state.get("fd_tune_brought", 0) + 1


def _attached() -> None:
    """What came of the files that were brought last."""
    attached: labels.Attached | None = st.session_state.get("fd_tune_attached")
    if attached is None:
        return
    left: list[Failure] = [*attached.failures, *attached.matching.unused]
    (st.warning if left else st.success)(plain(attached.matching.text), icon=":material/compare_arrows:")
    if left:
        with st.expander(f"{count(len(left), 'file or frame')} without use", icon=":material/info:"):
            for failure in left[:20]:
                st.markdown(
                    f"**{plain(failure.file)}**, frame {failure.index}: {plain(failure.error)} {plain(failure.hint)}"
                )


# ---- to take away --------------------------------------------------------------------------------------------------


def _take_away(known: LabelledSet, run: runs.Run | None) -> None:
    files = []
    if known.labelled:
        files += [
            Download("Labelled extXYZ", partial(label_files.as_extxyz, known), "labelled.extxyz", "For fine-tuning: energies, forces, and where they come from."),
            Download("ASE database", partial(label_files.as_database, known), "labelled.db", "As orb-models and fairchem-core read it."),
        ]  # fmt: skip
    if known.without:
        files.append(
            Download("Unlabelled extXYZ", partial(label_files.unlabelled_extxyz, known), "unlabelled.extxyz", "Those without a label.")
        )  # fmt: skip
    crystals = any(s.periodic for s in known.without)
    if crystals:
        files.append(
            Download("VASP inputs", partial(label_files.vasp_zip, known.without, run_parts.dft_set("tune-dft-set")), "vasp-inputs.zip", "A folder for each crystal without a label; bring its vasprun.xml back here.")
        )  # fmt: skip
    with st.container(horizontal=True, key="tune-label-downloads", vertical_alignment="bottom"):
        run_parts.download_buttons(files, "tune-labels")
        if crystals:
            run_parts.dft_inputs("tune-dft-set")
    if run is not None:
        names = list(dict.fromkeys(s.file for s in known.structures))
        run_parts.repeat(labels.command_line(["unlabelled.extxyz"] if len(names) > 1 else names, run.spec))
