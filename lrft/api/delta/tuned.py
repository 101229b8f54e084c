"""The tuned model of a folder of differences, whose layers are given base and difference whenever they are called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lrft.api.delta.diff import section_of
from lrft.core import stop
from lrft.core.notes import say
from lrft.export.delta import Delta, grow, summed
from lrft.export.delta_held import Held
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model, open_model, prove
from lrft.model.on_call import give_on_call, waiting
from lrft.model.promised import Stored
from lrft.model.stored import NotStreamed, read_parameter, stored_at
from lrft.recipe.sections import ModelSection


@torch.no_grad()
def tuned_on_call(base: ModelSection, record: Delta, held: Held, trust_remote_code: bool) -> CausalLM:
    """The base with the differences added, in float32, as `lrft delta apply` makes it.

    Its linear layers read the two at every call and keep neither; of a model whose files cannot be read so all is in
    memory, which is said.
    """
    section = section_of(base.name)
    try:
        model = open_model(section, trust_remote_code)
    except NotStreamed as reason:
        if str(reason):
            say(f"{base.name}: the tuned model is in memory as a whole ({reason})")
        model = load_model(section, trust_remote_code=trust_remote_code)
    for name in waiting(model.hf):
        if name.removesuffix(".weight") in model.direct:
            read_parameter(model.hf, name)
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, parameter in waiting(model.hf).items():
        stored = stored_at(parameter)
        assert stored is not None, "only layers that wait are read"
        makers[name] = partial(_made, stored, held, name)
    grow(model, record["rows"])
    for name, parameter in model.hf.named_parameters():
        stop.poll()
        if name in held and name not in makers:
            parameter.copy_(summed(parameter, held[name]))
    if makers:
        give_on_call(model.hf, makers, torch.device("cpu"))
        model.unread = None
        prove(model, section, "cpu")
    return model


def _made(stored: Stored, held: Held, name: str) -> Tensor:
    own = stored.read(torch.float32)
    return summed(own, held[name]).float() if name in held else own
