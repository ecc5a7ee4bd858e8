"""The fairchem family (fairchem-core 2.22): eSEN, UMA and AllScAIP checkpoints; E, F_nc and F_c from one graph and one forward pass.

Sources: Fu et al. 2025 (eSEN), Wood et al. 2025 (UMA), Levine et al. 2025 (OMol25). The package's own `predict` runs direct models
under no_grad and so has no F_c; here its modules run on a batch whose positions are a leaf, at fixed graph. Two of its habits are
closed: the frame of every edge is turned by a random angle at each call (the answer does not depend on it, its last digits do),
and AllScAIP casts to single precision half way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.graph.compute import generate_graph
from fairchem.core.models.allscaip.AllScAIP import AllScAIPBackbone
from fairchem.core.models.uma.common.quaternion.wigner_d_hybrid import axis_angle_wigner_hybrid
from fairchem.core.models.uma.escn_md import eSCNMDBackbone
from fairchem.core.units.mlip_unit.api.inference import CHARGE_RANGE, SPIN_RANGE
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from fdcore.errors import ComputeError, UnsupportedStructureError, WeightsError
from fdcore.models.autograd import (
    Both,
    evaluations,
    gradient_of_squares,
    gradients,
    pull_back,
    two_forces,
)
from fdcore.models.base import AtomsInput, ForceName, GradientMethod, Model, Predictor, estimated_edges
from fdcore.models.process_settings import LOADING
from fdcore.models.torch_calls import array, guarded
from fdcore.records import Evaluation, Gradients, ModelCard, Prediction, Structure

# The package's neighbour search for processors of any kind; it keeps whole shells where a cap cuts (0.01 Å).
GRAPH_VERSION = 2
# Any: the package's registry hides from type checkers that they are classes.
EDGE_BACKBONE: Any = eSCNMDBackbone
SOFT_BACKBONE: Any = AllScAIPBackbone


class FairchemNetwork(Predictor):
    """A loaded inference checkpoint, frozen; `dataset` is the task of a checkpoint that has several."""

    def __init__(self, card: ModelCard, unit: Any, dataset: str, device: str, dtype: str) -> None:
        super().__init__(card, device, dtype)
        self.module: Any = unit.model.module
        self.backbone: Any = self.module.backbone
        self.dataset = dataset
        self.torch_dtype = getattr(torch, dtype)
        self.conditioned = card.needs_charge_spin
        tasks = {t.property: t for t in unit.dataset_to_tasks[dataset]}
        if not {"energy", "forces"} <= set(tasks):
            raise WeightsError(f"The weights for {card.id} lack the energy or the forces of {dataset}.")
        self._energy_task, self._forces_task = tasks["energy"], tasks["forces"]
        if isinstance(self.backbone, EDGE_BACKBONE):
            self.architecture: _ESEN | _AllScAIP = _ESEN(self.backbone)
        elif isinstance(self.backbone, SOFT_BACKBONE):
            self.architecture = _AllScAIP(self.backbone, dtype)
        else:
            raise WeightsError(
                f"{card.id}: the architecture {type(self.backbone).__name__} is not one that is read here.",
                "eSEN, UMA and AllScAIP checkpoints are.",
            )
        self.seconds_per_edge = self.architecture.guessed_seconds_per_edge
        self.reads_single_atoms = bool(self.module.supports_single_atoms)

    def check(self, atoms: AtomsInput) -> Structure:
        structure = super().check(atoms)
        if structure.n_atoms == 1 and not structure.periodic and not self.reads_single_atoms:
            raise UnsupportedStructureError(
                f"{self.card.id} does not compute a single atom: its package looks the energy up in a table of isolated atoms.",
                "There are no two forces to compare in a single atom; leave it out.",
            )
        if self.conditioned:
            for name, value, (low, high) in (
                ("charge", structure.charge, CHARGE_RANGE),
                ("spin multiplicity", structure.spin, SPIN_RANGE),
            ):
                if value is not None and not low <= value <= high:
                    raise UnsupportedStructureError(
                        f"{self.card.id} knows no {name} of {value}.", f"It was made for {low} to {high}."
                    )
        return structure

    # ---- one batch -------------------------------------------------------------------------------------------------

    def groups(self, structures: Sequence[Structure]) -> Iterator[Sequence[Structure]]:
        """The structures that share one pass."""
        if self.architecture.alone:
            yield from ([s] for s in structures)
        else:
            yield structures

    def batch(self, structures: Sequence[Structure]) -> Any:
        """The package's batch with its graph, in the order given; nothing of it will change but the positions."""
        known = {"r_data_keys": ["charge", "spin"], "task_name": self.dataset, "target_dtype": self.torch_dtype}
        data = atomicdata_list_to_batch([AtomicData.from_ase(self._atoms(s), **known) for s in structures])
        return self.architecture.with_graph(data.to(self.device))

    def _atoms(self, structure: Structure) -> Any:
        atoms = structure.to_atoms()
        if self.conditioned:
            atoms.info = {"charge": structure.charge, "spin": structure.spin}
        else:
            atoms.info = {"charge": 0, "spin": 0}
        return atoms

    def outputs(self, data: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy (S,) float64 eV and the package's force (A, 3) eV/Å of this batch at these positions."""
        data = data.clone()
        data["pos"] = positions
        with self.architecture.running():
            out = self.module(data)
        energy = out[self._energy_task.name]["energy"].reshape(-1).double()
        # A reference energy of 1e5 eV would take the digits that differences are made of.
        energy = self._energy_task.normalizer.denorm(energy)
        if self._energy_task.element_references is not None:
            energy = self._energy_task.element_references.undo_refs(data, energy)
        return energy, self._forces_task.normalizer.denorm(out[self._forces_task.name]["forces"])

    # ---- memory ----------------------------------------------------------------------------------------------------

    @property
    def bytes_per_edge(self) -> float:
        return self.architecture.floats_per_edge * self.torch_dtype.itemsize

    def _edge_count(self, structure: Structure) -> float:
        return estimated_edges(structure, self.architecture.cutoff_A, self.architecture.neighbours)


class FairchemModel(FairchemNetwork, Model):
    """A direct model: F_nc from its head, F_c as the exact gradient of its energy."""

    pulls_back = True

    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        return guarded(self.device, lambda: [e for group in self.groups(structures) for e in self._both(group)])

    def _both(self, structures: Sequence[Structure]) -> list[Evaluation]:
        data = self.batch(structures)
        found = two_forces(self._pass(data), data["pos"])
        return evaluations(found, [s.n_atoms for s in structures], self.architecture.ties_A(data))

    def _pass(self, data: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        same = self.architecture.same_graph(self.card.id)

        def run(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with same():
                return self.outputs(data, positions)

        return run

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            out = []
            for group in self.groups(structures):
                data = self.batch(group)
                with torch.no_grad():
                    energy, forces = self.outputs(data, data["pos"])
                out += _predictions(group, energy, forces)
            return out

        return guarded(self.device, run)

    def _gradients(self, structure: Structure, method: GradientMethod) -> Gradients:
        return self._gradients_of([structure], method, strain=False)[0]

    def _gradients_of(
        self, structures: Sequence[Structure], method: GradientMethod, strain: bool
    ) -> Sequence[Gradients]:
        if strain:
            return super()._gradients_of(structures, method, strain)

        def run() -> list[Gradients]:
            out = []
            for group in self.groups(structures):
                data = self.batch(group)
                squares, found = gradient_of_squares(self._pass(data), data["pos"], data.batch, method)
                ties = self.architecture.ties_A(data)
                out += gradients(squares, evaluations(found, [s.n_atoms for s in group], ties))
            return out

        return guarded(self.device, run)

    def _displaced(self, structure: Structure, displacements: NDArray[np.float64]) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            data = self.batch([structure])
            pass_over = self._pass(data)
            with torch.no_grad():
                pass_over(data["pos"])  # what the graph of the undisplaced structure is
            out = []
            for displacement in displacements:
                shift = torch.as_tensor(displacement, dtype=self.torch_dtype, device=self.device)
                found: Both = two_forces(pass_over, data["pos"] + shift)
                out += evaluations(found, [structure.n_atoms], [None])
            return out

        return guarded(self.device, run)

    def _pull_back(self, structure: Structure, vectors: NDArray[np.float64], force: ForceName) -> NDArray[np.float64]:
        def run() -> NDArray[np.float64]:
            data = self.batch([structure])
            return pull_back(self._pass(data), data["pos"], vectors, force)

        return guarded(self.device, run)


class FairchemConservative(FairchemNetwork):
    """A conservative model: its force is the gradient that the package itself takes."""

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            out = []
            for group in self.groups(structures):
                data = self.batch(group)
                with torch.enable_grad():
                    energy, forces = self.outputs(data, data["pos"].detach().requires_grad_(True))
                out += _predictions(group, energy, forces)
            return out

        return guarded(self.device, run)


def _predictions(structures: Sequence[Structure], energy: torch.Tensor, forces: torch.Tensor) -> list[Prediction]:
    ends = np.cumsum([s.n_atoms for s in structures])[:-1]
    parts = np.split(array(forces), ends)
    return [Prediction(float(e), f) for e, f in zip(array(energy), parts, strict=True)]


class _ESEN:
    """What is special to eSEN and UMA: a list of edges made beforehand, and a frame for every edge."""

    alone = False

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self.cutoff_A = float(backbone.cutoff)
        self.neighbours = int(backbone.max_neighbors)
        # The edges are ours: a graph that the network makes anew would not be a fixed one.
        backbone.otf_graph = False
        # Without gradients through derivatives of stress: nobody asks for it.
        backbone.regress_config.stress = False
        backbone._get_rotmat_and_wigner = self._frames

    def _frames(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = self._backbone.wigner_data
        return axis_angle_wigner_hybrid(
            vectors,
            self._backbone.lmax,
            gamma=vectors.new_zeros(len(vectors)),
            coeffs=known.coeffs,
            U_blocks=known.U_blocks,
            custom_kernels=known.custom_kernels,
        )

    def with_graph(self, data: Any) -> Any:
        found = self._graph(data, self.neighbours)
        data["edge_index"], data["nedges"] = found["edge_index"], found["neighbors"]
        data["cell_offsets"] = found["cell_offsets"].to(data["pos"].dtype)
        return data

    def _graph(self, data: Any, neighbours: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return generate_graph(data, self.cutoff_A, neighbours, False, GRAPH_VERSION, data.pbc)

    def ties_A(self, data: Any) -> list[float | None]:
        """As `Evaluation.graph_tie_A`. The cap keeps whole shells, so no answer depends on tie-breaking; it still jumps when the
        set of neighbours changes, the sooner the smaller the gap."""
        kept = torch.bincount(data["edge_index"][1], minlength=len(data["pos"]))
        out: list[float | None] = [None] * len(data.natoms)
        if int(kept.max()) < self.neighbours:
            return out
        wide = self._graph(data, 100 * self.neighbours)
        order = torch.argsort(wide["edge_distance"], stable=True)
        order = order[torch.argsort(wide["edge_index"][1][order], stable=True)]
        counts = torch.bincount(wide["edge_index"][1], minlength=len(kept))
        starts = torch.cumsum(counts, 0) - counts
        lengths = wide["edge_distance"][order]
        for atom in torch.nonzero(counts > kept).flatten().tolist():
            first_dropped = int(starts[atom] + kept[atom])
            gap = float(lengths[first_dropped] - lengths[first_dropped - 1])
            index = int(data.batch[atom])
            smallest = out[index]
            out[index] = gap if smallest is None else min(gap, smallest)
        return out

    def same_graph(self, model_id: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
        del model_id  # the edges are given
        return contextlib.nullcontext

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @property
    def floats_per_edge(self) -> float:
        """What a forward pass saves for one edge (measured: 204 kB for small, 1132 kB for medium, in single precision)."""
        b = self._backbone
        return 12.0 * b.num_layers * len(b.mappingReduced.l_harmonic) * b.sphere_channels

    @property
    def guessed_seconds_per_edge(self) -> float:
        """Both forces, on two cores."""
        return 2e-8 * self.floats_per_edge


class _AllScAIP:
    """What is special to AllScAIP: neighbours ranked softly inside of the network, attention, and casts to single precision.

    It runs one structure at a time: its attention weights are normalised over all that is in a batch. Its graph cannot be given
    to it; instead every pass of a series must see the neighbours that the first one saw, or it raises.
    """

    alone = True

    def __init__(self, backbone: Any, dtype: str) -> None:
        self._backbone = backbone
        self._dtype = getattr(torch, dtype)
        self.cutoff_A = float(backbone.cutoff)
        self.neighbours = int(backbone.max_neighbors)
        if dtype == "float64" and backbone.gnn_cfg.use_freq_mask:
            raise WeightsError(
                "This AllScAIP checkpoint computes its angular frequencies in single precision whatever is asked for.",
                "Use --dtype float32.",
            )
        # Fused attention has no second derivative.
        backbone.gnn_cfg.atten_name = "math"
        backbone.compiled_forward = self._forward
        self._preprocess = backbone.data_preprocess
        backbone.data_preprocess = self._watched
        self._neighbours_seen: torch.Tensor | None = None

    def _forward(self, data: Any) -> dict[str, Any]:
        """As the backbone's own, without its last cast to single precision."""
        representations = self._backbone.input_block(data)
        for index, block in enumerate(self._backbone.transformer_blocks):
            representations = block(data, representations, layer_idx=index)
        return {"data": data, "node_reps": representations[:, 0]}

    def _watched(self, data: Any) -> Any:
        found = self._preprocess(data)
        own = found.neighbor_index
        # In which order they come is of no matter.
        self._neighbours_seen = own[1].sort(dim=-1).values
        return found

    def with_graph(self, data: Any) -> Any:
        return data

    def ties_A(self, data: Any) -> list[float | None]:
        return [None] * len(data.natoms)

    def same_graph(self, model_id: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
        first: list[torch.Tensor] = []

        @contextlib.contextmanager
        def watching() -> Iterator[None]:
            yield
            seen = self._neighbours_seen
            assert seen is not None
            if not first:
                first.append(seen)
            elif not torch.equal(first[0], seen):
                raise ComputeError(
                    f"The neighbours that {model_id} takes into account change within the step of a difference.",
                    "Its energy jumps there. Use the exact gradient (double-backward), or move the atoms a little.",
                )

        return watching

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        flash, efficient = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
        try:
            with sdpa_kernel(SDPBackend.MATH), self._default_dtype():
                yield
        finally:
            torch.backends.cuda.enable_flash_sdp(flash)
            torch.backends.cuda.enable_mem_efficient_sdp(efficient)

    @contextlib.contextmanager
    def _default_dtype(self) -> Iterator[None]:
        """It makes some of its arrays in torch's default precision, a setting of the whole process."""
        if self._dtype == torch.get_default_dtype():
            yield
            return
        with LOADING:
            before = torch.get_default_dtype()
            torch.set_default_dtype(self._dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    @property
    def floats_per_edge(self) -> float:
        """What a forward pass saves for one neighbour (measured: 305 kB for medium, in single precision)."""
        known = self._backbone.global_cfg
        return 12.0 * known.num_layers * known.hidden_size + 3000

    @property
    def guessed_seconds_per_edge(self) -> float:
        """Both forces, on two cores."""
        return 6e-8 * self.floats_per_edge
