"""What is to be screened, with which model and how; and the cost before the start."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import streamlit as st

from fdcore import services
from fdcore.human import count, size
from fdcore.services import screening as screenings
from fdcore.services.screening import Brought
from pages.parts import owner, run_parts, screening, session
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import MAX_FILE_MB
from pages.parts.words import plain

FILES, UPLOAD = "screen-files", "bring files"
HANDS_HELP = (
    "Runs that share the work, each on one core or one GPU, so that the numbers are the same whoever computes them. Each takes a place of its "
    "own among the runs: more than one helps where several are served at once, such as on several machines."
)
CHUNK_HELP = "So many structures are taken, scored and kept at once. What is done of a chunk is done, whatever happens afterwards."
CHECK_HELP = (
    "So many structures, chosen by their content, are scored a second time, alone. The largest difference is told: a number must not depend "
    "on what it was computed together with."
)


def ask() -> None:
    """Everything that is chosen, the cost, and the button that starts."""
    st.markdown(
        "Rank thousands of structures by **U_Delta**, the disagreement of the model's own two forces: the ones at the top are those on which "
        "the model is least to be trusted. A structure that cannot be read or computed is a row with its reason, and stops none of the others. "
        "You can watch, close the page, and come back."
    )
    with st.container(border=True, key="screen-settings"):
        left, right = st.columns([3, 2], gap="large")
        with left:
            brought, folder = _what()
        with right:
            model_picker()
        with st.expander("Hands, chunks and a check", icon=":material/tune:"):
            _how()
        _start(brought, folder)
    if not brought and not folder:
        _what_will_come()


def _what() -> tuple[list[Any], str]:
    """Files that were brought, or the name of a folder."""
    offered, problem = screening.folders()
    if problem is not None:
        st.warning(f"{plain(problem.message)} {plain(problem.hint)}", icon=":material/folder_off:")
    folder: str | None = None
    if offered:
        known = screening.chosen()["folder"]
        st.session_state["screen-folder"] = known if known in offered else None
        folder = st.selectbox(
            "A folder on this server",
            offered,
            index=None,
            placeholder=f"{UPLOAD}, or choose a folder",
            key="screen-folder",
            on_change=lambda: screening.choose(folder=st.session_state["screen-folder"]),
            help="Folders that the operator of this server offers. All that is in it is screened, its own folders too.",
        )
    if folder is not None:
        return [], folder
    files = st.file_uploader(
        f"Extended xyz, CIF, POSCAR, JSON, JSON lines, Parquet, ASE database: up to {screenings.MOST_FILES:,} files",
        accept_multiple_files=True,
        max_upload_size=MAX_FILE_MB,
        key=FILES,
        help=f"At most {MAX_FILE_MB} MB per file; each may hold thousands of structures. They are kept with the screening, for you alone, "
        "until you delete it on the Runs page. Larger collections: `fdcore screen` on a command line, or a folder on the server.",
    )
    return list(files or []), ""


def _how() -> None:
    now = screening.chosen()
    hands, chunk, check = st.columns(3, gap="medium")
    with hands:
        _number("hands", "Hands", now, 1, screenings.MOST_HANDS, HANDS_HELP)
    with chunk:
        _number("chunk", "Structures in a chunk", now, 1, 5000, CHUNK_HELP)
    with check:
        st.session_state["screen-check"] = 100.0 * now["check_share"]
        st.number_input(
            "Scored a second time (%)",
            min_value=0.0,
            max_value=100.0,
            step=1.0,
            format="%g",
            key="screen-check",
            on_change=lambda: screening.choose(check_share=st.session_state["screen-check"] / 100.0),
            help=CHECK_HELP,
        )


def _number(name: str, label: str, now: dict[str, Any], least: int, most: int, text: str) -> None:
    key = f"screen-{name}"
    st.session_state[key] = int(now[name])
    st.number_input(
        label,
        min_value=least,
        max_value=most,
        step=1,
        key=key,
        on_change=lambda: screening.choose(**{name: st.session_state[key]}),
        help=text,
    )


def _start(files: Sequence[Any], folder: str) -> None:
    card = services.card(session.settings().model_id)
    total = sum(f.size for f in files)
    here = services.model_is_here(card)
    if not here:
        st.info(
            f"The weights of {card.id} are not on this machine: they are fetched from their publisher once. Licence: {card.licence}.",
            icon=":material/download:",
        )
    too_many = len(files) > screenings.MOST_FILES
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Screen them" if here else f"{services.download_of(card)} and screen them",
            type="primary",
            icon=":material/play_arrow:",
            key="screen-start",
            disabled=too_many or not (files or folder),
            on_click=_submit,
            args=(_brought(files), folder),
        )
        if files:
            st.markdown(f"{count(len(files), 'file')}, {size(total)}: {screenings.cost_in_words(card, total)}.")
        elif folder:
            st.markdown(f"Everything in **{plain(folder)}**; {screenings.cost_in_words(card, None)}.")
        else:
            st.caption("Bring files first.")
    if too_many:
        st.warning(
            f"{len(files):,} files are more than the {screenings.MOST_FILES:,} that can be brought at once. Put them together in one extended "
            "xyz or Parquet file, or use `fdcore screen` on a command line.",
            icon=":material/info:",
        )


def _brought(files: Sequence[Any]) -> list[Brought]:
    return [Brought(f.name, f) for f in files]


def _what_will_come() -> None:
    with st.container(border=True, key="screen-nothing"):
        st.markdown("### Thousands of structures, one ranking")
        st.markdown(
            "- **how much the forces disagree**, as a histogram that grows while it is computed\n"
            "- **the worst and the failed** with their reasons, filtered by element, size and U_Delta\n"
            "- **any structure in 3D**, its atoms coloured by what they contribute\n"
            "- **what to do next**: send a selection to dynamics, to an attack, to an ensemble; take the table as Parquet or CSV"
        )
        st.button(
            "Screen the shipped examples",
            type="primary",
            icon=":material/play_arrow:",
            key="screen-example",
            on_click=_example,
            help="Crystals, molecules and ladders of displaced copies; the embedded model does not know the elements of two of them.",
        )


def _example() -> None:
    _submit(
        [Brought(e.file, io.BytesIO(services.example_source(e).data)) for e in services.examples()],
        "",
        "the shipped examples",
    )


def _submit(brought: Sequence[Brought], folder: str, title: str = "") -> None:
    now, settings = screening.chosen(), session.settings()
    for one in brought:
        one.stream.seek(0)
    if not title and len(brought) > 1:
        title = f"{brought[0].name} and {count(len(brought) - 1, 'other file')}"
    card = services.card(settings.model_id)
    started = run_parts.attempt(
        lambda: screenings.start(
            owner.viewer(),
            settings.model,
            brought=brought,
            folder=folder,
            title=title,
            hands=now["hands"],
            chunk=now["chunk"],
            check_share=now["check_share"],
            charge=settings.charge if card.needs_charge_spin else None,
            spin=settings.spin if card.needs_charge_spin else None,
        )
    )
    if started:
        screening.follow(started[0])
