"""Of which parts each figure and table consists: runs of other tasks, on given structures or on what an earlier part left.

Parts are named by what they do, so that targets that need the same run share it. Everything here is a pure function of what was asked; the
numbers of the full protocol are those of the paper's appendix A.1.4 where it gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fdcore.dynamics.settings import between, default_timestep_fs, whole
from fdcore.errors import UsageError
from fdcore.models import card
from fdcore.reproduce.settings import Reproduction

if TYPE_CHECKING:
    from fdcore.records import Structure


# What no protocol needs more of; each task has bounds of its own besides.
MOST, LONGEST_PS = 100_000, 100_000.0


@dataclass(frozen=True)
class Effort:
    """How much of the protocol is done. Lengths in ps and fs; K; eV/Å.

    relax_fmax, relax_steps : every simulation begins with a relaxation along its own force. equilibrate_ps : then NVT under the same
        force, Nosé-Hoover, no longer than what follows.
    nve_ps : of figures 1 and 5; water_ps where the system has more than 200 atoms. nvt_ps : of the fluctuation of the temperature, after at least 1 ps of the same.
    drift_ps, drift_seeds, drift_frames : of the many runs of figures 3, 6, 7, and how many frames of each are labelled.
    climbs, climb_steps, climbed : starts and steps of an attack, and how many of the structures on the way are labelled.
    sigmas, copies : displaced copies of table 1 (Å; 0 is the structure itself).
    timestep_heavy_fs : where there is no hydrogen. loop : parameters of the task `generations`.
    """

    relax_fmax: float = 0.05
    relax_steps: int = 500
    equilibrate_ps: float = 5.0
    nve_ps: float = 10.0
    water_ps: float = 10.0
    nvt_ps: float = 10.0
    drift_ps: float = 10.0
    drift_seeds: int = 3
    drift_frames: int = 20
    climbs: int = 6
    climb_steps: int = 50
    climbed: int = 50
    sigmas: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1)
    copies: int = 2
    timestep_heavy_fs: float = 0.5
    loop: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("drift_seeds", "drift_frames", "climbs", "climb_steps", "climbed", "copies"):
            whole(name, getattr(self, name), 1, MOST)
        whole("relax_steps", self.relax_steps, 0, MOST)
        for name in ("nve_ps", "water_ps", "nvt_ps", "drift_ps"):
            between(name, getattr(self, name), 0.001, LONGEST_PS, "ps")
        between("equilibrate_ps", self.equilibrate_ps, 0.0, LONGEST_PS, "ps")
        between("relax_fmax", self.relax_fmax, 1e-6, 10.0, "eV/Å")
        between("timestep_heavy_fs", self.timestep_heavy_fs, 0.001, 100.0, "fs")
        if isinstance(self.sigmas, str) or not isinstance(self.sigmas, Sequence) or not self.sigmas:
            raise UsageError(f"sigmas is {self.sigmas!r}; a list of lengths in Å is needed, such as [0.0, 0.05].")
        for sigma in self.sigmas:
            between("one of sigmas", sigma, 0.0, 10.0, "Å")
        object.__setattr__(self, "sigmas", tuple(self.sigmas))


EFFORTS: dict[str, Effort] = {
    # The appendix: 0.5 fs, 10 ps, relaxed to 0.05 eV/Å, 100 adversarial structures.
    "paper": Effort(loop={"count": 100, "picoseconds": 10.0, "timestep_fs": 0.5, "seeds": 5}),
    # A few minutes: enough to see in which direction each goes.
    "quick": Effort(
        relax_steps=60,
        equilibrate_ps=0.1,
        nve_ps=0.5,
        water_ps=0.03,
        nvt_ps=1.0,
        drift_ps=0.5,
        drift_seeds=1,
        drift_frames=6,
        climbs=6,
        climb_steps=14,
        climbed=30,
        sigmas=(0.0, 0.03, 0.08),
        copies=3,
        timestep_heavy_fs=2.0,
        loop={
            "count": 16,
            "attack_steps": 20,
            "starts": 6,
            "epochs": 8,
            "patience": 0,
            "picoseconds": 0.6,
            "timestep_fs": 2.0,
            "seeds": 3,
            "sigmas_A": [0.05],
            "per_sigma": 4,
            "relax_steps": 50,
        },
    ),
}

CRYSTALS = ("fd-orb-small-v1", "fd-orb-small-v1-s1", "fd-orb-small-v1-s2", "fd-orb-small-v1-s3")
BOTH = ("fd-orb-small-v1", "fd-orb-molecules-v1")
ORB = ("orb-v3-direct-inf-mpa", "orb-v3-direct-20-mpa", "orb-d3-xs-v2", "orb-d3-sm-v2", "orb-d3-v2")
EQUIFORMER = (
    "eqV2_31M_mp",
    "eqV2_dens_31M_mp",
    "eqV2_dens_86M_mp",
    "eqV2_dens_153M_mp",
    "eqV2_31M_omat_mp_salex",
    "eqV2_86M_omat_mp_salex",
    "eqV2_153M_omat_mp_salex",
)
INF, CAPPED, SMALL, EQV2 = "orb-v3-direct-inf-mpa", "orb-v3-direct-20-mpa", "orb-d3-xs-v2", "eqV2_dens_31M_mp"
# Which models each target asks, where nobody names others.
MODELS: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {
        "fig1": (INF,),
        "fig2": (CAPPED,),
        "fig3": (INF, CAPPED),
        "fig4": (INF,),
        "fig5": (INF, CAPPED),
        "fig6": (SMALL,),
        "fig7": (EQV2,),
        "fig8": (INF, SMALL),
        "nvt": (INF,),
        "table1": ORB + EQUIFORMER,
        "table2": (INF, CAPPED, SMALL, EQV2),
    },
    "quick": {
        "fig1": ("fd-orb-molecules-v1",),
        "fig2": CRYSTALS[:1],
        "fig3": CRYSTALS[:2],
        "fig4": CRYSTALS[:1],
        "fig5": CRYSTALS[:1],
        "fig6": CRYSTALS[2:3],
        "fig7": CRYSTALS[3:],
        "fig8": CRYSTALS[:1],
        "nvt": CRYSTALS[:1],
        "table1": CRYSTALS,
        "table2": BOTH,
    },
}
TEN = ("Mg17Al12", "LGPS", "ice_XI", "MOF-5", "CaPd_NH2", "paracetamol", "stachyose", "Ac-Ala3-NHMe", "DHA", "aspirin")
MOVING = ("Mg17Al12", "LGPS", "ice_XI")
# Which of the shipped examples each target looks at, where nobody brings structures.
SYSTEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {
        "fig1": ("water_box",),
        "fig2": ("ice_XI", "LGPS", "Mg17Al12"),
        "fig3": (*MOVING, "water_box"),
        "fig4": ("ice_XI",),
        "fig5": ("ice_XI", "Mg17Al12"),
        "fig6": (*MOVING, "water_box"),
        "fig7": (*MOVING, "water_box"),
        "fig8": ("ice_XI", "LGPS"),
        "nvt": ("water_box",),
        "table1": TEN,
        "table2": (*TEN, "water_box"),
    },
    "quick": {
        "fig1": ("water_box",),
        "fig2": ("ice_XI", "LGPS", "Mg17Al12"),
        "fig3": (*MOVING, "NaCl"),
        "fig4": ("Mg17Al12",),
        "fig5": ("ice_XI", "Mg17Al12"),
        "fig6": (*MOVING, "NaCl"),
        "fig7": (*MOVING, "NaCl"),
        "fig8": ("Mg17Al12",),
        "nvt": ("Mg17Al12",),
        "table1": (*MOVING, "NaCl", "MgO_vacancy", "Li3PS4_beta"),
        "table2": (*MOVING, "paracetamol", "aspirin"),
    },
}
# Temperatures (K) of simulations: 300, and what the paper says of ice.
TEMPERATURE_K, TEMPERATURES_K = 300.0, {"ice_XI": 200.0}
# The thermostat of equilibrations, and of the fluctuation of the temperature (fs).
STIFF_FS, LOOSE_FS = 10.0, 200.0
LARGE_ATOMS = 200


@dataclass(frozen=True)
class Source:
    """What a part works on. kind: "given", structures by their places; "displaced", copies of them; "climbed", structures on the way of the
    attack `part`; "frames", those of the simulation `part`; "labelled", the structures of the part `part` that have labels."""

    kind: str
    places: tuple[int, ...] = ()
    part: str = ""


@dataclass(frozen=True)
class Part:
    """A run of `task` with `model` (none: "") on what `source` gives; `weight`: its share of the work, roughly, in seconds on one core."""

    name: str
    task: str
    model: str
    parameters: Mapping[str, Any]
    source: Source
    weight: float


@dataclass(frozen=True)
class Asked:
    """The parts of a reproduction in an order in which each finds what it needs; `of`: the names of those of each target, and why a target
    has nothing to show for a model or a system."""

    parts: tuple[Part, ...]
    of: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]


def effort_of(asked: Reproduction) -> Effort:
    """The preset's with what was changed. UsageError for what it does not have."""
    known = {f.name for f in fields(Effort)}
    unknown = sorted(set(asked.effort) - known)
    if unknown:
        raise UsageError(f"There is no setting {unknown[0]!r}.", f"Known are {', '.join(sorted(known))}.")
    base = EFFORTS[asked.preset]
    changed = dict(asked.effort)
    if "loop" in changed:
        if not isinstance(changed["loop"], Mapping):
            raise UsageError(f'loop is {changed["loop"]!r}; names and values are needed, such as {{"epochs": 4}}.')
        changed["loop"] = {**(base.loop or {}), **changed["loop"]}
    return replace(base, **changed)


def fitting(models: Iterable[str], structure: Structure) -> list[str]:
    """Those trained on all elements of a structure, first those that have seen structures of its kind."""
    able = [c for c in map(card, models) if not c.covers(structure.numbers)]
    return [c.id for c in sorted(able, key=lambda c: structure.kind not in c.trained_on)]


def parts(asked: Reproduction, structures: Sequence[Structure]) -> Asked:
    """Everything that is to be done."""
    made = _Maker(asked, structures)
    for target in asked.targets:
        made.target(target)
    return Asked(
        tuple(made.parts.values()),
        {t: tuple(dict.fromkeys(names)) for t, names in made.of.items()},
        {t: tuple(dict.fromkeys(said)) for t, said in made.missing.items()},
    )


def name_of(*words: str) -> str:
    """A folder's name."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", "-".join(words)).strip("-.")


class _Maker:
    def __init__(self, asked: Reproduction, structures: Sequence[Structure]) -> None:
        self.asked, self.structures, self.effort = asked, structures, effort_of(asked)
        self.parts: dict[str, Part] = {}
        self.of: dict[str, list[str]] = {t: [] for t in asked.targets}
        self.missing: dict[str, list[str]] = {t: [] for t in asked.targets}
        self._target = ""

    def target(self, target: str) -> None:
        self._target = target
        each: dict[str, Callable[[str, int], None]] = {
            "fig1": self._nve,
            "fig5": self._nve,
            "nvt": self._nvt,
            "fig2": self._attacked,
            "fig3": self._drift,
            "fig6": self._drift,
            "fig7": self._drift,
            "fig4": self._loop,
            "fig8": self._loop,
            "table2": self._attacked,
        }
        models = self.asked.models or MODELS[self.asked.preset][target]
        if target == "table1":
            self._ensemble(models)
            return
        for place in self._places():
            able = fitting(models, self.structures[place])
            if not able:
                self.missing[target].append(
                    f"No model of {', '.join(models)} was trained on {self.asked.names[place]}."
                )
            for model in able if self._all_models() else able[:1]:
                each[target](model, place)
        if target == "table2":
            # The second way to leave equilibrium: runaway simulations.
            moving = (
                self._places()
                if self.asked.own
                else [p for p in self._places() if self.asked.names[p] in (*MOVING, "water_box")]
            )
            for place in moving:
                for model in fitting(models, self.structures[place])[:1]:
                    self._drift(model, place)

    def _all_models(self) -> bool:
        """Whether every fitting model is looked at, or the one that fits best."""
        return self._target in ("fig3", "fig5", "fig6", "fig7") or (
            self.asked.preset == "paper" and self._target in ("table2", "fig8")
        )

    def _places(self) -> list[int]:
        names = self.asked.names
        if self.asked.own:
            return list(range(len(names)))
        return [names.index(n) for n in SYSTEMS[self.asked.preset][self._target] if n in names]

    def _add(self, part: Part) -> str:
        self.parts.setdefault(part.name, part)
        self.of[self._target].append(part.name)
        return part.name

    # ---- simulations -----------------------------------------------------------------------------------------------

    def _motion(self, place: int, driver: str, picoseconds: float) -> dict[str, Any]:
        """Parameters of a simulation: relaxed, equilibrated, then NVE."""
        e, structure = self.effort, self.structures[place]
        step = default_timestep_fs(structure.numbers)
        step = e.timestep_heavy_fs if step > 0.5 else 0.5
        return {
            "driver": driver,
            "timestep_fs": step,
            "steps": max(10, round(1000 * picoseconds / step)),
            "temperature_K": TEMPERATURES_K.get(self.asked.names[place], TEMPERATURE_K),
            "relax_fmax_eV_per_A": e.relax_fmax if e.relax_steps else None,
            "relax_steps": max(1, e.relax_steps),
            "equilibrate_steps": round(1000 * min(e.equilibrate_ps, picoseconds) / step),
            "thermostat_time_fs": max(STIFF_FS, step),
        }

    def _seconds(self, place: int) -> float:
        """Of F_nc of one structure: below some size all take the same."""
        return max(SMALL_ATOMS, self.structures[place].n_atoms) * SECONDS_PER_ATOM

    def _simulated(self, kind: str, model: str, place: int, parameters: Mapping[str, Any]) -> str:
        name = name_of(kind, model, self.asked.names[place], parameters["driver"])
        steps = parameters["steps"] + parameters["equilibrate_steps"] + parameters["relax_steps"]
        dear = 2.2 if parameters["driver"] == "conservative" else 1.0
        weight = steps * dear * parameters.get("replicas", 1) * self._seconds(place)
        return self._add(Part(name, "md", model, parameters, Source("given", (place,)), weight))

    def _nve(self, model: str, place: int) -> None:
        large = self.structures[place].n_atoms > LARGE_ATOMS
        length = self.effort.water_ps if large else self.effort.nve_ps
        for driver in ("direct", "conservative"):
            self._simulated("nve", model, place, self._motion(place, driver, length))

    def _nvt(self, model: str, place: int) -> None:
        for driver in ("direct", "conservative"):
            parameters = self._motion(place, driver, self.effort.nvt_ps)
            # Several times of the thermostat, which is the same in both: what is left of the beginning is no fluctuation.
            before = max(parameters["equilibrate_steps"], round(5 * LOOSE_FS / parameters["timestep_fs"]))
            loose = {"ensemble": "nvt", "thermostat_time_fs": LOOSE_FS, "equilibrate_steps": before}
            self._simulated("nvt", model, place, {**parameters, **loose})

    def _drift(self, model: str, place: int) -> None:
        e = self.effort
        parameters = self._motion(
            place, "direct", e.water_ps if self.structures[place].n_atoms > LARGE_ATOMS else e.drift_ps
        )
        steps = parameters["steps"]
        parameters |= {"replicas": e.drift_seeds, "frame_every": max(1, steps // max(1, e.drift_frames))}
        moved = self._simulated("drift", model, place, parameters)
        self._compared(
            f"{moved}-errors", model, place, Source("frames", (place,), moved), e.drift_frames * e.drift_seeds
        )

    # ---- errors ----------------------------------------------------------------------------------------------------

    def _compared(self, name: str, model: str, place: int, source: Source, count: int) -> None:
        reference = self.asked.references[place]
        if not reference:
            self.missing[self._target].append(f"Nobody labels {self.asked.names[place]}: its errors are missing.")
            return
        weight = _label_seconds(count, self.structures[place].n_atoms)
        self._add(Part(name, "validate", model, {"reference": reference}, source, weight))

    def _attacked(self, model: str, place: int) -> None:
        e = self.effort
        name = name_of("attack", model, self.asked.names[place])
        parameters = {
            "steps": e.climb_steps,
            "starts": e.climbs,
            "count": e.climbed,
            "rise": 0.0,
            "spread": True,
            "apart": 0.0,
            "relax_fmax_eV_per_A": e.relax_fmax if e.relax_steps else None,
            "relax_steps": max(1, e.relax_steps),
        }
        weight = (5 * e.climbs * e.climb_steps + e.relax_steps) * self._seconds(place)
        self._add(Part(name, "attack", model, parameters, Source("given", (place,)), weight))
        self._compared(f"{name}-errors", model, place, Source("climbed", (place,), name), e.climbed)

    def _ensemble(self, models: Sequence[str]) -> None:
        """Families apart: what was trained to reproduce another method is no member of the same ensemble, and nor are models of different
        makers; each on the structures that all its members know."""
        families: dict[str, list[str]] = {}
        for one in map(card, models):
            families.setdefault(one.family, []).append(one.id)
        for family, members in families.items():
            if len(members) < 2:
                self.missing["table1"].append(f"{family} has only {members[0]} here: no ensemble.")
                continue
            able = [p for p in self._places() if len(fitting(members, self.structures[p])) == len(members)]
            for p in sorted(set(self._places()) - set(able)):
                self.missing["table1"].append(f"Not all of {', '.join(members)} were trained on {self.asked.names[p]}.")
            labelled = []
            for reference in dict.fromkeys(self.asked.references[p] for p in able):
                places = tuple(p for p in able if self.asked.references[p] == reference)
                if not reference:
                    names = ", ".join(self.asked.names[p] for p in places)
                    self.missing["table1"].append(f"Nobody labels {names}: errors are missing.")
                    continue
                copies = len(self.effort.sigmas) * self.effort.copies
                atoms = sum(self.structures[p].n_atoms for p in places) / len(places)
                source = Source("displaced", places)
                name = name_of("set", family, reference)
                labelled.append(
                    self._add(
                        Part(
                            name,
                            "label",
                            "",
                            {"reference": reference},
                            source,
                            _label_seconds(copies * len(places), atoms),
                        )
                    )
                )
            for name in labelled:
                source = Source("labelled", (), name)
                weight = self.parts[name].weight * 0.3
                mixed = {"members": list(members), "mix_methods": True}
                self._add(Part(f"{name}-ensemble", "ensemble", members[0], mixed, source, weight))
                for member in members:
                    if card(member).kind == "direct":
                        self._add(
                            Part(name_of(name, member), "validate", member, {"reference": "labels"}, source, weight)
                        )

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _loop(self, model: str, place: int) -> None:
        reference = self.asked.references[place]
        if not reference:
            self.missing[self._target].append(f"Nobody labels {self.asked.names[place]}: nothing can be learnt.")
            return
        parameters = {**(self.effort.loop or {}), "reference": reference}
        name = name_of("loop", model, self.asked.names[place])
        self._add(
            Part(name, "generations", model, parameters, Source("given", (place,)), LOOP_SECONDS[self.asked.preset])
        )


# Rough, on one core, with the embedded models and their teachers: they only share out the progress.
SECONDS_PER_ATOM, LABEL_SECONDS_PER_ATOM, SMALL_ATOMS, STARTING_SECONDS = 4e-4, 4e-3, 24, 3.0
LOOP_SECONDS = {"quick": 90.0, "paper": 3000.0}


def _label_seconds(count: int, n_atoms: float) -> float:
    return STARTING_SECONDS + count * max(SMALL_ATOMS / 2, n_atoms) * LABEL_SECONDS_PER_ATOM
