"""What was asked for, completely: a frozen record that travels as JSON and is named by the hash of its content.

Nothing heavy is imported here: the job supervisor reads specs without knowing any model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from fdcore.errors import UsageError

FORMAT = 1
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class ModelChoice:
    """Which model, in which precision, where. `weights_sha256` is None until the weights are on the machine."""

    id: str
    dtype: str = "float32"
    device: str = "auto"
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        require_name(self.id)


def require_name(model_id: str) -> None:
    """UsageError for what is not a model's name: a run names models, never files, whoever describes it. There is no field for a checkpoint
    either; those that are unpickled are named by --weights or lie in the operator's folder."""
    if not isinstance(model_id, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}", model_id) is None:
        raise UsageError(f"{model_id!r} is not the name of a model.", "`fdcore models` lists them.")


def require_seed(seed: object) -> None:
    """UsageError for what no generator of random numbers takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UsageError(f"The seed is {seed!r}; a whole number from 0 to 2^63 - 1 is needed.")


@dataclass(frozen=True)
class Spec:
    """One run of one task. Two runs with equal specs do the same work.

    inputs_sha256 : hash over the ordered content ids of the structures that the task works on.
    parameters : what the task's own frozen parameter record says, as plain JSON.
    versions : of the packages that shape the numbers, at submission.
    """

    task: str
    model: ModelChoice | None
    inputs_sha256: str
    n_structures: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.model is not None and self.model.dtype not in DTYPES:
            raise UsageError(f"There is no precision {self.model.dtype!r}.", f"Use {' or '.join(DTYPES)}.")
        require_seed(self.seed)
        for name, value in self.parameters.items():
            try:
                canonical(value)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"The parameter {name} of {self.task} is {value!r}, which cannot be used.",
                    "Use plain finite numbers, texts and lists.",
                ) from error
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))

    def to_json(self) -> str:
        """Canonical: sorted keys, no spaces, no NaN; equal specs give equal text."""
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        document["model"] = None if self.model is None else asdict(self.model)
        document["parameters"], document["versions"] = dict(self.parameters), dict(self.versions)
        return canonical(document)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Raises UsageError for anything that `to_json` would not have written."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise UsageError(
                    f"The run was described by another version of the program (format {document['format']}).",
                    "Submit it again.",
                )
            model = document.pop("model")
            return cls(model=None if model is None else ModelChoice(**model), **document)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError("The description of the run cannot be read.", "Submit it again.") from error

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def work_sha256(self) -> str:
        """As `sha256`, without versions: what makes a kept result the answer to a new question."""
        document = json.loads(self.to_json())
        document.pop("versions")
        return hashlib.sha256(canonical(document).encode()).hexdigest()


def canonical(document: Any) -> str:
    """JSON text that is the same for equal content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
