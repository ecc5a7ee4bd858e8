"""Stands in for the package of this name, which only comes as source with a long compilation. fairchem-core 1.10 imports it where
EquiformerV2 never calls it; should it be called all the same, this is what it does for sums and means."""

from __future__ import annotations

import torch
from torch_geometric.utils import scatter as _scatter


def scatter(src, index, dim=-1, out=None, dim_size=None, reduce="sum"):
    if out is not None:
        raise NotImplementedError(
            "this stand-in for torch_scatter writes into no given tensor (out=): EquiformerV2 does not ask for it"
        )
    return _scatter(src, index.to(torch.long), dim=dim % src.dim(), dim_size=dim_size, reduce=reduce)
