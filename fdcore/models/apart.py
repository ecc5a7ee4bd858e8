"""What models have in common that run in a worker, in an environment of their own: how one is started, and what is sent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.errors import WeightsError
from fdcore.models import envs
from fdcore.models.base import OutOfMemory, Predictor
from fdcore.models.isolated import Arrays, KilledError, Worker
from fdcore.records import ModelCard, Structure

# An answer is waited for as long as this, and this many times the estimate of what it takes.
LEAST_PATIENCE_S, PATIENCE = 300.0, 30.0
# How far the number of parameters may be from the card's: the sizes of a family lie farther apart.
SAME_SIZE = 0.05


def started(environment: str, packages: Mapping[str, str], order: Mapping[str, Any]) -> Worker:
    """The worker of `envs/<environment>`, which is built on first use, with its model loaded by `order`.

    packages : what it must hold, e.g. {"fairchem-core": "1.10.0"}.
    Raises BuildError, WorkerError, and WeightsError in the worker's words.
    """
    worker = Worker(envs.python_of(environment), envs.HERE / environment / "worker.py", order, packages)
    worker.start()
    return worker


def another_size(card: ModelCard, parameters: int) -> str:
    """In words how a file differs from the card by its number of parameters; empty where it does not."""
    same = not card.n_parameters or abs(parameters / card.n_parameters - 1) <= SAME_SIZE
    return "" if same else f"{parameters:,} parameters instead of {card.n_parameters:,}"


def refuse(worker: Worker, card: ModelCard, name: str, problems: Sequence[str]) -> None:
    """WeightsError, and the worker ended, where the file `name` is not what the card says."""
    if problems:
        worker.close()
        raise WeightsError(
            f"{name} is not {card.id}: it is {' and '.join(problems)}.", "Name the model that it is (--model)."
        )


class Apart(Predictor):
    """A model whose numbers come from a worker."""

    def __init__(self, card: ModelCard, worker: Worker, device: str, dtype: str) -> None:
        super().__init__(card, device, dtype)
        self.worker = worker

    def ask(
        self, do: str, structures: Sequence[Structure], more: Arrays | None = None, *, cost: float = 1.0, **options: Any
    ) -> Arrays:
        """One order about these structures; `cost` is its time in evaluations of them."""
        patience = max(LEAST_PATIENCE_S, PATIENCE * cost * self.seconds(structures))
        arrays = {**structure_arrays(structures), **(more or {})}
        try:
            return self.worker.ask({"do": do, **options}, arrays, patience)[1]
        except KilledError as error:
            if len(structures) == 1:
                raise
            raise OutOfMemory from error


def structure_arrays(structures: Sequence[Structure]) -> Arrays:
    """S structures of A atoms in all, one after the other: counts (S,), numbers (A,), positions (A, 3) and cells (S, 3, 3) in Å, periodic
    (S,). Atoms of a crystal within its cell, for a package may look no farther than the next ones."""
    return {
        "counts": np.array([s.n_atoms for s in structures]),
        "numbers": np.concatenate([s.numbers for s in structures]),
        "positions": np.concatenate([s.to_atoms().get_positions(wrap=s.periodic, eps=0.0) for s in structures]),
        "cells": np.stack([s.cell if s.periodic else np.zeros((3, 3)) for s in structures]),
        "periodic": np.array([s.periodic for s in structures]),
    }


def split(structures: Sequence[Structure], rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Rows of all atoms, (A, ...), as those of each structure."""
    return np.split(rows, np.cumsum([s.n_atoms for s in structures])[:-1])
