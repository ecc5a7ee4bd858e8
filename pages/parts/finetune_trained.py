"""A fine-tuning: live while it trains, and afterwards what the model has gained, what it has forgotten, and the model itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import streamlit as st

from fdcore import finetuning, finetuning_files, finetuning_plots
from fdcore.finetuning import Trained
from fdcore.human import count
from fdcore.records import ModelCard
from fdcore.services import finetune, runs
from pages.parts import run_parts, session, tuning
from pages.parts.run_parts import Download, not_finished
from pages.parts.words import plain

STEP = "train"
TICK_S = 1.5
ERROR_HELP = (
    r"eps = $\sqrt{\frac{1}{3N}\sum_i|\mathbf{F}_i-\mathbf{F}_i^{ref}|^2}$ over all components, for F_nc (eps_nc) and for F_c (eps_c). "
    "U_Delta is how far both are apart."
)
WHERE = {"train": "trained on", "held-out": "held out", "replay": "base model's own domain"}


def show(run: runs.Run) -> None:
    run_parts.headline(run, "tune-train-again", lambda: tuning.forget(STEP), "Fine-tuning on")
    if run.active:
        _live()
        return
    found = tuning.trained(run)
    if run.state != "done":
        stopped = f":material/stop_circle: **Stopped** after {run.done:,.0f} of {run.total:,.0f} steps. It can go on from there."
        not_finished(run, stopped, "Go on", partial(tuning.follow, STEP))
    _results(run, found)


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = tuning.shown(STEP)
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run)
    charts(tuning.trained(run), "live")


def charts(found: Trained, key: str) -> None:
    """Losses and errors so far."""
    left, right = st.columns(2, gap="large")
    with left:
        if finetuning.loss_per_epoch(found):
            st.altair_chart(
                finetuning_plots.loss_chart(found), alt="Loss and its parts against the epoch.", key=f"tune-loss-{key}"
            )
        else:
            st.caption("The loss will show here.")
    with right:
        if found.epochs and len(found.epochs["epoch"]):
            st.altair_chart(
                finetuning_plots.error_chart(found),
                alt="Held-out errors of both forces and U_Delta against the epoch.",
                key=f"tune-errors-{key}",
            )


def outcome(found: Trained) -> None:
    """Words: what was gained, and what was forgotten."""
    if finetuning.sentence(found):
        st.markdown(f"#### {plain(finetuning.sentence(found))}")
    forgotten = finetuning.forgetting(found)
    if forgotten:
        bad = forgotten.startswith("It has forgotten")
        (st.warning if bad else st.success)(
            plain(forgotten), icon=":material/psychology_alt:" if bad else ":material/check_circle:"
        )


def error_table(found: Trained) -> None:
    rows = finetuning.error_rows(found)
    if not rows:
        return
    st.dataframe(
        [{**row, "part": WHERE[row["part"]]} for row in rows],
        hide_index=True,
        column_config={
            "part": "Structures",
            "n": "n",
            "quantity": st.column_config.TextColumn("Quantity", help=ERROR_HELP),
            "before": st.column_config.NumberColumn("Before", format="%.3g"),
            "after": st.column_config.NumberColumn("After", format="%.3g"),
            "ratio": st.column_config.NumberColumn("After / before", format="%.2f"),
        },
        placeholder="–",
        alt="Errors before and after the fine-tuning, on what was trained on, what was held out, and the base model's own domain.",
    )


def _results(run: runs.Run, found: Trained) -> None:
    outcome(found)
    if found.left_out:
        st.caption(f"{count(len(found.left_out), 'structure')} had no energy or no force and was left out.")
    card = finetune.model_of(run) if run.state == "done" else None
    if card is not None:
        _model(card)
    charts(found, "ended")
    error_table(found)
    files = [
        Download("Losses CSV", partial(finetuning_files.losses_csv, found), "losses.csv", "Mean losses and held-out errors per epoch."),
        Download("Errors CSV", partial(finetuning_files.errors_csv, found), "errors.csv", "The table above."),
    ]  # fmt: skip
    if card is not None and found.model_folder is not None:
        files.insert(0, model_download(card, found))
    with st.container(horizontal=True, key="tune-downloads"):
        run_parts.download_buttons(files, "tune")
    run_parts.repeat(finetune.command_line(["labelled.extxyz"], run.spec))


def model_download(card: ModelCard, found: Trained) -> Download:
    assert found.model_folder is not None
    return Download(
        "Model",
        partial(finetuning_files.model_zip, found.model_folder),
        f"{card.id}.zip",
        "model.safetensors and card.json, with its lineage. Unpacked, `fdcore score FILE --model FOLDER` uses it.",
    )


def _model(card: ModelCard) -> None:
    with st.container(border=True, key="tune-model"):
        st.markdown(
            f":material/inventory_2: The model is called **{plain(card.id)}**. You find it by this name on all pages."
        )
        with st.container(horizontal=True):
            st.button(
                "Did it become more stable?",
                type="primary",
                icon=":material/monitoring:",
                key="go-stability",
                on_click=_measure,
            )
            st.button(
                "Use it on all pages",
                icon=":material/check:",
                key="tune-use",
                disabled=session.settings().model_id == card.id,
                on_click=lambda: session.set_settings(replace(session.settings(), model_id=card.id)),
            )
            st.page_link("pages/models.py", label="Models", icon=":material/memory:")


def _measure() -> None:
    tuning.set_compared(None)
    tuning.forget("stability")
    tuning.go("stability")
