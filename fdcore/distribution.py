"""The shipped reference distribution of U_Delta for a model: how large it is on structures like those it was trained on."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from fdcore import data
from fdcore.models import finetuned


@dataclass(frozen=True)
class Band:
    """Structures displaced by a random sigma (Å): medians of U_Delta and of both errors against the teacher, eV/Å."""

    sigma_low_A: float
    sigma_high_A: float
    force_delta: float
    error_direct: float
    error_conservative: float


@dataclass(frozen=True)
class ReferenceDistribution:
    """`values`: sorted U_Delta (eV/Å) of held-out structures inside the training distribution. `bands`: the ladder of
    growing distortion. `closest_A`: smallest distance per element pair ("Cl-Na", symbols sorted) in the training data;
    a pair that is missing never came closer than the cutoff. `largest_force`: largest force on an atom in training, eV/Å."""

    model_id: str
    values: tuple[float, ...]
    bands: tuple[Band, ...]
    description: str
    closest_A: Mapping[str, float] = field(default_factory=dict)
    largest_force: float | None = None

    def percentile(self, force_delta: float) -> float:
        """Share of the reference values below `force_delta` (ties count half), 0-100."""
        below = bisect_left(self.values, force_delta)
        equal = bisect_right(self.values, force_delta) - below
        return 100.0 * (below + 0.5 * equal) / len(self.values)

    def quantile(self, share: float) -> float:
        """The U_Delta (eV/Å) that a share (0-1) of the reference values does not exceed (nearest rank)."""
        rank = min(len(self.values) - 1, max(0, round(share * len(self.values)) - 1))
        return self.values[rank]


@cache
def reference_distribution(model_id: str) -> ReferenceDistribution | None:
    """The distribution that came with this model, or None: the verdict then says "unknown" rather than guess."""
    file = data.path("models", f"{model_id}.distribution.json")
    if model_id.startswith(finetuned.PREFIX):
        file = finetuned.folder_of(model_id) / finetuned.DISTRIBUTION
    return read_distribution(model_id, file.read_text()) if file.is_file() else None


def read_distribution(model_id: str, text: str) -> ReferenceDistribution:
    """From the JSON that `training/evaluate.py` writes (schema in training/README.md)."""
    content = json.loads(text)
    bands = tuple(
        Band(
            sigma_low_A=b["sigma_low_A"],
            sigma_high_A=b["sigma_high_A"],
            force_delta=b["force_delta_median_eV_per_A"],
            error_direct=b["error_direct_median_eV_per_A"],
            error_conservative=b["error_conservative_median_eV_per_A"],
        )
        for b in content["bands"]
    )
    return ReferenceDistribution(
        model_id=model_id,
        values=tuple(sorted(content["values_eV_per_A"])),
        bands=bands,
        description=content["description"],
        closest_A=content["closest_A"],
        largest_force=content["largest_force_eV_per_A"],
    )
