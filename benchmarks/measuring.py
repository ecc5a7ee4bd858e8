"""What the benchmarks share: ratios within rounds, peak memory of a fresh process, how a target is told."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# "<=" and the like with a figure.
Target = tuple[str, float]


def machine(device: str) -> dict[str, Any]:
    """Where it was measured."""
    found = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    return found


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def spread(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The ratio within each round: its median over rounds, and its extremes."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def told(value: float, target: Target | None) -> str:
    """Whether a target is reached, in words; empty where there is none."""
    if target is None:
        return ""
    sign, figure = target
    reached = {"<=": value <= figure, ">=": value >= figure, "<": value < figure}[sign]
    return f"  target {sign} {figure:g}: {'reached' if reached else 'MISSED'}"


def ratio_text(values: Mapping[str, float], target: Target | None = None) -> str:
    return f"{values['median']:5.2f}  ({values['min']:.2f} to {values['max']:.2f})" + told(values["median"], target)


def fresh_process(script: str, *arguments: str) -> float:
    """The last number that a script prints with these arguments, run as a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak_MB(run: Callable[[], object], device: str) -> None:
    """What `run` needs beyond what this process holds already."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    # The peak so far belongs to imports; Linux can forget it.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_kB("VmRSS")
    run()
    print((_resident_kB("VmHWM") - before) / 1e3)


def _resident_kB(field: str) -> float:
    """VmRSS (now) or VmHWM (peak since it was reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field)))
