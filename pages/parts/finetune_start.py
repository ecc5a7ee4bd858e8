"""The first step of fine-tuning: which structures. And before anything was chosen, what the page is for."""

from __future__ import annotations

import streamlit as st

from fdcore import finetuning_plots, services
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.services import labels, runs
from pages.parts import owner, session, tuning, words
from pages.parts.refusals import failed
from pages.parts.words import plain

EXAMPLE = "Mg17Al12"
# Settings with which the example takes minutes: enough to see every part of the loop, too little for a model to be proud of.
QUICK = {
    "generations": 1,
    "count": 12,
    "attack_steps": 15,
    "epochs": 6,
    "picoseconds": 0.5,
    "per_sigma": 3,
    "relax_steps": 40,
}
MOST_OFFERED = 50
STAGES = (
    (":material/target:", "Find", "structures on which the model's two forces disagree (the Adversarial page)"),
    (":material/label:", "Label", "them with a reference: CHGNet, xTB, GPAW, or your own DFT"),
    (":material/model_training:", "Fine-tune", "F_nc only, or F_c and F_nc together"),
    (":material/monitoring:", "Measure", "whether simulations drift less: the same seeds before and after"),
)
MATCH_HELP = (
    "Extended xyz, ASE databases, vasprun.xml or OUTCAR. Energies (eV) and forces (eV/Å) in them are taken as reference labels; frames "
    "without are structures that still need some."
)


def what_will_come() -> None:
    """The four stages in words, and a working example."""
    with st.container(border=True):
        st.markdown("### Close the loop")
        st.markdown("A few dozen well chosen structures can make a model more stable where you use it.")
        for column, (icon, name, text) in zip(st.columns(4), STAGES, strict=True):
            column.markdown(f"{icon} **{name}**  \n{text}")
        st.altair_chart(
            finetuning_plots.measured_loop(),
            alt="Mean drift of four models: 4.6 before, about half a meV/atom/ps after fine-tuning.",
        )
        examples = {e.id: e for e in services.examples()}
        example = examples.get(EXAMPLE) or next(iter(examples.values()))
        reference = _reference()
        st.button(
            f"Try an example: {example.title}",
            type="primary",
            icon=":material/play_arrow:",
            key="try_example",
            on_click=_try_example,
            args=(example, reference),
            disabled=reference is None,
            help="All four stages with small settings. What it costs is said before it starts.",
        )
        if reference is None:
            st.caption("The example needs a reference that is not installed here:")
            install_hints()


def show() -> None:
    """Take the dataset of an attack, or files."""
    now = tuning.taken()
    if now is None:
        what_will_come()
    else:
        summary(now)
    attack, files = st.columns(2, gap="large")
    with attack:
        st.markdown("#### From an attack")
        _attacks()
    with files:
        st.markdown("#### From files", help=MATCH_HELP)
        place = f"tune-upload-{st.session_state.get('fd_tune_upload', 0)}"
        st.file_uploader(
            "Structures, labelled or not",
            accept_multiple_files=True,
            key=place,
            on_change=_uploaded,
            args=(place,),
            help=MATCH_HELP,
        )
    if now is not None:
        for failure in now.failures:
            failed(failure, done="read")


def summary(now: tuning.Taken) -> None:
    """What is in work, and where it goes next."""
    known = tuning.known() or now.known
    with st.container(border=True, key="tune-set"):
        n = len(known.labelled)
        st.markdown(f"**{count(len(known), 'structure')}** of {plain(now.label)}, {n:,} labelled.")
        with st.container(horizontal=True):
            if n < len(known):
                _next("labels", "Label them" if not n else "Label the rest", n == 0)
            if n:
                _next("train", f"Fine-tune on {n:,}", True)


def _next(to: str, label: str, first: bool) -> None:
    st.button(
        label,
        key=f"go-{to}",
        icon=":material/arrow_forward:",
        type="primary" if first else "secondary",
        on_click=tuning.go,
        args=(to,),
    )


def install_hints() -> None:
    """How the references that are not here come here."""
    for missing in (o for o in labels.offered_references() if not o.is_here):
        st.caption(f"{missing.title} is not installed here: `{missing.install}`.")


def _reference() -> str | None:
    """Which of the references that are here can label crystals; CHGNet where it is."""
    here = [o.id for o in labels.offered_references() if o.is_here]
    return next((i for i in ("chgnet", "gpaw") if i in here), None)


def _try_example(example: services.Example, reference: str) -> None:
    session.choose_example(example)
    tuning.set_base(services.default_model_id())
    tuning.changes("loop").clear()
    tuning.changes("loop").update({**QUICK, "reference": reference})
    st.session_state.pop("fd_tune_starts", None)
    tuning.forget("loop")
    tuning.go("loop")


def _attacks() -> None:
    try:
        listed = runs.list_runs(owner.viewer(), states=("done", "cancelled"), tasks=("attack",), limit=MOST_OFFERED)
    except FdcoreError as error:
        st.warning(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    if not listed:
        st.caption("No attack of yours has ended yet. The Adversarial page makes structures worth labelling.")
        st.page_link("pages/adversarial.py", label="Adversarial", icon=":material/target:")
        return
    by_id = {r.id: r for r in listed}
    st.selectbox("Attack", list(by_id), format_func=lambda i: _attack_label(by_id[i]), key="tune-attack")
    st.button(
        "Use its structures",
        icon=":material/check:",
        key="tune-take-attack",
        on_click=lambda: _take(by_id[st.session_state["tune-attack"]]),
    )


def _attack_label(run: runs.Run) -> str:
    model = run.spec.model.id if run.spec.model else ""
    return f"{run.title} · {model} · {words.when(run.ended_at)}"


def _take(run: runs.Run) -> None:
    try:
        tuning.take_attack(run)
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    now = tuning.taken()
    if now is not None and not len(now.known):
        tuning.take(None)
        st.toast("That attack has found no structure for its dataset.", icon=":material/info:")


def _uploaded(place: str) -> None:
    files = st.session_state[place] or []
    if not files:
        return
    parsed = services.read_sources([services.Source(f.name, f.getvalue()) for f in files])
    label = files[0].name if len(files) == 1 else count(len(files), "file")
    known = labels.of_files(parsed.structures)
    if len(known) or parsed.failures:
        tuning.take(tuning.Taken(label, known, failures=parsed.failures))
