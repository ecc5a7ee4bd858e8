"""The list of all models, the card of the chosen one, and its self-check."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from fdcore import services
from fdcore.records import ModelCard
from fdcore.services import checking, finetune, runs
from pages.parts import owner, run_parts, running, session, words
from pages.parts.model_picker import about, place
from pages.parts.words import plain

TICK_S = 1.0
CHECK_HELP = (
    "Loads the model in float64 and compares F_c with differences of its energy, and the gradient of U_Delta with differences of U_Delta, "
    "at fixed neighbour graph, on a small structure of elements that it knows."
)
KINDS = {"direct": "direct: two forces", "conservative": "conservative: one force"}


def show() -> None:
    """Everything below the title."""
    st.caption(
        "Direct models have two forces and can be scored, run, attacked. Conservative ones have one: they are members of ensembles."
    )
    session.replace_lost_model()
    cards = (*session.own_models(), *services.all_models())
    if session.settings().model_id not in {c.id for c in cards}:
        cards = (services.card(session.settings().model_id), *cards)
    lost = session.lost_model()
    if lost is not None:
        st.warning(
            f"**{plain(lost.message)}** {session.settings().model_id} is used instead.", icon=":material/link_off:"
        )
    table = {
        "model": [c.id for c in cards],
        "force": [c.kind for c in cards],
        "weights": [place(c) for c in cards],
        "trained on": [c.training_data for c in cards],
        "method": [c.reference_method for c in cards],
        "elements": [len(c.elements) for c in cards],
        "parameters (10⁶)": [c.n_parameters / 1e6 for c in cards],
        "neighbours": ["all" if c.neighbour_cap is None else str(c.neighbour_cap) for c in cards],
        "charge and spin": [c.needs_charge_spin for c in cards],
        "licence": [c.licence for c in cards],
    }
    chosen = st.dataframe(
        table,
        hide_index=True,
        selection_mode="single-row",
        on_select="rerun",
        key="models-table",
        height=420,
        column_config={"parameters (10⁶)": st.column_config.NumberColumn(format="%.1f")},
        alt="One row per model; a click shows its card below.",
    )
    rows = chosen["selection"]["rows"]
    ids = [c.id for c in cards]
    row = rows[0] if rows else ids.index(session.settings().model_id)
    card = cards[row]
    left, right = st.columns([3, 2], gap="large")
    with left, st.container(border=True):
        about(card)
    with right:
        _what_to_do(card)


def _what_to_do(card: ModelCard) -> None:
    st.markdown(f"#### {card.id}")
    usable = card.kind == "direct" and card.weights != "file"
    if usable:
        st.button(
            "Use this model",
            icon=":material/check:",
            key="use-model",
            on_click=lambda: session.set_settings(replace(session.settings(), model_id=card.id)),
            disabled=session.settings().model_id == card.id,
            help="On all pages.",
        )
    _weights(card)
    if card.kind != "direct":
        st.caption("It has one force, so that there is nothing to compare it with: ask for it on the Ensemble page.")
    if not usable:
        return
    run = checking.latest(owner.viewer()).get(card.id)
    if run is not None and run.active:
        st.session_state["fd_check"] = run.id
        _live()
        return
    here = services.model_is_here(card)
    st.button(
        "Check its gradients" if here else f"{services.download_of(card)} and check its gradients",
        icon=":material/fact_check:",
        key="check-model",
        on_click=_check,
        args=(card.id, run is not None),
        help=CHECK_HELP,
    )
    if run is not None:
        _found(run)


def _weights(card: ModelCard) -> None:
    """Where its weights are, or how they come here."""
    if not services.extra_is_here(card):
        st.markdown(
            f":material/extension: It needs an optional package: `pip install 'force-delta[{card.extra}]'` on the server."
        )
    elif card.weights == "file":
        st.markdown(
            f":material/draft: On the command line only: `fdcore score FILE --model {card.id} --weights MODEL.pt`."
        )
    elif card.weights == "local":
        _lineage(card)
    elif card.weights == "embedded":
        st.markdown(":material/inventory_2: Its weights come with the app.")
    elif services.model_is_here(card):
        st.markdown(":material/check_circle: Its weights are on this machine.")
    else:
        gate = (
            " They are gated: accept the licence there and set a token (`HF_TOKEN`) on the server."
            if card.weights == "gated"
            else ""
        )
        size = f"{card.download_MB:.0f} MB " if card.download_MB else ""
        st.markdown(
            f":material/download: Its weights are fetched when it is first used: {size}from `{card.address}`.{gate}"
        )
        use = f"score FILE --model {card.id} --weights PATH"
        if card.kind != "direct":
            use = f"ensemble FILE --models {card.id},OTHER --weights {card.id}=PATH"
        st.caption(
            f"Without a network: `fdcore {use}`, or the operator puts the file into the folder "
            f"`FDCORE_WEIGHTS` as `{card.id}.ckpt`. A file brought by a browser is never loaded: reading some formats runs what they hold."
        )


def _lineage(card: ModelCard) -> None:
    """What it was made of: every fine-tuning, the oldest first."""
    st.markdown(
        ":material/model_training: It was fine-tuned here. Its run keeps it: deleting the run deletes the model."
    )
    for number, step in enumerate(finetune.lineage(card), 1):
        made = step.get("settings", {})
        how = {"direct": "F_nc only", "both": "F_c and F_nc together"}.get(made.get("train"), "")
        st.markdown(
            f"{number}. from **{plain(str(step.get('base', '')))}**: {how}, {step.get('n_structures', 0)} structures labelled by "
            f"{plain(str(step.get('labelled_by') or 'what the files do not say'))}, epoch {step.get('best_epoch')} of "
            f"{step.get('epochs_done')}, seed {step.get('seed')}"
        )


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = runs.get(owner.viewer(), st.session_state["fd_check"])
    if not run.active:
        st.rerun()
        return
    running.be_there()
    with st.container(border=True, key="progress"):
        words.run_progress(run)
        st.button(
            "Stop",
            icon=":material/stop_circle:",
            key="stop",
            disabled=run.cancel_requested,
            on_click=run_parts.stop,
            args=(run.id,),
        )


def _check(model_id: str, again: bool) -> None:
    run_parts.attempt(lambda: checking.submit(owner.viewer(), model_id, session.settings().device, again=again))


def _found(run: runs.Run) -> None:
    check = checking.found(run)
    if check is None:
        if run.state == "failed":
            st.error(f"**{plain(run.error or 'The check failed.')}** {plain(run.hint or '')}", icon=":material/error:")
        return
    sign = words.STATUSES["pass" if check.passed else "fail"]
    what = "Its gradients agree with differences" if check.passed else "Its gradients DO NOT agree with differences"
    st.markdown(f":{sign.color}[{sign.icon} **{sign.word}**] &nbsp; {what} on {check.structure}.")
    st.dataframe(
        {
            "": ["F_c (eV/Å)", "grad U_Delta (eV/Å²)", "grad U_Delta, low memory"],
            "largest error": [
                check.forces_conservative_error,
                check.force_delta_gradient_error,
                check.low_memory_gradient_error,
            ],
            "of": [
                check.forces_conservative_scale,
                check.force_delta_gradient_scale,
                check.force_delta_gradient_scale,
            ],
        },
        hide_index=True,
        column_config={
            "largest error": st.column_config.NumberColumn(format="%.1e"),
            "of": st.column_config.NumberColumn(format="%.3g"),
        },
        alt="Largest errors of F_c and of both forms of the gradient of U_Delta against central differences.",
    )
    st.caption(
        f"{check.components} components, h = {check.step_A:g} Å, float64; {words.when(run.ended_at)}. "
        f"On a command line: `fdcore models --check {check.model}`"
    )
