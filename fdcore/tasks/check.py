"""A model's self-check as a task: F_c and grad U_Delta against central differences, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fdcore.errors import UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Tables
from fdcore.tasks.base import Job, Parameters, Progress, Run, Savable

if TYPE_CHECKING:
    from fdcore.records import Structure


@dataclass(frozen=True)
class CheckParameters(Parameters):
    """components: how many, chosen at random, are compared."""

    components: int = 9

    def __post_init__(self) -> None:
        if (
            isinstance(self.components, bool)
            or not isinstance(self.components, int)
            or not 1 <= self.components <= 1000
        ):
            raise UsageError(f"components is {self.components!r}; a whole number from 1 to 1000 is needed.")


class CheckTask:
    name = "check"
    unit = "model"

    def check(self, spec: Spec) -> None:
        CheckParameters.of(spec)
        if spec.model is None or spec.model.dtype != "float64":
            raise UsageError("Finite differences need a model in float64.", "Name one with dtype float64.")

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {}

    def run(self, job: Job) -> Run:
        # Heavy; and a process that only lists tasks must not carry it.
        from fdcore.models.selfcheck import check_gradients

        model = job.needs_model()
        known: dict[str, Any] | None = None if job.state is None else dict(job.state.values)
        yield Progress(0 if known is None else 1, 1, "comparing forces with differences of the energy")
        if known is None:
            structure = job.structures[0] if job.structures else None
            components = CheckParameters.of(job.spec).components
            known = asdict(check_gradients(model, structure, components=components, seed=job.spec.seed))
            known |= {"device": model.device, "weights_sha256": model.weights_sha256}
        yield Progress(1, 1, "compared")
        yield Savable(lambda: Checkpoint(known, {}))
        return known
