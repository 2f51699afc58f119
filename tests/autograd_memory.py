"""What autograd keeps between the forward and the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor

from recast.backbones.base import Backbone


def saved_bytes(backbone: Backbone, work: Callable[[], object]) -> int:
    """The bytes of all storages that autograd saves during the work, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in backbone.network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in saved.values())
