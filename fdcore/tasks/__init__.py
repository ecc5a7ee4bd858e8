"""All kinds of work: what a run can be. A new one is one file and one row here; listing them imports none."""

from __future__ import annotations

from importlib import import_module

from fdcore.errors import UsageError
from fdcore.tasks.base import Task

TASKS: dict[str, str] = {
    "score": "fdcore.tasks.score:ScoreTask",
    "md": "fdcore.tasks.md:MdTask",
    "relax": "fdcore.tasks.relax:RelaxTask",
    "mts-advisor": "fdcore.tasks.mts_advisor:MtsAdvisorTask",
    "attack": "fdcore.tasks.attack:AttackTask",
    "validate": "fdcore.tasks.validate:ValidateTask",
    "label": "fdcore.tasks.label:LabelTask",
    "finetune": "fdcore.tasks.finetune:FinetuneTask",
    "stability": "fdcore.tasks.stability:StabilityTask",
    "generations": "fdcore.tasks.generations:GenerationsTask",
    "reproduce": "fdcore.tasks.reproduce:ReproduceTask",
    "screen": "fdcore.tasks.screen:ScreenTask",
    "ensemble": "fdcore.tasks.ensemble:EnsembleTask",
    "report": "fdcore.tasks.report:ReportTask",
    "check": "fdcore.tasks.check:CheckTask",
    "drill": "fdcore.tasks.drill:DrillTask",
}


def task(name: str) -> Task:
    """The task of that name; UsageError where there is none."""
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r}.", f"Known are {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)()
