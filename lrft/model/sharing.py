"""Two models that hold the same numbers, holding them once."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from lrft.core.adapted import adapted

SAMPLE = 64  # numbers of a tensor that are compared before all of them are


def share_tensors(second: nn.Module, first: nn.Module) -> int:
    """Let `second`, which does not train, use the tensors of `first` that do not train and hold the same; bytes freed.

    What adapters of `first` hold is left out, since they may write into it.
    """
    own = {id(t) for _, site in adapted(first) for t in (*site.adapter.parameters(), *site.adapter.buffers())}
    known: dict[object, list[Tensor]] = defaultdict(list)
    for mine in (*first.parameters(), *first.buffers()):
        if not mine.requires_grad and id(mine) not in own and mine.numel() > SAMPLE:
            known[_key(mine)].append(mine.detach())
    freed, done = 0, set[int]()
    for module in second.modules():
        held: dict[str, Tensor | None]
        for held in (module._parameters, module._buffers):  # type: ignore[assignment]
            for name, tensor in held.items():
                if tensor is None or id(tensor) in done or tensor.numel() <= SAMPLE:
                    continue
                same = next((one for one in known.get(_key(tensor), ()) if torch.equal(one, tensor)), None)
                if same is None or same.data_ptr() == tensor.data_ptr():
                    continue
                freed += tensor.nbytes
                if isinstance(tensor, nn.Parameter):
                    tensor.data = same  # a parameter that is tied stays tied
                else:
                    held[name] = same
                done.add(id(held[name]))
    return freed


def _key(tensor: Tensor) -> object:
    """What is alike of tensors that hold the same."""
    step = max(1, tensor.numel() // SAMPLE)
    few = tensor.detach().flatten()[::step][:SAMPLE].contiguous()
    return tensor.shape, tensor.dtype, str(tensor.device), bytes(few.view(torch.uint8).cpu().numpy())
