"""`lrft merge --requantize int_groups`: the layout of GPTQ's checkpoints, read back by lrft."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lrft.api.merging.in_bits import MergeInBits
from lrft.api.merging.options import as_written
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import NotMergeable


class MergeInIntegers(MergeInBits):
    """The merged model as GPTQ's checkpoints hold one; what is measured is computed from the integers in the files."""

    @torch.no_grad()
    def _read(self, place: Path) -> CausalLM:
        """The model of the files, its integers decoded, where the run's is.

        Raises:
            NotMergeable: the files hold other layers in few bits than were written.
        """
        read = self._load(as_written(self._section(), place, str(self.recipe.export.dtype)))
        if odd := sorted(read.packed.keys() ^ {*self.layers}):
            raise NotMergeable(f"--requantize: {odd[0]} is not read back as it was written; merge without it")
        for path, packed in read.packed.items():
            linear = read.hf.get_submodule(path)
            linear.weight = nn.Parameter(packed.layer(self.bits.dtype).weight(), requires_grad=False)
        read.hf.to(self.model.device)
        read.set_attention(self.model.attention)
        return read
