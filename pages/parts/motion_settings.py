"""What is asked of a simulation: presets first, everything else one fold away, the cost before the start."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore import services
from fdcore.dynamics.settings import OPTIMISERS, default_timestep_fs
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.records import Structure
from fdcore.services import dynamics, runs
from fdcore.tasks.md import MdParameters
from fdcore.tasks.motion import elements_of
from fdcore.tasks.mts_advisor import AdvisorParameters
from fdcore.tasks.relax import RelaxParameters
from pages.parts import moving, owner, session
from pages.parts.fields import Fields, seed
from pages.parts.refusals import failed
from pages.parts.words import plain

DRIVER_NAMES = {
    "direct": "F_nc, direct",
    "conservative": "F_c, conservative",
    "mts": "both, multiple time steps",
}
DRIVER_HELP = (
    "**F_nc**, the force head: fast, but not the slope of any energy, so the total energy drifts.\n\n"
    "**F_c = −dE/dR**: conserves energy, costs about twice as much.\n\n"
    "**Multiple time steps**: F_nc drives, F_c − F_nc corrects every M steps (r-RESPA; Bigi et al. 2025): nearly the price of the "
    "first with the conservation of the second."
)
THERMOSTAT_NAMES = {
    "nose-hoover": "Nosé-Hoover chain",
    "langevin": "Langevin",
    "vrescale": "Stochastic velocity rescaling",
}
ADVISOR_TEXT = (
    "From one equilibrated start, the structure is driven by F_c, by F_nc, and by multiple time steps with several strides M. The advice "
    "is the largest M whose drift stays near that of F_c."
)

_fields = Fields(lambda name: f"motion-{moving.kind()}-{name}", moving.change)


def what_will_come() -> None:
    """Before anything was chosen: a working example, and what it shows."""
    with st.container(border=True):
        st.markdown("### Watch the energy")
        st.markdown(
            "A simulation driven by forces that are not the slope of the energy gains or loses energy out of nothing. Bring a structure, "
            "run it for a picosecond, and see:\n"
            "- the **drift** of the total energy, fitted, with an honest interval\n"
            "- the **temperature**, of all atoms and per element\n"
            "- **U_Delta** along the way, and which atoms cause it, in 3D as they move\n"
            "- the same run driven by F_c or by multiple time steps, on the same charts"
        )
        examples = {e.id: e for e in services.examples()}
        example = examples.get("Mg17Al12") or next(iter(examples.values()))
        st.button(
            f"Try an example: {example.title}",
            type="primary",
            icon=":material/play_arrow:",
            on_click=session.choose_example,
            args=(example,),
            key="try_example",
        )


def nothing_readable() -> None:
    """Nothing in the choice could be read."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")


def ask() -> None:
    """The settings, the cost, and the button that starts."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")
    # Not a segmented control: Streamlit draws what is chosen there in a colour that a dark page has too little contrast for.
    st.session_state["motion-kind"] = moving.kind()
    st.radio(
        "What to run",
        list(moving.KINDS),
        format_func=lambda k: moving.KINDS[k],
        key="motion-kind",
        horizontal=True,
        on_change=lambda: moving.set_kind(st.session_state["motion-kind"]),
    )
    _which()
    structures = moving.chosen()
    card = services.card(session.settings().model_id)
    good, refused = dynamics.movable(card, structures)
    for failure in refused:
        failed(failure, done="taken")
    if not good:
        return
    with st.container(border=True, key="motion-settings"):
        {"md": _md, "relax": _relax, "mts-advisor": _advisor}[moving.kind()](good)
        try:
            parameters = moving.parameters(good)
            _cost_and_start(good, parameters)
        except FdcoreError as error:
            st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


def _which() -> None:
    listed = session.structures()
    if len(listed) < 2:
        st.session_state["fd_motion_which"] = 0
        return
    options: list[int | None] = [*range(len(listed))]
    if moving.kind() != "mts-advisor" and len(listed) <= moving.MOST_IN_A_BATCH:
        options.append(None)
    now = moving.which()
    if now not in options:
        now = 0
    st.session_state["motion-which"] = now
    st.selectbox(
        "Structure",
        options,
        format_func=lambda k: f"all {len(listed)} as one batch" if k is None else _name(listed[k]),
        key="motion-which",
        on_change=lambda: st.session_state.update(fd_motion_which=st.session_state["motion-which"]),
    )
    st.session_state["fd_motion_which"] = now


def _name(structure: Structure) -> str:
    return f"{structure.file}, frame {structure.index}: {structure.formula}, {count(structure.n_atoms, 'atom')}"


# ---- the three kinds -----------------------------------------------------------------------------------------------


def _md(structures: list[Structure]) -> None:
    presets = dynamics.PRESETS
    st.session_state["motion-preset"] = moving.preset()
    st.radio(
        "Protocol",
        list(presets),
        format_func=lambda k: presets[k].title,
        key="motion-preset",
        horizontal=True,
        on_change=lambda: moving.set_preset(st.session_state["motion-preset"]),
    )
    st.caption(presets[moving.preset()].description)
    now = _effective(MdParameters, structures)
    _driver(now)
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            _fields.select(
                "ensemble", "Ensemble", {"nve": "NVE, constant energy", "nvt": "NVT, constant temperature"}, now
            )
            _fields.number("temperature_K", "Temperature (K)", now, step=10.0, minimum=0.001)
            _fields.select("thermostat", "Thermostat", THERMOSTAT_NAMES, now, "Of NVT and of the equilibration.")
            _fields.optional(
                "thermostat_time_fs", "Thermostat time (fs)", now, "Its relaxation time; short holds tightly."
            )
        with middle:
            _fields.number("steps", "Steps", now, step=100, minimum=1, text=_length(now, structures))
            step = default_timestep_fs(elements_of(structures))
            _fields.optional("timestep_fs", "Time step (fs)", now, f"Empty: {step:g} fs for these elements.")
            _fields.number("equilibrate_steps", "Equilibration steps (NVT)", now, step=100, minimum=0)
            _fields.optional("relax_fmax_eV_per_A", "Relax first to (eV/Å)", now, "Empty: not relaxed.")
        with right:
            _fields.number("monitor_every", "U_Delta every ... steps", now, step=1, minimum=1)
            _fields.optional("stop_above", "Stop above U_Delta (eV/Å)", now, "Empty: no limit.")
            _fields.optional("stop_above_atom", "Stop above u_i of an atom (eV/Å)", now, "Empty: no limit.")
            _fields.optional("stop_temperature_K", "Stop above temperature (K)", now, "Empty: no limit.")
        with left:
            _fields.number(
                "replicas", "Replicas", now, step=1, minimum=1, text="Runs with velocities of their own, as one batch."
            )
        with middle:
            seed(
                "motion-seed",
                "fd_motion_seed",
                moving.seed(),
                "Of velocities and noise: the same seed gives the same run.",
            )
        with right:
            _fields.optional("wall_seconds", "Stop after computing (s)", now, "Empty: no limit.")


def _relax(structures: list[Structure]) -> None:
    now = _effective(RelaxParameters, structures)
    st.caption(
        "Moves the atoms downhill along one force until no atom feels more of it, cell fixed, and says whether the other force agrees."
    )
    _driver(now, ("direct", "conservative"))
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            _fields.select(
                "optimiser", "Optimiser", {k: {"fire": "FIRE", "lbfgs": "L-BFGS"}[k] for k in OPTIMISERS}, now
            )
        with middle:
            _fields.number("fmax_eV_per_A", "Largest force at the end (eV/Å)", now, step=0.01, minimum=1e-6)
        with right:
            _fields.number("steps", "Most iterations", now, step=50, minimum=1)


def _advisor(structures: list[Structure]) -> None:
    now = _effective(AdvisorParameters, structures)
    st.caption(ADVISOR_TEXT)
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            _fields.number("steps", "Steps per driver", now, step=500, minimum=1)
            _fields.optional("timestep_fs", "Time step (fs)", now, "Empty: by the lightest element.")
        with middle:
            _fields.number("temperature_K", "Temperature (K)", now, step=10.0, minimum=0.001)
            _fields.number("equilibrate_steps", "Equilibration steps (NVT)", now, step=100, minimum=1)
        with right:
            _fields.number(
                "tolerance_meV_per_atom_per_ps", "Tolerance of the drift (meV/atom/ps)", now, step=0.1, minimum=1e-6
            )
            seed(
                "motion-seed",
                "fd_motion_seed",
                moving.seed(),
                "Of velocities and noise: the same seed gives the same run.",
            )


# ---- widgets -------------------------------------------------------------------------------------------------------


def _effective(kind: Any, structures: list[Structure]) -> dict[str, Any]:
    """Every parameter with the value it has now; what cannot be is shown as it was given, beside the error."""
    defaults = {name: f.default for name, f in kind.__dataclass_fields__.items()}
    given = dict(dynamics.PRESETS[moving.preset()].parameters(structures)) if kind is MdParameters else {}
    return {**defaults, **given, **moving.changes()}


def _driver(now: dict[str, Any], allowed: tuple[str, ...] = ("direct", "conservative", "mts")) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    key = _fields.key("driver")
    st.session_state[key] = now["driver"]
    with left:
        st.radio(
            "What drives the atoms",
            allowed,
            format_func=lambda d: DRIVER_NAMES[d],
            horizontal=True,
            key=key,
            on_change=_fields.changed("driver"),
            help=DRIVER_HELP,
        )
    if now["driver"] == "mts":
        with right:
            _fields.number("mts_stride", "Correct every M steps", now, step=1, minimum=1, maximum=64)


def _length(now: dict[str, Any], structures: list[Structure]) -> str:
    step = now["timestep_fs"] or default_timestep_fs(elements_of(structures))
    return f"{now['steps'] * step / 1000:.3g} ps"


# ---- cost and start ------------------------------------------------------------------------------------------------


def _cost_and_start(structures: list[Structure], parameters: dict[str, Any]) -> None:
    now = session.settings()
    card = services.card(now.model_id)
    spec = runs.spec_of(moving.kind(), structures, now.model, parameters, seed=moving.seed())
    cost = dynamics.estimate(card, structures, spec, dynamics.measured_pace(owner.viewer(), card, now.dtype))
    here = services.model_is_here(card)
    atoms = sum(s.n_atoms for s in structures) * int(parameters.get("replicas", 1))
    with st.container(horizontal=True, vertical_alignment="center"):
        label = (
            f"Run {moving.KINDS[moving.kind()].lower()}"
            if moving.kind() == "md"
            else f"Run the {moving.KINDS[moving.kind()]}"
        )
        if moving.kind() == "relax":
            label = "Relax"
        if not here:
            label = f"{services.download_of(card)} and run"
        st.button(
            label,
            type="primary",
            icon=":material/play_arrow:",
            key="motion-start",
            on_click=_start,
            args=(structures, parameters),
            disabled=not cost.fits,
        )
        st.markdown(f"{count(atoms, 'atom')}, {_planned(structures, parameters)}: {cost.text}.")
    if not cost.fits:
        st.warning(
            f"This needs about {cost.memory_MB:,.0f} MB at once and {cost.available_MB:,.0f} MB are free. Fewer replicas, a smaller cell or a "
            "smaller model may fit.",
            icon=":material/memory:",
        )


def _planned(structures: list[Structure], parameters: dict[str, Any]) -> str:
    if moving.kind() == "relax":
        return "until it is relaxed"
    step = parameters.get("timestep_fs") or default_timestep_fs(elements_of(structures))
    if moving.kind() == "mts-advisor":
        arms = len(AdvisorParameters(**parameters).arms())
        return f"{arms} drivers, {parameters.get('steps', 2000) * step / 1000:.3g} ps each"
    steps = parameters.get("steps", 1000) + parameters.get("equilibrate_steps", 0)
    return f"{steps:,} steps of {step:g} fs, {steps * step / 1000:.3g} ps"


def _start(structures: list[Structure], parameters: dict[str, Any]) -> None:
    try:
        run = dynamics.submit(
            owner.viewer(),
            moving.kind(),
            structures,
            session.settings().model,
            parameters,
            title=moving.title(structures),
            seed=moving.seed(),
        )
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    moving.follow(run)
