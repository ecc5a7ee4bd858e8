"""Bring structures: files, pasted text, or a shipped example. Always at the same place on every page."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.services import runs
from pages.parts import owner, session
from pages.parts.words import plain, when

LIMITS = services.Limits()
MAX_FILE_MB = LIMITS.max_bytes // 1_000_000
MOST_EARLIER = 8
FORMATS = {
    "as what it looks like": None,
    "as CIF": "cif",
    "as POSCAR": "poscar",
    "as xyz or extended xyz": "extxyz",
    "as JSON (pymatgen, OPTIMADE, ASE)": "json",
}


def structure_picker() -> None:
    """Uploader, examples and a paste box; each of them takes new structures into use at once."""
    st.file_uploader(
        f"CIF, POSCAR, xyz, JSON: up to {LIMITS.max_files} files, {LIMITS.max_atoms:,} atoms each",
        accept_multiple_files=True,
        max_upload_size=MAX_FILE_MB,
        key=_uploader_key(),
        on_change=_uploaded,
        help=f"Extended xyz and plain xyz, one frame or many; JSON of pymatgen, OPTIMADE or ASE. At most {MAX_FILE_MB} MB per file and {LIMITS.max_frames:,} frames. "
        "What is scored is kept with its run, for you alone, until you delete it on the Runs page.",
    )
    current = session.choice()
    examples = {e.id: e for e in services.examples()}
    st.session_state["example"] = current.example if current is not None else None
    example, paste, earlier = st.columns([4, 1.7, 1.9], gap="small")
    with example:
        st.selectbox(
            "Example",
            list(examples),
            index=None,
            format_func=lambda i: examples[i].title,
            placeholder="or choose an example",
            label_visibility="collapsed",
            key="example",
            on_change=_example_chosen,
        )
    with paste, st.popover("Paste text", icon=":material/content_paste:", key="paste", width="stretch"):
        _paste_box()
    with earlier, st.popover("Earlier runs", icon=":material/history:", key="earlier", width="stretch"):
        _earlier_runs()
    if current is not None and current.run is not None:
        st.caption(f"From the run {plain(current.label)}.")
    if current is not None and current.example in examples:
        chosen = examples[current.example]
        st.caption(f"{plain(chosen.description)} Source: {plain(chosen.source)}, {plain(chosen.licence)}.")


def _paste_box() -> None:
    with st.form("paste_form", border=False, clear_on_submit=False):
        text = st.text_area(
            "The text of a structure file", height=220, placeholder="2\nLattice=...\nNa 0.0 0.0 0.0\nCl 2.8 0.0 0.0"
        )
        kind = st.selectbox("Read it", list(FORMATS))
        if st.form_submit_button("Use this text", type="primary"):
            if text.strip():
                source = services.Source(name="pasted text", data=text.encode(), format=FORMATS[kind])
                session.choose(session.Choice(origin="paste", label="pasted text", sources=(source,)))
                st.rerun()
            st.warning("There is no text in the box yet.", icon=":material/info:")


def _earlier_runs() -> None:
    """The structures, the model and, where it is still the same question, the result of a run of before."""
    try:
        listed = [r for r in runs.list_runs(owner.viewer(), states=("done",), limit=50) if r.task == "score"]
    except FdcoreError as error:
        st.warning(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    if not listed:
        st.caption("What you score is found here again.")
    for run in listed[:MOST_EARLIER]:
        label = f"{plain(run.title)} · {run.spec.model.id if run.spec.model else ''} · {when(run.ended_at)}"
        st.button(label, key=f"earlier-{run.id}", on_click=session.open_run, args=(run,), type="tertiary")
    if listed:
        st.page_link("pages/runs.py", label="All runs", icon=":material/history:")


def _uploader_key() -> str:
    return f"upload-{session.uploader_generation()}"


def _uploaded() -> None:
    files = st.session_state[_uploader_key()] or []
    sources = tuple(services.Source(name=name, data=f.getvalue()) for name, f in zip(_names(files), files, strict=True))
    if sources:
        label = sources[0].name if len(sources) == 1 else count(len(sources), "file")
        session.choose(session.Choice(origin="upload", label=label, sources=sources))


def _names(files) -> list[str]:
    """Rows are told apart by their file name: a second POSCAR becomes "POSCAR (2)"."""
    seen: Counter[str] = Counter()
    names = []
    for file in files:
        seen[file.name] += 1
        names.append(file.name if seen[file.name] == 1 else f"{file.name} ({seen[file.name]})")
    return names


def _example_chosen() -> None:
    for example in services.examples():
        if example.id == st.session_state["example"]:
            session.choose_example(example)
