"""The one command that regenerates an embedded model: data, training, card, reference distribution.

    python training/make_embedded.py                            # the crystals (about an hour on two cores)
    python training/make_embedded.py --id fd-orb-molecules-v1   # the molecules
    python training/make_embedded.py --id fd-orb-small-v1-s1 --member-of fd-orb-small-v1 --seed 1 --epochs 30 --skip data

Every step can be run alone (see the programs beside this one) and is skipped with --skip. Data is the same for every seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEPS = ("data", "train", "evaluate")
# The program that makes the data of a model, and the folder under --work that holds it.
DATA = {"fd-orb-small-v1": ("make_data.py", "."), "fd-orb-molecules-v1": ("make_molecule_data.py", "molecules")}
WEIGHTS = HERE.parent / "fdcore" / "data" / "models"
# Stages of training: epochs, peak learning rate, and the weights to begin with where they are not random. A stage after the first
# begins with what the one before has reached. The bonds of molecules are stiff: from random weights their forces had not begun to be
# learnt after 1,700 steps; from the weights of the crystals, within 200.
STAGES: dict[str, list[tuple[int, float, Path | None]]] = {
    "fd-orb-small-v1": [(44, 8e-4, None)],
    "fd-orb-molecules-v1": [(16, 1e-3, WEIGHTS / "fd-orb-small-v1.safetensors"), (14, 8e-4, None), (30, 8e-4, None)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--id", default="fd-orb-small-v1")
    parser.add_argument("--member-of", choices=DATA, help="the model of which this is another seed")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of frames")
    parser.add_argument("--epochs", type=int, help="of a single stage; default: the stages of the shipped model")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--skip", nargs="*", choices=STEPS, default=[])
    arguments = parser.parse_args()
    first = arguments.member_of or arguments.id
    if first not in DATA:
        parser.error(f"{first} is not one of {', '.join(DATA)}; another seed of one of them is named with --member-of")
    program, folder = DATA[first]
    work, out = arguments.work / folder, arguments.work / arguments.id
    stages = STAGES[first]
    if arguments.epochs:
        stages = [(arguments.epochs, *stages[0][1:])]
    if "data" not in arguments.skip:
        run(program, "--out", work, "--seed", 0)
    if "train" not in arguments.skip:
        begin = None
        for number, (epochs, peak, start) in enumerate(stages, 1):
            folder = out if number == len(stages) else out.with_name(f"{out.name}-stage-{number}")
            given = start or begin
            options = ["--start-from", given] if given else []
            common = ["--data", work, "--out", folder, "--epochs", epochs, "--seed", arguments.seed]
            run("train.py", *common, "--peak-learning-rate", peak, *options)
            begin = folder / "model.safetensors"
    if "evaluate" not in arguments.skip:
        member = ["--member-of", arguments.member_of] if arguments.member_of else []
        run("evaluate.py", "--data", work, "--model", out / "model.safetensors", "--id", arguments.id, *member)


def run(program: str, *options: object) -> None:
    print(f"== {program}", flush=True)
    subprocess.run([sys.executable, str(HERE / program), *map(str, options)], check=True)


if __name__ == "__main__":
    main()
