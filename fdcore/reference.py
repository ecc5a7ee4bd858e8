"""Calculators to hold a structure against: what the truth is measured by.

Named ones are optional extras; from the command line any ASE calculator can be registered. What a page may ask for is only what is
named here: a run must not name code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore import calculators
from fdcore.errors import BuildError, ComputeError, FdcoreError, UsageError
from fdcore.gpaw import ENVIRONMENT as GPAW_ENVIRONMENT
from fdcore.gpaw import VERSION as GPAW_VERSION
from fdcore.gpaw import Gpaw, GpawSettings
from fdcore.records import Structure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What a reference says of a structure: energy (eV) and forces (N, 3) in eV/Å; `details`: what it decided for this one."""

    energy: float
    forces_reference: Array
    details: Mapping[str, Any] = field(default_factory=dict)


Answer = Callable[[Structure], Truth]


@dataclass(frozen=True)
class Reference:
    """A calculator by name. `extra`: what must be installed for it (empty: nothing of ours); `about`: what it is and what it is for.

    environment : that of its own in which it runs (fdcore/models/envs); empty for one of our packages.
    settings : the frozen record of what it is asked for, None where there is nothing to choose.
    answering : for one that is no ASE calculator: from its settings to what answers.
    """

    id: str
    title: str
    about: str
    module: str
    extra: str
    make: Callable[[], Any]
    environment: str = ""
    settings: Any = None
    answering: Callable[[Any], Answer] | None = None
    pinned: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it can be asked: installed, or with an environment that is built or can be."""
        if self.environment:
            return _envs().obstacle(self.environment) is None
        return not self.module or find_spec(self.module) is not None

    @property
    def install(self) -> str:
        """What to do where it is not here."""
        if self.environment:
            problem = _envs().obstacle(self.environment)
            return "" if problem is None else problem.hint
        return f"pip install 'force-delta[{self.extra}]'" if self.extra else ""

    @property
    def version(self) -> str:
        """Of its package; empty where that is not known."""
        if self.pinned:
            return self.pinned
        try:
            return version((self.module or self.id.partition(":")[0]).partition(".")[0])
        except PackageNotFoundError:
            return ""

    @property
    def settings_used(self) -> dict[str, Any]:
        """As plain values; empty where there is nothing to choose."""
        return {} if self.settings is None else asdict(self.settings)


def _envs() -> Any:
    # Not for everybody who asks what references there are.
    from fdcore.models import envs

    return envs


def _chgnet() -> Any:
    from chgnet.model.dynamics import CHGNetCalculator  # type: ignore[reportMissingImports]

    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")


def _tblite(method: str) -> Callable[[], Any]:
    def make() -> Any:
        from tblite.ase import TBLite  # type: ignore[reportMissingImports]

        return TBLite(method=method, verbosity=0)

    return make


def _gpaw(settings: GpawSettings) -> Answer:
    running = Gpaw(settings)
    return lambda structure: Truth(*running.label(structure))


def _no_calculator() -> Any:
    raise UsageError("This reference is no ASE calculator.", "Ask it for labels.")


REFERENCES: dict[str, Reference] = {
    r.id: r
    for r in (
        Reference(
            "chgnet",
            "CHGNet",
            "A machine-learned potential trained on PBE(+U) crystals; the teacher of the embedded model. Not for molecules.",
            "chgnet",
            "chgnet",
            _chgnet,
        ),
        Reference(
            "gfn1",
            "GFN1-xTB (tblite)",
            "Semi-empirical tight binding for molecules and, at the Gamma point only, for cells.",
            "tblite",
            "tblite",
            _tblite("GFN1-xTB"),
        ),
        Reference(
            "gfn2",
            "GFN2-xTB (tblite)",
            "Semi-empirical tight binding for molecules.",
            "tblite",
            "tblite",
            _tblite("GFN2-xTB"),
        ),
        Reference(
            "gpaw",
            "GPAW (PBE, plane waves)",
            "Density functional theory for crystals and neutral molecules: minutes for a small cell. Built on this machine on first use.",
            "",
            "",
            _no_calculator,
            environment=GPAW_ENVIRONMENT,
            settings=GpawSettings(),
            answering=_gpaw,
            pinned=GPAW_VERSION,
        ),
    )
}
# Those above: what is named on a command line is of that process alone, and no offer to anybody else.
OFFERED = tuple(REFERENCES)


def reference(name: str, settings: Mapping[str, Any] | None = None) -> Reference:
    """The reference of that name, with these settings in place of its own. UsageError where there is none, where what it needs is not
    installed, and for settings that it does not have."""
    if name not in REFERENCES:
        raise UsageError(
            f"There is no reference {name!r}.",
            f"Known are {', '.join(OFFERED)}; on the command line also MODULE:CALLABLE, something that returns an ASE calculator.",
        )
    found = _with_settings(REFERENCES[name], settings or {})
    if found.environment:
        problem = _envs().obstacle(found.environment)
        if problem is not None:
            raise UsageError(f"The reference {found.title} is not installed. {problem.message}", problem.hint)
    elif not found.is_here:
        raise UsageError(f"The reference {found.title} is not installed.", f"Install it with: {found.install}.")
    return found


def _with_settings(found: Reference, given: Mapping[str, Any]) -> Reference:
    known = found.settings_used
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(
            f"The reference {found.title} has no setting {unknown[0]!r}.",
            f"Known are {', '.join(known)}." if known else "It has none: leave it out.",
        )
    return replace(found, settings=type(found.settings)(**{**known, **given})) if given else found


def register(name: str) -> Reference:
    """Make MODULE:CALLABLE, whose call returns an ASE calculator, a reference of this process; names already known stay as they are."""
    if name in REFERENCES:
        return reference(name)
    if calculators.NAME.fullmatch(name) is None:
        return reference(name)
    make = calculators.factory(name)
    found = Reference(name, name, "Named on the command line.", "", "", make)
    # One that cannot be made now is told of when it is asked: what is to be held against it is worth having without.
    with contextlib.suppress(ComputeError):
        first = made(found)
        found = replace(found, make=_first_of(first, make))
    REFERENCES[name] = found
    return found


def _first_of(calculator: Any, make: Callable[[], Any]) -> Callable[[], Any]:
    """Gives this calculator once, since it may have been expensive to make, then others."""
    kept = [calculator]
    return lambda: kept.pop() if kept else make()


def made(reference: Reference) -> Any:
    """A calculator of this reference. ComputeError where it cannot be made, UsageError where what is made is no calculator."""
    return calculators.made(
        reference.make, f"The reference {reference.title}", "Mend it and compare again with fdcore validate."
    )


def truths(reference: Reference, structures: Sequence[Structure]) -> Iterator[Truth | FdcoreError]:
    """A Truth or an FdcoreError per structure, in order. Raises as `made`, and BuildError."""
    answer: Answer | None = None
    for structure in structures:
        # Some calculators keep more of a structure than they should: where one has failed, the next gets a fresh one.
        answer = _answering(reference) if answer is None else answer
        try:
            yield answer(structure)
        except BuildError:
            # Nothing that another structure would change.
            raise
        except FdcoreError as error:
            answer = None
            yield error


def _answering(reference: Reference) -> Answer:
    if reference.answering is not None:
        return reference.answering(reference.settings)
    calculator = made(reference)

    def answer(structure: Structure) -> Truth:
        asked = calculators.Asked(calculator, reference.title, structure)
        return Truth(asked.energy(structure.positions), asked.forces_driving(structure.positions))

    return answer
