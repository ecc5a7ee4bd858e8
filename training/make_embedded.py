"""The one command that regenerates an embedded model: data, training, card, reference distribution, examples.

    python training/make_embedded.py                            # what is shipped (about an hour on two cores)
    python training/make_embedded.py --id fd-orb-small-v1-s1 --seed 1 --skip data

Every step can be run alone (see the programs beside this one) and is skipped with --skip. Data is the same for every seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEPS = ("data", "train", "evaluate", "examples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--id", default="fd-orb-small-v1")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of frames")
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--skip", nargs="*", choices=STEPS, default=[])
    arguments = parser.parse_args()
    work, out = arguments.work, arguments.work / arguments.id
    commands = {
        "data": ["make_data.py", "--out", work, "--seed", 0],
        "train": ["train.py", "--data", work, "--out", out, "--epochs", arguments.epochs, "--seed", arguments.seed],
        "evaluate": ["evaluate.py", "--data", work, "--model", out / "model.safetensors", "--id", arguments.id],
        "examples": ["make_examples.py", "--minima", work / "minima.extxyz"],
    }
    for step in STEPS:
        if step in arguments.skip:
            continue
        script, *options = map(str, commands[step])
        print(f"== {step}", flush=True)
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)


if __name__ == "__main__":
    main()
