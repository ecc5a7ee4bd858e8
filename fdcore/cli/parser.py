"""Every verb and its options. Nothing heavy is imported until a verb is used: a worker must not carry what scoring needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from fdcore import __version__
from fdcore.attack.settings import GRADIENTS
from fdcore.cli.parser_paper import add_reproduce
from fdcore.cli.parser_screen import add_screen
from fdcore.dynamics.settings import DRIVERS, ENSEMBLES, OPTIMISERS, THERMOSTATS
from fdcore.finetune.settings import PARTS, TRAINS, ZEROS
from fdcore.jobs.queue import LANES
from fdcore.store.records import ACTIVE, ENDED

# Of fdcore.services.dynamics, which is heavier than a parser should be; a test compares them.
PRESET_NAMES = ("quick", "paper", "long")
# Of fdcore.adversarial_files, the default first; the same test compares them.
DFT_SETS = ("MPStaticSet", "MatPESStaticSet", "MPScanStaticSet")

Verb = Callable[[argparse.Namespace, TextIO], int]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="fdcore", description="When to stop trusting a direct-force machine-learned potential."
    )
    parser.add_argument("--version", action="version", version=f"fdcore {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (
        _score,
        _screen,
        _md,
        _relax,
        _advisor,
        _attack,
        _label,
        _validate,
        _finetune,
        _stability,
        _generations,
        _ensemble,
        _reproduce,
        _report,
        _models,
        _runs,
        _worker,
        _doctor,
        _app,
    ):
        add(verbs)
    return parser


def _verb(module: str, name: str) -> Verb:
    """What a verb does, imported when it is done."""
    return lambda arguments, results: getattr(import_module(f"fdcore.cli.{module}"), name)(arguments, results)


def _score(verbs: argparse._SubParsersAction) -> None:
    score = verbs.add_parser("score", help="U_Delta, the verdict and the atoms that cause it, for structure files")
    score.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    _model_options(score)
    _charge_and_spin(score)
    _json(score)
    score.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    score.add_argument("--extxyz", metavar="PATH", help="write structures with per-atom arrays; - for standard output")
    score.add_argument(
        "--calculator",
        metavar="MODULE:CALLABLE",
        help="instead of a model: anything that returns an ASE calculator; its energy is differentiated numerically",
    )
    score.add_argument(
        "--precision",
        type=float,
        default=0.1,
        help="relative standard error of U_Delta with --calculator (default 0.1)",
    )
    score.add_argument("--probes", type=int, help="directions to probe with --calculator, instead of --precision")
    score.add_argument("--seed", type=int, default=0, help="of the directions (default 0)")
    score.set_defaults(run=_verb("score", "run"))


def _screen(verbs: argparse._SubParsersAction) -> None:
    screen = add_screen(verbs)
    _model_options(screen, "fd-orb-small-v1, for all of them")
    _charge_and_spin(screen)
    _json(screen)
    screen.set_defaults(run=_verb("screen", "run"))


def _model_options(
    parser: argparse.ArgumentParser, default: str = "an embedded one that has seen such structures"
) -> None:
    parser.add_argument(
        "--model",
        metavar="ID",
        default=None,
        help=f"`fdcore models` lists them; default: {default}",
    )
    parser.add_argument("--weights", metavar="PATH", help="a local checkpoint of that model, from a source you trust")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])


def _charge_and_spin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--charge", type=int, help="total charge in e, where a file is silent")
    parser.add_argument("--spin", type=int, help="spin multiplicity 2S+1, where a file is silent")


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A number, or `none` for "not at all"."""

    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = f"{kind.__name__} or none"
    return read


def _motion(parser: argparse.ArgumentParser, task: str) -> None:
    """What `md`, `relax` and `mts-advisor` have in common. Options left out keep the default of the task."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    _model_options(parser)
    _charge_and_spin(parser)
    parser.add_argument("--seed", type=int, default=0, help="of velocities and noise (default 0)")
    parser.add_argument(
        "--record",
        metavar="FOLDER",
        help="keep the record here; the same command goes on from it after an interruption",
    )
    _json(parser)
    parser.set_defaults(run=_verb("motion", "run"), task=task)


def _options(parser: argparse.ArgumentParser, options: Sequence[tuple[str, Any, str]]) -> None:
    for name, kind, text in options:
        how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **how)


def _md(verbs: argparse._SubParsersAction) -> None:
    md = verbs.add_parser("md", help="molecular dynamics driven by F_nc, F_c or both, with its drift")
    _motion(md, "md")
    md.add_argument("--preset", choices=PRESET_NAMES, help="a whole protocol; options below change parts of it")
    md.add_argument("--csv", metavar="PATH", help="write the series, one row per recorded step; - for standard output")
    md.add_argument("--extxyz", metavar="PATH", help="write the kept frames with both forces; - for standard output")
    _options(
        md,
        (
            ("ensemble", ENSEMBLES, "nve or nvt (default nve)"),
            ("driver", DRIVERS, "the force that moves the atoms (default direct)"),
            ("thermostat", THERMOSTATS, "of NVT and of the equilibration (default nose-hoover)"),
            ("steps", int, "of the production run (default 1000)"),
            ("timestep-fs", _or_none(float), "default: 0.5 with hydrogen, else 1"),
            ("temperature-K", float, "default 300"),
            ("thermostat-time-fs", _or_none(float), "relaxation time of the thermostat"),
            ("mts-stride", int, "steps between corrections with --driver mts (default 8)"),
            ("monitor-every", int, "steps between evaluations of U_Delta (default 10)"),
            ("record-every", _or_none(int), "steps between rows of the series"),
            ("frame-every", _or_none(int), "steps between kept frames; 0 keeps none"),
            ("replicas", int, "runs of each structure with velocities of their own, as one batch"),
            ("relax-fmax", _or_none(float), "relax first until no atom feels more, eV/Å"),
            ("relax-optimiser", OPTIMISERS, "default fire"),
            ("relax-steps", int, "most iterations of the relaxation (default 500)"),
            ("equilibrate-steps", int, "of NVT before production (default 0)"),
            ("stop-above", _or_none(float), "end a structure whose U_Delta exceeds this, eV/Å"),
            ("stop-above-atom", _or_none(float), "end a structure with an atom whose u_i exceeds this, eV/Å"),
            ("stop-temperature-K", _or_none(float), "end a structure that is hotter (default 10000; none: never)"),
            ("stop-closest", float, "end a structure with atoms closer than this share of their covalent radii"),
            ("wall-seconds", _or_none(float), "end after so many seconds of computing"),
        ),
    )


def _relax(verbs: argparse._SubParsersAction) -> None:
    relax = verbs.add_parser("relax", help="relax structures along either force, and compare it with the other")
    _motion(relax, "relax")
    relax.add_argument("--csv", metavar="PATH", help="write one row per iteration; - for standard output")
    relax.add_argument("--extxyz", metavar="PATH", help="write the relaxed structures; - for standard output")
    _options(
        relax,
        (
            ("driver", ("direct", "conservative"), "the force to follow (default direct)"),
            ("optimiser", OPTIMISERS, "default fire"),
            ("fmax", float, "largest force on an atom at the end, eV/Å (default 0.05)"),
            ("steps", int, "most iterations (default 500)"),
            ("monitor-every", int, "iterations between evaluations of U_Delta (default 1)"),
        ),
    )


def _advisor(verbs: argparse._SubParsersAction) -> None:
    advisor = verbs.add_parser("mts-advisor", help="how rarely F_c may correct F_nc: drift against speed, per stride")
    _motion(advisor, "mts-advisor")
    advisor.add_argument("--csv", metavar="PATH", help="write the series of every arm; - for standard output")
    _options(
        advisor,
        (
            ("strides", _strides, "with commas (default 1,2,4,8,16)"),
            ("steps", int, "of every arm (default 2000)"),
            ("timestep-fs", _or_none(float), "default: 0.5 with hydrogen, else 1"),
            ("temperature-K", float, "default 300"),
            ("thermostat", THERMOSTATS, "of the equilibration (default nose-hoover)"),
            ("equilibrate-steps", int, "of NVT before the arms (default 500)"),
            ("relax-fmax", _or_none(float), "relax first, eV/Å (default 0.05; none: do not)"),
            ("relax-steps", int, "most iterations of the relaxation (default 200)"),
            ("replicas", int, "runs with velocities of their own, as one batch"),
            ("tolerance", float, "of the drift, meV/atom/ps (default 0.5)"),
        ),
    )


def _attack(verbs: argparse._SubParsersAction) -> None:
    attack = verbs.add_parser(
        "attack", help="structures on which the two forces disagree most, ready for DFT and fine-tuning"
    )
    attack.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    _model_options(attack)
    _charge_and_spin(attack)
    attack.add_argument("--seed", type=int, default=0, help="of the random displacements (default 0)")
    attack.add_argument("--out", metavar="PATH", help="write the dataset as extended xyz; - for standard output")
    attack.add_argument("--db", metavar="PATH", help="write it as an ASE database")
    attack.add_argument(
        "--parents", metavar="PATH", help="write what the dataset is measured against, relaxed, as extended xyz"
    )
    attack.add_argument("--cif", metavar="PATH", help="write its crystals as CIF; - for standard output")
    attack.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    attack.add_argument("--zip", metavar="PATH", help="write everything, with VASP inputs, provenance and a README")
    attack.add_argument(
        "--vasp", metavar="FOLDER", help="write POSCAR, INCAR and KPOINTS of each structure into a new folder"
    )
    attack.add_argument(
        "--dft-set", choices=DFT_SETS, default=DFT_SETS[0], help="pymatgen's input set for --zip and --vasp"
    )
    attack.add_argument(
        "--reference",
        metavar="NAME",
        help="hold the result against chgnet, gfn1, gfn2 (optional extras), or MODULE:CALLABLE, any ASE calculator",
    )
    attack.add_argument("--labels", metavar="FILE", help="hold it against labelled frames of the same structures")
    attack.add_argument(
        "--record",
        metavar="FOLDER",
        help="keep the record here; the same command goes on from it after an interruption",
    )
    _json(attack)
    attack.set_defaults(run=_verb("attack", "run"))
    _options(
        attack,
        (
            ("steps", int, "at most, per start (default 50)"),
            ("alpha", _or_none(float), "of grad U_Delta, Å^3/eV (default: from the first gradients)"),
            ("beta", _or_none(float), "of grad E, Å^2/eV (default: from the first gradients)"),
            ("balance", float, "length of the energy's term over that of U_Delta's, without --beta (default 0.3)"),
            ("first-step", float, "how far the fastest atom moves first, Å, without --alpha (default 0.04)"),
            ("temperature-K", _or_none(float), "weigh the energy as exp(-(E - E0) / N k T) instead of by beta"),
            ("count", int, "structures in the dataset (default 10)"),
            ("rise", float, "U_Delta at least so many times that of the start (default 5)"),
            (
                "apart",
                float,
                "how much two of them differ at least; 1: as two random displacements of 0.1 Å (default 0.3)",
            ),
            ("starts", _or_none(int), "copies that climb (default: half of --count, at least 4)"),
            ("rattle", float, "random displacement of the copies, Å per component (default 0.05)"),
            ("relax-fmax", _or_none(float), "relax first along F_c, eV/Å (default 0.05; none: begin as given)"),
            ("relax-steps", int, "most iterations of the relaxation (default 200)"),
            ("max-step", float, "the farthest that an atom moves in a step, Å (default 0.06)"),
            ("max-strain", float, "the most by which a step strains the cell, with --strain (default 0.01)"),
            ("closest", float, "least distance as a share of the sum of covalent radii (default 0.75)"),
            ("window", float, "most energy above the start, eV/atom (default 0.4)"),
            ("max-force", float, "largest force on an atom, eV/Å (default 50)"),
            ("patience", int, "steps without a rise after which a start ends (default 8)"),
            (
                "gradient",
                GRADIENTS,
                "how grad U_Delta is made (default one-sided: the cheapest, 0.2 to 4 %% off; double-backward: exact; auto: exact "
                "where memory lasts)",
            ),
        ),
    )
    attack.add_argument(
        "--spread",
        action="store_true",
        default=argparse.SUPPRESS,
        help="choose evenly over the range of U_Delta, not the highest",
    )
    attack.add_argument(
        "--strain", action="store_true", default=argparse.SUPPRESS, help="let the cell change, too; crystals only"
    )


def _label(verbs: argparse._SubParsersAction) -> None:
    label = verbs.add_parser(
        "label", help="energies and forces for structures, from a reference or from files of finished calculations"
    )
    label.add_argument(
        "files", nargs="+", metavar="FILE", help="structures; labels in them are kept; - reads standard input"
    )
    label.add_argument(
        "--reference",
        metavar="NAME",
        help="compute what is missing: chgnet, gfn1, gfn2, gpaw, or MODULE:CALLABLE, any ASE calculator",
    )
    label.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the reference, e.g. cutoff_eV=600 of gpaw; may be repeated",
    )
    label.add_argument("--again", action="store_true", help="compute also what has a label already")
    label.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        metavar="FILE",
        default=[],
        help="take labels from these by content: extended xyz, ASE database, vasprun.xml, OUTCAR",
    )
    label.add_argument("--reorder", action="store_true", help="with --from: atoms may stand in another order")
    label.add_argument(
        "--tolerance-A", type=float, help="with --from: how far rounding may move an atom (default 2e-5)"
    )
    _charge_and_spin(label)
    label.add_argument(
        "--out",
        metavar="PATH",
        help="write what has a label, as an ASE database (.db) or extended xyz; - for standard output",
    )
    label.add_argument(
        "--unlabelled", metavar="PATH", help="write what has none as extended xyz; - for standard output"
    )
    label.add_argument(
        "--vasp-inputs", metavar="FOLDER", help="write the input of a static calculation for each that has none"
    )
    label.add_argument(
        "--dft-set", choices=DFT_SETS, default=DFT_SETS[0], help="pymatgen's input set for --vasp-inputs"
    )
    label.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    _json(label)
    label.set_defaults(run=_verb("label", "run"))


def _validate(verbs: argparse._SubParsersAction) -> None:
    validate = verbs.add_parser(
        "validate", help="errors of both forces against labels or a reference, and what U_Delta says of them"
    )
    validate.add_argument(
        "files",
        nargs="*",
        metavar="LABELLED",
        help="extended xyz, ASE database, vasprun.xml or OUTCAR with forces, or anything with --reference; - reads standard input; none: the "
        "DFT labels that travel with fdcore",
    )
    _model_options(validate)
    _charge_and_spin(validate)
    validate.add_argument(
        "--reference",
        metavar="NAME",
        default="labels",
        help="labels (default: those in the files), chgnet, gfn1, gfn2, gpaw, or MODULE:CALLABLE, any ASE calculator",
    )
    validate.add_argument(
        "--ensemble",
        metavar="ID,ID,...",
        type=_names,
        default=[],
        help="also U_var of these models, and how well it ranks",
    )
    validate.add_argument(
        "--mix-methods", action="store_true", help="also members that were trained to reproduce different methods"
    )
    validate.add_argument(
        "--group-by",
        metavar="KEY",
        help="formula, file, or what the files say of each structure, such as system (default: what there is)",
    )
    validate.add_argument(
        "--above",
        metavar="X",
        type=float,
        help="an error above this is large, eV/Å (default 0.1, or the median where hardly any structure is on one side)",
    )
    validate.add_argument("--seed", type=int, default=0, help="of bootstraps and halves (default 0)")
    validate.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    validate.add_argument("--html", metavar="PATH", help="write the report as one page; - for standard output")
    validate.add_argument(
        "--zip", metavar="PATH", help="write the report with its figures as SVG and PNG and its numbers"
    )
    validate.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    _json(validate)
    validate.set_defaults(run=_verb("validate", "run"))


def _training() -> tuple[tuple[str, Any, str], ...]:
    """What a training may be asked, on its own and in a loop."""
    return (
        ("parts", PARTS, "of the network that may change (default all)"),
        ("rank", int, "of the change of every matrix with --parts low-rank (default 8)"),
        ("energy-weight", float, "of the energy in the loss (default 1)"),
        ("direct-weight", float, "of F_nc in the loss (default 10)"),
        ("conservative-weight", float, "of F_c in the loss (default 1)"),
        ("learning-rate", _or_none(float), "at its highest (default 1e-3 for small models, 3e-4 for others)"),
        ("weight-decay", float, "default 0"),
        ("epochs", int, "at most (default 100)"),
        ("batch", int, "structures per step (default 8)"),
        ("averaging", float, "of the weights over steps, EMA (default 0.99)"),
        ("clip", float, "largest norm of a gradient (default 1)"),
        ("held-out", float, "share of the structures that is not trained on (default 0.1)"),
        (
            "patience",
            int,
            "epochs without improvement after which it stops; 0: never (default); the best weights are kept in any case",
        ),
        ("rotate", _yes_or_no, "turn structures at random while training (default yes)"),
        ("zero", ZEROS, "whose zero of energy holds (default auto)"),
    )


def _finetune(verbs: argparse._SubParsersAction) -> None:
    finetune = verbs.add_parser(
        "finetune", help="train a model further on labelled structures: its direct force, or both of its forces"
    )
    finetune.add_argument(
        "files",
        nargs="+",
        metavar="LABELLED",
        help="extxyz with energies and forces (fdcore label makes them); - reads standard input",
    )
    finetune.add_argument(
        "--base", metavar="ID", help="the model to begin with, by its name or path (default: an embedded one that fits)"
    )
    finetune.add_argument("--weights", metavar="PATH", help="a local checkpoint of that model, from a source you trust")
    finetune.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    finetune.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    finetune.add_argument(
        "--out", metavar="DIR", help="write the model here; default: among this machine's models, by its name"
    )
    finetune.add_argument(
        "--replay",
        metavar="LABELLED",
        help="labelled structures of the base model's own domain, looked at before and after; default: those that travel with an "
        "embedded model; none: no such check",
    )
    finetune.add_argument(
        "--seed", type=int, default=0, help="of what is held out, of order, rotations and ranks (default 0)"
    )
    finetune.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    finetune.add_argument("--csv", metavar="PATH", help="write the errors before and after; - for standard output")
    _json(finetune)
    _options(
        finetune,
        (
            ("train", TRAINS, "F_nc alone, or the energy, F_nc and F_c together (default both)"),
            *_training(),
            ("labelled-by", str, "the method of the labels, for the model's card"),
            (
                "groups",
                _or_none(_strides),
                "N,N,... one per structure: those of one group (a climb, a trajectory) are alike, so they are held out together",
            ),
        ),
    )
    finetune.set_defaults(run=_verb("finetune", "run"))


def _steadiness() -> tuple[tuple[str, Any, str], ...]:
    """What a measurement may be asked, on its own and at the end of a loop."""
    return (
        ("picoseconds", float, "of every NVE run (default 10)"),
        ("timestep-fs", _or_none(float), "default: 0.5 with hydrogen, else 1"),
        ("temperature-K", float, "of the first momenta (default 300)"),
        ("seeds", int, "NVE runs of every structure (default 5)"),
        ("sigmas", _numbers, "displacements at which errors are looked at, Å (default 0.02,0.05,0.1,0.2,0.3)"),
        ("per-sigma", int, "displaced copies in each (default 10)"),
        ("relax-fmax", float, "largest force on an atom at the end of the relaxation, eV/Å (default 0.05)"),
        ("relax-steps", int, "most iterations of it (default 300)"),
    )


def _generations(verbs: argparse._SubParsersAction) -> None:
    loop = verbs.add_parser(
        "generations", help="attack, label, fine-tune, attack again, and measure whether the model became more stable"
    )
    loop.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    loop.add_argument(
        "--base", metavar="ID", help="the model to begin with, by its name or path (default: an embedded one that fits)"
    )
    loop.add_argument("--weights", metavar="PATH", help="a local checkpoint of that model, from a source you trust")
    loop.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    loop.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    loop.add_argument(
        "--out", metavar="DIR", required=True, help="write models, labelled structures and the report here"
    )
    loop.add_argument("--replay", metavar="LABELLED", help="as of `fdcore finetune`")
    loop.add_argument("--seed", type=int, default=0, help="of everything that is random (default 0)")
    loop.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    _json(loop)
    _options(
        loop,
        (
            (
                "reference",
                str,
                "chgnet, gfn1, gfn2, gpaw, or MODULE:CALLABLE: whose labels are learnt (default chgnet)",
            ),
            ("generations", int, "how often it is attacked, labelled and fine-tuned (default 2)"),
            ("also-direct", _yes_or_no, "first also train F_nc alone, to compare with (default yes)"),
            ("wall-seconds", _or_none(float), "begin no new generation after so many seconds of computing"),
            ("count", int, "adversarial structures of each generation (default 100)"),
            ("rise", float, "U_Delta of each, as a multiple of the start's (default 1)"),
            ("spread", _yes_or_no, "over the whole range of U_Delta instead of the highest (default yes)"),
            ("apart", float, "how much two of them differ at least (default 0.1)"),
            (
                "window",
                _or_none(float),
                "energy above the start that an attack may reach, eV/atom (default 3/2 kT at --temperature-K)",
            ),
            ("attack-steps", int, "of every start (default 50)"),
            ("starts", _or_none(int), "copies that climb (default: half of --count)"),
            (
                "attack-relax-fmax",
                _or_none(float),
                "relax first until no atom feels more, eV/Å (default 0.05; none: do not)",
            ),
            *_training(),
            *_steadiness(),
        ),
    )
    loop.set_defaults(run=_verb("generations", "run"))


def _stability(verbs: argparse._SubParsersAction) -> None:
    stability = verbs.add_parser(
        "stability", help="drift, errors and relaxation of several models from the same structures and seeds"
    )
    stability.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    stability.add_argument(
        "--models",
        metavar="ID,ID,...",
        type=_names,
        required=True,
        help="the base first, then what is held against it; names or paths",
    )
    stability.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    stability.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    stability.add_argument(
        "--seed", type=int, default=0, help="of the momenta and displacements, the same for all (default 0)"
    )
    stability.add_argument("--html", metavar="PATH", help="write the report as one page; - for standard output")
    stability.add_argument(
        "--zip", metavar="PATH", help="write the report with its figures as SVG and PNG and its numbers"
    )
    stability.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    _json(stability)
    _options(
        stability,
        (
            *_steadiness(),
            ("reference", str, "chgnet, gfn1, gfn2, or MODULE:CALLABLE: whose errors are told (default: none)"),
        ),
    )
    stability.set_defaults(run=_verb("stability", "run"))


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


def _ensemble(verbs: argparse._SubParsersAction) -> None:
    ensemble = verbs.add_parser(
        "ensemble", help="U_Delta of one model beside the spread of several, each with what it costs"
    )
    ensemble.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    ensemble.add_argument(
        "--models",
        metavar="ID,ID,...",
        type=_names,
        help="the members; default: those on this machine that fit --model",
    )
    ensemble.add_argument(
        "--model", metavar="ID", help="the one that is judged (default: the first member with two forces)"
    )
    ensemble.add_argument(
        "--weights",
        metavar="ID=PATH",
        action="append",
        default=[],
        help="a local checkpoint of one member, from a source you trust; may be repeated",
    )
    ensemble.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    ensemble.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    _charge_and_spin(ensemble)
    ensemble.add_argument(
        "--mix-methods", action="store_true", help="also members that were trained to reproduce different methods"
    )
    ensemble.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    ensemble.add_argument("--extxyz", metavar="PATH", help="write both spreads of every atom; - for standard output")
    ensemble.add_argument("--record", metavar="FOLDER", help="keep the record here, to go on after an interruption")
    _json(ensemble)
    ensemble.set_defaults(run=_verb("ensemble", "run"))


def _report(verbs: argparse._SubParsersAction) -> None:
    report = verbs.add_parser(
        "report", help="is the model conservative here? lambda, closed loops, jumps, copies, drift, in plain words"
    )
    report.add_argument(
        "files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz, extxyz or JSON; - reads standard input"
    )
    _model_options(report)
    # Differences of energies and of forces need it.
    report.set_defaults(dtype="float64")
    _charge_and_spin(report)
    report.add_argument("--seed", type=int, default=0, help="of directions, loops, copies and velocities (default 0)")
    report.add_argument("--html", metavar="PATH", help="write the report as one page; - for standard output")
    report.add_argument("--csv", metavar="PATH", help="write one row per line of it; - for standard output")
    report.add_argument("--pdf", metavar="PATH", help="write the report as a PDF of a page or two per structure")
    report.add_argument("--zip", metavar="PATH", help="write everything, with the figures as SVG and PNG")
    report.add_argument(
        "--record",
        metavar="FOLDER",
        help="keep the record here; the same command goes on from it after an interruption",
    )
    _json(report)
    report.set_defaults(run=_verb("report", "run"))
    _options(
        report,
        (
            (
                "parts",
                _names,
                "with commas, some of forces,gradient,asymmetry,loops,lines,symmetry,dynamics (default all)",
            ),
            ("exact-atoms", int, "up to so many the whole Jacobian, beyond an estimate of lambda (default 64)"),
            ("precision", float, "relative standard error of that estimate (default 0.05)"),
            ("loops", int, "random closed loops (default 8)"),
            ("loop-radius", float, "of them, root mean square displacement of an atom, Å (default 0.1)"),
            ("lines", int, "straight walks on which jumps of the energy are looked for (default 4)"),
            ("line-step", float, "of a walk, Å per atom (default 0.002)"),
            ("line-points", int, "of a walk (default 51)"),
            ("copies", int, "turned, permuted and shifted ones, each so many (default 8)"),
            ("picoseconds", float, "of NVE under either force (default 1)"),
            ("equilibrate-ps", float, "under F_c with a thermostat before (default 0.2)"),
            ("temperature-K", float, "default 300"),
            ("timestep-fs", _or_none(float), "default: 0.5 with hydrogen, else 1"),
        ),
    )


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _strides(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="PATH", help="write one JSON document; - for standard output and nothing else"
    )


def _models(verbs: argparse._SubParsersAction) -> None:
    models = verbs.add_parser("models", help="list the models, or check one by finite differences")
    models.add_argument(
        "--check", metavar="ID", help="compare F_c and grad U_Delta with central differences in float64"
    )
    models.add_argument("--weights", metavar="PATH", help="a local checkpoint of the model to check")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda")
    _json(models)
    models.set_defaults(run=_verb("models", "run"))


def _reproduce(verbs: argparse._SubParsersAction) -> None:
    add_reproduce(verbs, _verb("reproduce", "run"))


def _runs(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("runs", help="list, show, cancel, export or prune runs")
    acts = parser.add_subparsers(title="acts", required=True, metavar="ACT")

    listing = acts.add_parser("list", help="newest first")
    listing.add_argument("--state", help=f"only these, with commas: {','.join((*ACTIVE, *ENDED))}")
    listing.add_argument("--owner", help="only this owner's")
    listing.add_argument("--limit", type=int, default=50)
    _json(listing)
    listing.set_defaults(run=_verb("runs", "listing"))

    show = acts.add_parser("show", help="everything about one run")
    show.add_argument("id", metavar="ID", help="the run's id, or its beginning")
    _json(show)
    show.set_defaults(run=_verb("runs", "show"))

    cancel = acts.add_parser("cancel", help="stop runs; what they recorded stays")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    cancel.set_defaults(run=_verb("runs", "cancel"))

    export = acts.add_parser("export", help="one run as a zip, with its provenance")
    export.add_argument("id", metavar="ID")
    export.add_argument("--out", metavar="PATH", help="default: run-<id>.zip here; - for standard output")
    export.add_argument("--force", action="store_true", help="overwrite a file that exists")
    export.set_defaults(run=_verb("runs", "export"))

    prune = acts.add_parser("prune", help="delete ended runs that are old")
    prune.add_argument("--older-than", required=True, metavar="AGE", help="such as 12h, 30d, 8w")
    prune.add_argument("--state", help=f"only these, with commas: {','.join(ENDED)}")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    prune.add_argument("--yes", action="store_true", help="do not ask")
    prune.set_defaults(run=_verb("runs", "prune"))


def _worker(verbs: argparse._SubParsersAction) -> None:
    worker = verbs.add_parser("worker", help="serve waiting runs on this machine, in the foreground")
    worker.add_argument("--name", help="of this worker among those that share a database")
    worker.add_argument("--lanes", help=f"only these, with commas: {','.join(LANES)}")
    worker.set_defaults(run=_verb("operate", "worker"))


def _doctor(verbs: argparse._SubParsersAction) -> None:
    doctor = verbs.add_parser(
        "doctor", help="look at the installation: versions, device, memory, database, workers, disk"
    )
    doctor.add_argument("--drill", action="store_true", help="also send a short run through the engine")
    _json(doctor)
    doctor.set_defaults(run=_verb("operate", "doctor"))


def _app(verbs: argparse._SubParsersAction) -> None:
    app = verbs.add_parser("app", help="open the app in the browser")
    app.add_argument("--port", type=int, default=8501)
    app.add_argument("--address", default="localhost", help="0.0.0.0 serves other machines too")
    app.add_argument("--headless", action="store_true", help="do not open a browser")
    app.set_defaults(run=_verb("operate", "app"))
