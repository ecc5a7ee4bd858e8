"""What a GPU does with it: correctness against the processor, then rates, sizes and what torch's compiler and CUDA graphs bring.

    python benchmarks/gpu.py [--json PATH] [--device cuda] [--skip-full] [--parts NAME,NAME,...]

For the embedded model and a full-size Orb v3 (published architecture, random weights):
  exact      energy, F_nc, F_c and grad U against the CPU, float64 and float32
  forces     F_nc alone, U_Delta and grad U of crystals of 64 to 32,768 atoms: seconds, and the ratio U / F_nc
  batches    structures per second of 2,000 mixed crystals of 2 to 60 atoms, by edges per batch, against an ASE loop of two calls
  steps      steps of NVE per second at 100, 1,000 and 10,000 atoms: ASE, F_nc, F_nc with U every 10 steps, MTS, F_c
  largest    the largest crystal whose two forces fit the memory, what an edge needs, and what happens to one that does not fit
  compiled   torch.compile and CUDA graphs on a pass of F_nc and of both forces: gain, and how far the numbers move
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "4")

import ase
import numpy as np
import torch
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from evaluate import load
from measuring import machine
from peer import Peer
from screen import crystals

import fdcore
from fdcore.errors import FdcoreError
from fdcore.models.orb import OrbModel
from fdcore.records import Evaluation, Structure
from fdcore.screening.scoring import How, score
from fdcore.units import FS

PARTS = ("exact", "forces", "batches", "steps", "largest", "compiled")
SIZES = {64: (2, 2, 2), 512: (4, 4, 4), 4096: (8, 8, 8), 32768: (16, 16, 16)}


def structure_of(atoms: ase.Atoms) -> Structure:
    """Not through the checks of what people bring, which end at 20,000 atoms."""
    return Structure.from_atoms(atoms)


def crystal(repeat: tuple[int, int, int], seed: int = 0) -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * repeat
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, atoms.positions.shape)
    return atoms


def seconds(action: Callable[[], object], least: float = 0.5, most: int = 50) -> float:
    """Median time of one call, after two that are not counted."""
    for _ in range(2):
        action()
    torch.cuda.synchronize()
    times: list[float] = []
    until = time.perf_counter() + least
    while len(times) < 3 or (time.perf_counter() < until and len(times) < most):
        began = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.asarray(found) - np.asarray(wanted)) / np.linalg.norm(np.asarray(wanted)))


def exact(name: str, device: str, reference: Path | None) -> dict[str, Any]:
    """Against the numbers of a CPU; `reference`: made with --reference on a machine without a GPU, where this one cannot."""
    wanted = _numbers(name, "cpu") if reference is None else json.loads(reference.read_text())[name]
    out = {}
    for dtype, numbers in _numbers(name, device).items():
        out[dtype] = {
            what: max(relative(a, b) for a, b in zip(values, wanted[dtype][what], strict=True))
            for what, values in numbers.items()
        }
    return out


def _numbers(name: str, device: str) -> dict[str, Any]:
    out = {}
    for dtype in ("float64", "float32"):
        model = reload(name, device, dtype)
        structures = [crystal((1, 1, 1)), crystal((2, 1, 1), 1), *list(crystals(5))]
        found = model.evaluate(structures)
        slopes = model.gradients(structures[:2])
        out[dtype] = {
            "energy": [e.energy for e in found],
            "forces_direct": [e.forces_direct.tolist() for e in found],
            "forces_conservative": [e.forces_conservative.tolist() for e in found],
            "force_delta": [e.force_delta for e in found],
            "force_delta_gradient": [g.force_delta_gradient.tolist() for g in slopes],
            "alone": [model.evaluate(s)[0].force_delta for s in structures],
        }
    return out


def reload(name: str, device: str, dtype: str) -> OrbModel:
    if name == "embedded":
        return fdcore.load_model(device=device, dtype=dtype)  # type: ignore[return-value]
    import tempfile

    from orb_models.forcefield.pretrained import orb_v3_direct_architecture

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = Path(folder) / "random.ckpt"
        torch.save(orb_v3_direct_architecture(device="cpu").state_dict(), path)
        return fdcore.load_model("orb-v3-direct-inf-mpa", device=device, dtype=dtype, weights=path)  # type: ignore[return-value]


def forces(model: OrbModel) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for count, repeat in SIZES.items():
        structure = structure_of(crystal(repeat))
        try:
            found = {
                "direct_s": seconds(lambda s=structure: list(model.predict_each([s]))),
                "delta_s": seconds(lambda s=structure: model.evaluate(s)),
            }
            if count <= 4096:
                found["gradient_s"] = seconds(lambda s=structure: model.gradients(s, method="double-backward"))
        except FdcoreError as error:
            out[str(count)] = {"error": error.message}
            continue
        found["delta / direct"] = found["delta_s"] / found["direct_s"]
        out[str(count)] = found
    return out


def batches(model: OrbModel) -> dict[str, Any]:
    listed = list(crystals(2000))
    structures = [model.check(a) for a in listed]
    other = Peer(model)
    other.two_calls(listed[0])
    began = time.perf_counter()
    for atoms in listed[:200]:
        other.two_calls(atoms)
    torch.cuda.synchronize()
    peer = 200 / (time.perf_counter() - began)
    out: dict[str, Any] = {"ASE loop": peer}
    for edges in (20_000, 100_000, 400_000, 1_600_000):
        model.gpu_batch_edges = edges
        for _ in range(2):
            began = time.perf_counter()
            exhaust(score(model, structures, How(check_share=0.0)))
            out[f"rows, {edges} edges"] = 2000 / (time.perf_counter() - began)
        ordered = sorted(structures, key=model.edges)
        began = time.perf_counter()
        list(model.evaluate_each(ordered, edges=edges))
        out[f"evaluated, {edges} edges"] = 2000 / (time.perf_counter() - began)
    del model.gpu_batch_edges
    best = max(v for k, v in out.items() if k.startswith("rows"))
    out["best / ASE loop"] = best / peer
    return out


def exhaust(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def steps(model: OrbModel) -> dict[str, Any]:
    # Here: the other parts do without what dynamics needs.
    from fdcore.dynamics.settings import Bounds, Leg
    from fdcore.dynamics.simulation import Simulation, new_generator, run

    out: dict[str, Any] = {}
    # 96, 1,000 and 10,648 atoms.
    for atoms in (crystal((3, 2, 2)), crystal((5, 5, 5)), crystal((11, 11, 11))):
        structure = model.check(atoms)
        found: dict[str, Any] = {}
        ways = {
            "direct": {},
            "monitored": {"monitor_every": 10},
            "mts": {"driver": "mts", "mts_stride": 8},
            "conservative": {"driver": "conservative"},
        }
        try:
            for way, changes in ways.items():
                leg = Leg(**({"steps": 10**8, "timestep_fs": 1.0, "monitor_every": 10**8, "frame_every": 0} | changes))
                simulation = Simulation.start(model, [structure], leg, new_generator(0, model.device))
                found[way] = paced(simulation, run(simulation, Bounds()))
            found["ase"] = ase_steps(model, atoms)
        except FdcoreError as error:
            found["error"] = error.message
        out[str(structure.n_atoms)] = found
    return out


def paced(simulation: Any, events: Any, least: float = 2.0) -> float:
    """Steps per second, after forty that are not counted."""
    while simulation.step < 40:
        next(events)
    torch.cuda.synchronize()
    first, began = simulation.step, time.perf_counter()
    while time.perf_counter() - began < least:
        next(events)
    torch.cuda.synchronize()
    return (simulation.step - first) / (time.perf_counter() - began)


def ase_steps(model: OrbModel, atoms: ase.Atoms) -> float:
    moving = atoms.copy()
    MaxwellBoltzmannDistribution(moving, temperature_K=300, rng=np.random.default_rng(0))
    moving.calc = Peer(model).calculator
    dynamics = VelocityVerlet(moving, timestep=1.0 * FS)
    dynamics.run(5)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 2.0:
        dynamics.run(5)
        done += 5
    return done / (time.perf_counter() - began)


def largest(model: OrbModel) -> dict[str, Any]:
    """Doubled until it does not fit; the library must say so, and go on with the next structure."""
    out: dict[str, Any] = {"bytes_per_edge_stated": model.bytes_per_edge, "tried": []}
    n = 12
    while n <= 64:
        structure = structure_of(crystal((n, n, n)))
        began = time.perf_counter()
        (found,) = model.evaluate_each([structure])
        torch.cuda.synchronize()
        entry = {
            "atoms": structure.n_atoms,
            "edges_estimated": model.edges(structure),
            "seconds": time.perf_counter() - began,
            "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
            "outcome": found.message if isinstance(found, FdcoreError) else "done",
        }
        out["tried"].append(entry)
        if isinstance(found, FdcoreError):
            break
        n = round(n * 1.26)
    out["bytes_per_edge_measured"] = model._bytes_measured
    (after,) = model.evaluate_each([model.check(crystal((2, 2, 2)))])
    out["next one"] = after.message if isinstance(after, FdcoreError) else "done"
    # A batch that is too large for the memory is halved until it fits: the estimate is made to lie.
    many = [model.check(crystal((8, 8, 8), seed)) for seed in range(40)]
    together = list(model.evaluate_each(many, edges=float("inf")))
    out["40 x 4,096 atoms in one batch"] = {
        "done": sum(not isinstance(t, FdcoreError) for t in together),
        "same as alone_eV_per_A": abs(_delta(together[0]) - model.evaluate(many[0])[0].force_delta),
        "too_many_edges": model._too_many_edges,
    }
    return out


def _delta(found: Evaluation | FdcoreError) -> float:
    return math.nan if isinstance(found, FdcoreError) else found.force_delta


def compiled(model: OrbModel) -> dict[str, Any]:
    """A pass at fixed graph, as it is, through torch's compiler, and as one CUDA graph; the last may spoil the process for what follows."""
    out: dict[str, Any] = {}
    graphs: list[tuple[dict[str, Any], Callable[[], Any], Any]] = []
    for count in (64, 512, 4096):
        batch = model.graphs([model.check(crystal(SIZES[count]))])

        def direct(batch: Any = batch) -> Any:
            with torch.no_grad():
                return heads(model, batch, conservative=False)

        def both(batch: Any = batch) -> Any:
            return heads(model, batch, conservative=True)

        for way, action in (("direct", direct), ("both", both)):
            plain = tuple(None if x is None else x.clone() for x in action())
            entry: dict[str, Any] = {"plain_s": seconds(action)}
            network = model.module.model
            try:
                began = time.perf_counter()
                model.module.model = torch.compile(network, dynamic=False)
                moved = difference(action(), plain)
                entry["compile_s"] = time.perf_counter() - began
                entry |= {"compiled_s": seconds(action), "compiled_moves_by": moved}
            except Exception as error:  # what it cannot do is a result
                entry["compile_error"] = f"{type(error).__name__}: {str(error)[:300]}"
            finally:
                model.module.model = network
            graphs.append((entry, action, plain))
            out.setdefault(str(count), {})[way] = entry
    for entry, action, plain in graphs:
        try:
            torch.cuda.set_sync_debug_mode("error")
            action()
        except RuntimeError as error:
            # What a CUDA graph cannot hold: a step that waits for the device.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            entry["waits_at"] = f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
            continue
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            entry |= graphed(action, plain)
        except Exception as error:
            entry["graph_error"] = f"{type(error).__name__}: {str(error)[:300]}"
    return out


def heads(model: OrbModel, batch: Any, *, conservative: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """F_nc and, where asked for, F_c, without the repulsion, whose size depends on the positions."""
    positions = batch.node_features["positions"].detach().requires_grad_(conservative)
    batch.node_features["positions"] = positions
    with torch.set_grad_enabled(conservative):
        vectors, _, _ = batch.compute_differentiable_edge_vectors(use_stress_displacement=False, use_rotation=False)
        batch.edge_features["vectors"] = vectors
        found = model.heads_of(batch, batch.node_features["positions"], direct=True, conservative=conservative, repulsion=False)  # fmt: skip
    assert found.forces_direct is not None
    return found.forces_direct.detach(), found.forces_conservative


def difference(found: Any, wanted: Any) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True) if b is not None)


def graphed(action: Callable[[], Any], plain: Any) -> dict[str, Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = action()
    graph.replay()
    torch.cuda.synchronize()
    return {"graph_moves_by": difference(kept, plain), "graph_s": seconds(graph.replay)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--skip-full", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--reference", type=Path, help="numbers of a CPU; with --device cpu they are written there")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu":
        arguments.reference.write_text(json.dumps({name: _numbers(name, "cpu") for name in ("embedded", "full")}))
        return
    found: dict[str, Any] = {"machine": machine(arguments.device)}
    print(json.dumps(found["machine"]), flush=True)
    for name in ("embedded",) if arguments.skip_full else ("embedded", "full"):
        for part in arguments.parts.split(","):
            began = time.perf_counter()
            torch.cuda.empty_cache()
            try:
                if part == "exact":
                    result = exact(name, arguments.device, arguments.reference)
                else:
                    result = globals()[part](load(name, arguments.device))
            except Exception as error:  # the others are still measured
                result = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            found.setdefault(name, {})[part] = result
            print(f"{name} {part} ({time.perf_counter() - began:.0f} s): {json.dumps(result)}", flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
