"""Several processes that train one model: DistributedDataParallel over a torch process group, nothing for one."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from placeray.training.gather import world_size
from placeray.training.global_batchnorm import use_global_batchnorm


def across_ranks(model: nn.Module) -> nn.Module:
    """The module to call in a step. BatchNorms of `model` become global ones in place, before anything is wrapped.

    Buffers are not broadcast: global BatchNorm keeps them equal on all ranks, and frozen ones never change.
    """
    if world_size() == 1:
        return model
    use_global_batchnorm(model)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
