"""MACE from mace-torch as a worker (see `wire` for the messages). Runs in its own environment; must not import fdcore.

Orders, with S structures and A atoms in all; lengths in Å, energies in eV:

    load       weights (path, or null: downloaded by the package from `address`), address, device, dtype
               -> file, parameters, layers, channels, width (numbers that a layer keeps of an atom), cutoff_A, elements (atomic numbers)
    predict    counts (S,), numbers (A,), positions (A, 3), cells (S, 3, 3), periodic (S,)
               -> energy (S,), forces_conservative (A, 3) = -dE/dR

A checkpoint is a pickled module, which runs what is in it: it is read here, without rights that the user does not have, and only because the
user or the operator named the file or it comes from its authors' address.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from serve import Failed, loop, repeatable, short, streams

# e3nn's own tables, which it reads while it is imported, hold more than tensors; mace.calculators says the same, where it is imported first.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
# What every energy model of the package has, and no other thing that a file may hold.
PARTS = ("r_max", "atomic_numbers", "atomic_energies_fn", "interactions", "products", "readouts")


class Loaded:
    """One checkpoint, as the package's own calculator holds it."""

    def __init__(self, weights: str | None, address: str, device: str, dtype: str) -> None:
        self.file = weights or _download(address)
        try:
            # No page and no run names this file: it is the one of --weights, of the operator's folder, or of the publisher's address. Read as the
            # package's calculator does, which does not look at what it has read before it uses it.
            module = torch.load(self.file, map_location=device, weights_only=False)
        except Exception as error:
            raise Failed("weights", f"It is no model that torch can read ({short(error)}).") from error
        if not isinstance(module, torch.nn.Module) or not all(hasattr(module, part) for part in PARTS):
            raise Failed("weights", "It is no energy model that mace saved.")
        from mace import calculators

        try:
            self.calculator: Any = calculators.MACECalculator(models=module, device=device, default_dtype=dtype)
        except Exception as error:
            raise Failed("weights", f"mace-torch does not load it ({short(error)}).") from error
        self.model: Any = self.calculator.models[0].eval()
        self.dtype = getattr(torch, dtype)

    def facts(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layers": len(self.model.interactions),
            "channels": int(self.model.node_embedding.linear.irreps_out.dim),
            "width": max(product.linear.irreps_out.dim for product in self.model.products),
            "cutoff_A": float(self.calculator.r_max),
            "elements": [int(z) for z in self.model.atomic_numbers],
        }

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """The package's own graphs of these structures, as its calculator makes that of one."""
        from mace import data
        from mace.tools import torch_geometric, torch_tools

        ends = np.cumsum(arrays["counts"])
        graphs = []
        with torch_tools.default_dtype(self.dtype):
            for index, (count, end) in enumerate(zip(arrays["counts"], ends, strict=True)):
                rows = slice(end - count, end)
                periodic = bool(arrays["periodic"][index])
                atoms = ase.Atoms(
                    arrays["numbers"][rows],
                    positions=arrays["positions"][rows],
                    cell=arrays["cells"][index] if periodic else None,
                    pbc=periodic,
                )
                graphs.append(
                    data.AtomicData.from_config(
                        data.config_from_atoms(atoms, head_name=self.calculator.head),
                        z_table=self.calculator.z_table,
                        cutoff=self.calculator.r_max,
                        heads=self.calculator.available_heads,
                    )
                )
        return torch_geometric.Batch.from_data_list(graphs).to(self.calculator.device)


class Worker:
    """The orders, on one loaded model."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None

    def load(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        del arrays
        repeatable(order["device"])
        self.loaded = Loaded(order["weights"], order["address"], order["device"], order["dtype"])
        return self.loaded.facts(), {}

    def predict(self, order: dict[str, Any], arrays: dict[str, np.ndarray]):
        del order
        if self.loaded is None:
            raise Failed("compute", "No model was loaded.")
        batch = self.loaded.batch(arrays)
        found = self.loaded.model(batch.to_dict(), compute_stress=False)
        return {}, {"energy": _array(found["energy"]), "forces_conservative": _array(found["forces"])}


def _download(address: str) -> str:
    """The package's own download, into its own cache, which is looked into first."""
    from mace.calculators import foundations_models as published

    try:
        if address in published.mace_off_urls.values():
            # It hands out no path.
            published.mace_off(model=address, device="cpu", return_raw_model=True)
            return f"{published.get_cache_dir()}/{os.path.basename(address)}"
        return published.download_mace_mp_checkpoint(address)
    except Exception as error:
        raise Failed("weights", f"the download failed ({short(error.__cause__ or error)}).") from error


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def main() -> None:
    incoming, outgoing = streams()
    worker = Worker()
    handlers = {"load": worker.load, "predict": worker.predict}
    loop(incoming, outgoing, handlers, packages=("mace-torch", "torch"))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
