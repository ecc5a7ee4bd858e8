"""A rehearsal of the engine without a model: a seeded random walk that records every step and can be saved at any of them.

`fdcore doctor --drill` runs it to show that runs start, record, stop and go on on this machine; tests and
`benchmarks/jobs.py` interrupt it. On request it behaves badly at a given step, as models and machines do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fdcore.errors import ComputeError, UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Parameters, Progress, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.records import Structure

Trouble = Literal["", "hang", "hold", "die", "memory", "error"]
TROUBLES: tuple[Trouble, ...] = ("", "hang", "hold", "die", "memory", "error")


@dataclass(frozen=True)
class DrillParameters(Parameters):
    """steps of step_seconds each; at step `trouble_at` it hangs (`hang`: sleeping, `hold`: inside one call that never lets
    another thread run), kills itself (`die`), runs out of memory (`memory`) or fails (`error`)."""

    steps: int = 20
    step_seconds: float = 0.02
    trouble: Trouble = ""
    trouble_at: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1_000_000 or not 0 <= self.step_seconds <= 60:
            raise UsageError("A drill has 1 to 1,000,000 steps of at most 60 s each.")
        if self.trouble not in TROUBLES:
            raise UsageError(f"There is no trouble {self.trouble!r}.", f"Known are {', '.join(TROUBLES[1:])}.")


class DrillTask:
    name = "drill"
    unit = "step"

    def check(self, spec: Spec) -> None:
        DrillParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {"steps": {"step": Column("<i8"), "position": Column("<f8", (3,))}}

    def run(self, job: Job) -> Run:
        parameters = DrillParameters.of(job.spec)
        generator = np.random.Generator(np.random.PCG64(job.spec.seed))
        position, first = np.zeros(3), 0
        if job.state is not None:
            first = int(job.state.values["step"])
            position = np.array(job.state.arrays["position"])
            generator.bit_generator.state = job.state.values["generator"]
        yield Progress(first, parameters.steps, f"step {first} of {parameters.steps}")
        for step in range(first, parameters.steps):
            if parameters.trouble and step == parameters.trouble_at:
                _misbehave(parameters.trouble)
            time.sleep(parameters.step_seconds)
            position = position + generator.standard_normal(3)
            yield Rows("steps", {"step": [step], "position": position[None]})
            yield Progress(step + 1, parameters.steps, f"step {step + 1} of {parameters.steps}")
            yield Savable(lambda done=step + 1, at=position: _state(done, at, generator))
        return {"steps": parameters.steps, "end": position.tolist()}


def _state(step: int, position: np.ndarray, generator: np.random.Generator) -> Checkpoint:
    values: dict[str, Any] = {"step": step, "generator": generator.bit_generator.state}
    return Checkpoint(values, {"position": position})


def _misbehave(trouble: Trouble) -> None:
    if trouble == "hang":
        time.sleep(1e6)
    elif trouble == "hold":
        # One C call that keeps the interpreter's lock, as a misbehaving extension does.
        sum(range(10**15))
    elif trouble == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "memory":
        raise MemoryError("a rehearsed shortage")
    elif trouble == "error":
        raise ComputeError("The drill failed as it was asked to.", "Ask for a drill without trouble.")
