"""What a spec says beyond the defaults, as plain values and as the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fdcore import services
from fdcore.spec import Spec
from fdcore.tasks.base import Parameters


def parameters_of(kind: type[Parameters], task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those at their default: what a spec holds, so that equal questions have equal specs. Raises UsageError."""
    complete = kind.of(Spec(task, None, "", 1, given))
    changed = {f.name: getattr(complete, f.name) for f in fields(kind) if getattr(complete, f.name) != f.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def command_line(
    files: Sequence[str],
    spec: Spec,
    given: Mapping[str, Any],
    flags: Mapping[str, str],
    *more: str,
    model_flag: str = "model",
    yes_or_no: bool = False,
) -> str:
    """The command for `spec`, whose parameters are called `given` and on the command line `flags`; what is at its default is left
    out. The model is always named (`model_flag`): without it, the command line chooses one for the structures. `yes_or_no`: a switch is
    followed by one of them."""
    words = ["fdcore", spec.task, *map(services.as_argument, files)]
    model = spec.model
    if model is not None:
        words += [f"--{model_flag}", model.id]
    if model is not None and model.dtype != "float32":
        words += ["--dtype", model.dtype]
    for name, value in given.items():
        words.append(f"--{flags[name]}")
        if isinstance(value, bool):
            words += [("yes" if value else "no")] if yes_or_no else []
        else:
            words.append(
                "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
            )
    if spec.seed:
        words += ["--seed", str(spec.seed)]
    return shlex.join([*words, *more])
