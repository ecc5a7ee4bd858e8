"""Which figures and tables are reproduced, and with how much effort: frozen records without arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fdcore.errors import UsageError
from fdcore.spec import require_name

Preset = Literal["quick", "paper"]
PRESETS: tuple[Preset, ...] = ("quick", "paper")


@dataclass(frozen=True)
class Target:
    """One figure or table of the paper; `where` it stands there, `title` says what is seen."""

    id: str
    where: str
    title: str


TARGETS: dict[str, Target] = {
    t.id: t
    for t in (
        Target("fig1", "Figure 1", "Energy during NVE of the water box, driven by F_nc and by F_c"),
        Target("fig2", "Figure 2", "U_Delta against both errors under attack"),
        Target("fig3", "Figure 3", "Drift of NVE runs against the mean eps_nc and the mean U_Delta on the way"),
        Target("fig4", "Figure 4", "Drift after each step of fine-tuning"),
        Target("fig5", "Figure 5", "Energy during NVE of ice and Mg17Al12, driven by F_nc and by F_c"),
        Target("fig6", "Figure 6", "As Figure 3, for a less regularised model"),
        Target("fig7", "Figure 7", "As Figure 3, for a model of another kind"),
        Target("fig8", "Figure 8", "Energy during NVE after each step of fine-tuning"),
        Target("nvt", "Appendix A.2.1", "Fluctuation of the temperature in NVT, driven by F_nc and by F_c"),
        Target("table1", "Table 1", "U_Delta against the variance of an ensemble as predictors of eps_nc"),
        Target("table2", "Table 2", "Rank correlations of U_Delta with both errors, per system"),
    )
}
# What `all` stands for.
ALL = "all"
# Those that need a reference to say anything.
NEED_REFERENCE = ("fig2", "fig3", "fig4", "fig6", "fig7", "fig8", "table1", "table2")


def targets_of(asked: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of the paper, each once. UsageError for what the paper does not have."""
    unknown = [name for name in asked if name not in TARGETS and name != ALL]
    if unknown or not asked:
        raise UsageError(
            f"There is no {unknown[0]!r} to reproduce." if unknown else "Nothing was named to reproduce.",
            f"Known are {', '.join(TARGETS)} and {ALL}.",
        )
    return tuple(name for name in TARGETS if ALL in asked or name in asked)


@dataclass(frozen=True)
class Reproduction:
    """targets : of `TARGETS`. preset : how much of the protocol; "paper" is all of it.
    names : of the structures, in their order: what the systems are called. own : they are the user's and take part in every target; else
        each target has its own of the shipped examples.
    models : in place of the preset's; () for those. references : of each structure, who labels it (`fdcore.reference`); "" for nobody,
        so that errors are missing.
    effort : settings of `protocols.Effort` that differ from the preset's.
    """

    targets: tuple[str, ...] = ()
    preset: Preset = "quick"
    names: tuple[str, ...] = ()
    own: bool = False
    models: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    effort: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("targets", "names", "models", "references"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise UsageError(f"{name} is {value!r}; a list of names is needed.")
            if not all(isinstance(v, str) for v in value):
                raise UsageError(f"{name} is {value!r}; a list of names is needed.")
            object.__setattr__(self, name, tuple(value))
        if targets_of(self.targets) != self.targets:
            raise UsageError(f"The targets {self.targets!r} are not in the order of the paper, or named twice.")
        if self.preset not in PRESETS:
            raise UsageError(f"There is no preset {self.preset!r}.", f"Known are {' and '.join(PRESETS)}.")
        if not isinstance(self.own, bool):
            raise UsageError(f"own is {self.own!r}; true or false is needed.")
        for model in self.models:
            require_name(model)
        if len(self.references) != len(self.names):
            raise UsageError(f"{len(self.references)} references are named for {len(self.names)} structures.")
        if len(set(self.names)) < len(self.names):
            raise UsageError("Two structures have the same name.", "Rename one of the files.")
        if not isinstance(self.effort, Mapping):
            raise UsageError(f"effort is {self.effort!r}; names and values are needed.")
