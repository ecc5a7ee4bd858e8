"""All of it at once: attack, label, fine-tune, attack again, measure, as one run."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from fdcore import finetuning_files, generations, services
from fdcore.errors import FdcoreError
from fdcore.generations import Loop
from fdcore.human import count
from fdcore.records import ModelCard, Structure
from fdcore.services import dynamics, runs
from fdcore.services import generations as loops
from fdcore.tasks.stages import GenerationsParameters
from pages.parts import finetune_stability, finetune_train, finetune_trained, owner, run_parts, tuning
from pages.parts.fields import seed
from pages.parts.refusals import failed
from pages.parts.run_parts import Download, not_finished
from pages.parts.words import plain

STEP = "loop"
TICK_S = 2.0
GENERATIONS_HELP = "How often it is attacked, labelled and fine-tuned: from the second on what came of the one before."
WINDOW_HELP = (
    "How far above its start an attack may take a structure. Empty: 3/2 kT at the temperature of the simulation, what it visits. What lies "
    "far above teaches little about where the model is used, and it forgets."
)


def show() -> None:
    run = tuning.shown(STEP)
    if run is None:
        _ask()
        return
    run_parts.headline(run, "tune-loop-again", lambda: tuning.forget(STEP), "Loop on")
    if run.active:
        _live()
        return
    found = loops.of_run(run)
    if run.state != "done":
        stopped = f":material/stop_circle: **Stopped** at {run.done:,.0f} %. What was made is kept."
        not_finished(run, stopped, "Go on", partial(tuning.follow, STEP))
    _results(run, found)


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = tuning.shown(STEP)
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run)
    found = loops.of_run(run)
    _stages(found, run)
    now = [t for t in found.trainings if t.trained.steps and len(t.trained.steps["step"])]
    if now and not any(m.runs for m in found.measured.models):
        st.markdown(f"**{plain(now[-1].title[:1].upper() + now[-1].title[1:])}**")
        finetune_trained.charts(now[-1].trained, "loop-live")
    finetune_stability.charts(found.measured, "loop-live")


def _stages(found: Loop, run: runs.Run) -> None:
    """What is done, what is in work, and what will come."""
    stages = found.parameters.stages()
    texts = [s.text for s in stages]
    # The text of the run begins with the stage that is in work.
    at = next((k for k, t in enumerate(texts) if run.text.startswith(t)), None)
    lines = []
    for k, text in enumerate(texts):
        done = at is not None and k < at
        sign = (
            ":green[:material/check_circle:]" if done else ":material/play_circle:" if k == at else ":material/circle:"
        )
        lines.append(f"{sign} {plain(text)}")
    st.caption(" &nbsp; ".join(lines))


def _results(run: runs.Run, found: Loop) -> None:
    story = generations.story(found)
    for sentence in generations.sentences(found):
        (st.warning if "MORE" in sentence else st.markdown)(
            f"- {plain(sentence)}" if "MORE" not in sentence else plain(sentence)
        )
    finetune_stability.charts(found.measured, "loop")
    finetune_stability.tables(found.measured)
    made = loops.models_of(run)
    if made:
        with st.container(border=True, key="tune-models"):
            st.markdown(":material/inventory_2: The models, which you find by these names on all pages:")
            for title, model_id in made.items():
                st.markdown(f"- {plain(title)}: **{plain(model_id)}**")
            st.page_link("pages/models.py", label="Models", icon=":material/memory:")
    for training in found.trainings:
        if training.trained.steps and len(training.trained.steps["step"]):
            with st.expander(f"{training.title[:1].upper()}{training.title[1:]}", icon=":material/model_training:"):
                finetune_trained.charts(training.trained, training.stage.product)
                finetune_trained.error_table(training.trained)
    finetune_stability.report(found.measured, loops.provenance(run.spec, run.summary), "loop", story)
    _models(found, made)
    names = list(dict.fromkeys(s.file for s in found.measured.structures))
    run_parts.repeat(loops.command_line(names, run.spec))


def _models(found: Loop, made: dict[str, str]) -> None:
    files = [
        Download(
            f"Model: {t.title}",
            partial(finetuning_files.model_zip, t.folder),
            f"{made[t.title]}.zip",
            "model.safetensors and card.json, with its lineage.",
        )
        for t in found.trainings
        if t.folder is not None and t.title in made
    ]
    with st.container(horizontal=True, key="tune-loop-models"):
        run_parts.download_buttons(files, "tune-loop")


# ---- what is asked -----------------------------------------------------------------------------------------------------


def _ask() -> None:
    with st.container(border=True, key="tune-loop-settings"):
        left, right = st.columns(2, gap="large")
        with left:
            card = finetune_train.base_picker("tune-loop-base")
        with right:
            title, given = finetune_stability.pick_start("tune-loop-start")
        now = tuning.values(GenerationsParameters, STEP)
        _few(now)
        _more(now)
        good, refused = dynamics.movable(card, given)
        for failure in refused:
            failed(failure, done="taken")
        if not good:
            st.button("Run the loop", type="primary", icon=":material/play_arrow:", key="tune-loop-go", disabled=True)
            st.caption("Choose a structure above: the one that the model is to become stable for.")
            return
        _cost_and_start(card, good, title)


def _few(now: Any) -> None:
    fields = tuning.fields(STEP)
    first, second, third, fourth = st.columns(4)
    with first:
        fields.number("generations", "Generations", now, step=1, minimum=1, maximum=5, text=GENERATIONS_HELP)
        fields.number(
            "picoseconds", "Length of a run (ps)", now, step=1.0, minimum=0.001, text=finetune_stability.DRIFT_HELP
        )
    with second:
        fields.number("count", "Structures each", now, step=10, minimum=1)
        fields.number("seeds", "Seeds", now, step=1, minimum=5, maximum=64, text=finetune_stability.SEEDS_HELP)
    with third:
        finetune_stability.reference_field(STEP, now, optional=False)
        fields.optional("window_eV_per_atom", "Energy window (eV/atom)", now, WINDOW_HELP)
    with fourth:
        fields.number("epochs", "Epochs at most", now, step=5, minimum=1, text="Of each training.")
        fields.toggle(
            "also_direct", "Also F_nc only", now, "A second training in the first generation, to compare with."
        )


def _more(now: Any) -> None:
    fields = tuning.fields(STEP)
    with st.expander("More settings", icon=":material/tune:"):
        attack, measure, bounds = st.columns(3)
        with attack:
            st.markdown("**Attacks**")
            fields.number("attack_steps", "Steps per start", now, step=5, minimum=1)
            fields.optional_whole("starts", "Starts", now, "Copies that climb. Empty: chosen by the count.")
            fields.number("rise", "U_Delta at least ... times that of the start", now, step=0.5, minimum=0.0)
            fields.number("apart", "Difference between any two", now, step=0.05, minimum=0.0)
        with measure:
            st.markdown("**Measurement**")
            finetune_stability.measuring_left(STEP, now)
            fields.number("per_sigma", "Copies per displacement", now, step=1, minimum=1)
            finetune_stability.sigmas(STEP, now)
        with bounds:
            st.markdown("**Bounds**")
            fields.optional("wall_seconds", "No new generation after (s)", now, "Of computing. Empty: no limit.")
            fields.number("relax_fmax_eV_per_A", "Relax along F_nc to (eV/Å)", now, step=0.01, minimum=0.0001)
            fields.number("relax_steps", "Iterations at most", now, step=10, minimum=1)
            seed("tune-loop-seed-field", "fd_tune_seed_loop", tuning.seed(STEP), "Of everything that is random.")
        st.markdown("**Training**")
        # Epochs stand above.
        finetune_train.training(STEP, now, epochs=False)


def _cost_and_start(card: ModelCard, good: list[Structure], title: str) -> None:
    replay = finetune_train.replay_of(card, tuple(good))
    try:
        spec = loops.spec_of(good, replay, tuning.choice(card), tuning.changes(STEP), seed=tuning.seed(STEP))
        cost = loops.estimate(spec, [*good, *replay])
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
        return
    here = services.model_is_here(card)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Run the loop" if here else f"{services.download_of(card)} and run the loop",
            type="primary",
            icon=":material/play_arrow:",
            key="tune-loop-go",
            disabled=not cost.fits,
            on_click=_start,
            args=(card, good, replay, title),
        )
        st.markdown(f"{count(len(GenerationsParameters.of(spec).stages()), 'stage')}: {cost.text}.")
    if not cost.fits:
        run_parts.too_large(cost)


def _start(card: ModelCard, good: list[Structure], replay: list[Structure], title: str) -> None:
    run: runs.Run | None = run_parts.attempt(
        lambda: loops.submit(
            owner.viewer(),
            good,
            replay,
            tuning.choice(card),
            tuning.changes(STEP),
            title=title.split(": ", 1)[-1],
            seed=tuning.seed(STEP),
        )
    )
    if run is not None:
        tuning.follow(STEP, run)
