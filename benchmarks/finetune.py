"""What a step of fine-tuning costs: both forces against F_nc alone, batch of 8 frames of the embedded model's domain or of a full Orb v3.

    python benchmarks/finetune.py [--json PATH] [--rounds N] [--device cpu] [--model ID --weights PATH]

A step is all of it: the batch put together from kept graphs, the losses, their gradient, clipping, AdamW and the average of the weights.
Every round takes one step of each in turn; the ratio is the median over rounds of the ratio within the round. On a CPU the time is that of
the processor, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

from measuring import machine, ratio_text, spread

from fdcore import data, services
from fdcore.finetune.settings import Finetuning
from fdcore.finetune.training import Training
from fdcore.tasks.finetune import examples_of

# To reach, from the project's plan.
TARGET = ("<=", 2.3)
BATCH = 8


def training(model: Any, train: str) -> Training:
    structures = services.read_paths([str(data.path("labels", "fd-orb-small-v1.extxyz"))]).structures
    examples = list(examples_of(structures).values())[: 4 * BATCH]
    settings = Finetuning(train=train, batch=BATCH, held_out=0.0, epochs=10_000)  # type: ignore[arg-type]
    return Training(model, examples, settings, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=None)
    parser.add_argument("--weights", default=None)
    arguments = parser.parse_args()
    model = services.load_model(arguments.model, arguments.device, weights=arguments.weights)
    both = {train: training(model, train) for train in ("direct", "both")}
    batches = {train: list(t.trained_on) for train, t in both.items()}
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"direct": [], "both": []}
    for round_ in range(-3, arguments.rounds):
        first = (round_ % 4) * BATCH
        for train, one in both.items():
            numbers = batches[train][first : first + BATCH]
            started = clock()
            one.one_step(numbers)
            taken = clock() - started
            # The first rounds build graphs.
            if round_ >= 0:
                seconds[train].append(taken)
    ratio = spread(seconds["both"], seconds["direct"])
    print(f"both / F_nc only, one step of {BATCH} structures: {ratio_text(ratio, TARGET)}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(arguments.device), "ratio": ratio, "seconds": seconds}, indent=1)
        )


if __name__ == "__main__":
    main()
