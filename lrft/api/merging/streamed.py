"""A merge that never holds the dense model: every tensor of the base is read, merged, written and let go in turn.

The files are laid out first (`lrft.model.layout`), so a tensor goes to its place whenever it is made. Read back, the
layers are given their weight whenever they are called (`lrft.model.on_call`). What is in memory is the run's model, a
dense tensor at work, and where these trained or are of another precision the merged embedding and head. The bytes that
are written, and the figures, are those of a merge of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lrft.api.merging.merge import Merge
from lrft.api.merging.options import as_written
from lrft.core import stop
from lrft.core.notes import say
from lrft.export.fidelity import Fidelity
from lrft.export.merge import merged_one_by_one
from lrft.model.causal_lm import CausalLM
from lrft.model.layout import Layout, hollow, write_tensor
from lrft.model.load import DTYPES, open_model, prove
from lrft.model.new_tokens import take_in
from lrft.model.on_call import Originals, give_on_call, read_on_call, share, waiting
from lrft.model.stored import NotStreamed
from lrft.recipe.sections import ModelSection


class StreamedMerge(Merge):
    """One merge, tensor by tensor; what cannot be taken so is merged as a whole, and that is said."""

    def write(self, place: Path) -> Fidelity:
        base = self._open(self._section())
        if base is None:
            return super().write(place)
        try:
            layout, originals = self._lay_out(base, place)
        except NotStreamed as reason:
            _tell(reason)
            return super().write(place)
        return self._done(self._fill(base, layout, originals))

    @torch.no_grad()
    def _lay_out(self, base: CausalLM, place: Path) -> tuple[Layout, Originals]:
        """The files of the merged model, without values; the base is left as the shapes of it.

        Raises:
            NotStreamed: transformers would not write every tensor as it is.
        """
        originals = Originals(hollow(base.hf, self._dtype))
        layout = Layout(base.hf)
        with layout.saving():
            self._write(base, place, layout.held)
        return layout, originals

    @torch.no_grad()
    def _fill(self, base: CausalLM, layout: Layout, originals: Originals) -> list[str]:
        """Write every value to its place; names of those that were rounded stochastically."""
        drawn, rows = list[str](), self.model.new_rows
        late = {} if rows is None else _vocabulary(base)
        for name, make in self._making(originals, self.recipe.export.rounding, drawn):
            stop.poll()
            if name in late:  # rows of new tokens are still to be put into it
                late[name].register_parameter("weight", _parameter(make().clone()))
            else:
                write_tensor(layout.places[name], make())
        if rows is not None:
            take_in(base, rows)
        for name, module in late.items():
            write_tensor(layout.places[name], module.get_parameter("weight"))
        return drawn

    def _read(self, place: Path) -> CausalLM:
        section = as_written(self._section(), place, self.recipe.export.dtype)
        merged = self._open(section)
        if merged is None:
            return super()._read(place)
        read_on_call(merged, self.model.device)
        prove(merged, section, self.model.device)
        return merged

    @torch.no_grad()
    def _rounded_to_nearest(self) -> CausalLM:
        base = self._open(self._section())
        if base is None:
            return super()._rounded_to_nearest()
        layers, rows = (
            waiting(base.hf).keys() - {f"{name}.weight" for name in base.direct},
            self.model.new_rows,
        )
        late = {} if rows is None else _vocabulary(base)
        makers: dict[str, Callable[[], Tensor]] = {}
        for name, make in self._making(Originals(dict(base.hf.named_parameters())), "nearest"):
            stop.poll()
            if name in layers:
                makers[name] = make
            else:
                _give(base, name, make().clone() if name in late else make())
        if rows is not None:
            take_in(base, rows)
        give_on_call(base.hf, makers, self.model.device)
        base.unread, base.softcap, base.scale = None, self.model.softcap, self.model.scale
        base.set_attention(self.model.attention)
        return base

    def _making(
        self, originals: Originals, method: str | None, drawn: list[str] | None = None
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        rounding, onto = self._rounding(method), self.recipe.export.onto
        return merged_one_by_one(
            originals, self.model, onto=onto, dtype=self._dtype, rounding=rounding, drawn=drawn
        )

    def _open(self, section: ModelSection) -> CausalLM | None:
        """The model of a section with its layers still in their files, and of the rest what the run holds too."""
        if section.weights != "pretrained" or self.model.pruned is not None or section.experts == "split":
            return None  # drawn as a whole, cut where all of it stands, or put together from parts
        try:
            model = open_model(section, self.folder.trusted)
        except NotStreamed as reason:
            _tell(reason)
            return None
        share(model, self.model)
        return model

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[str(self.recipe.export.dtype)]


def _tell(reason: NotStreamed) -> None:
    if str(reason):
        say(f"model.name: the dense model is in memory as a whole ({reason})")


def _vocabulary(base: CausalLM) -> dict[str, nn.Module]:
    """The embedding, and a head that is not tied to it, by the names of their weights."""
    modules = [base.hf.get_input_embeddings(), base.hf.get_output_embeddings()]
    by_weight = {id(module.weight): module for module in reversed(modules) if module is not None}
    return {name: by_weight[id(p)] for name, p in base.hf.named_parameters() if id(p) in by_weight}


def _give(base: CausalLM, name: str, value: Tensor) -> None:
    """Let a parameter have another value, wherever it stands; one that waits for its values stands in one place."""
    parameter = base.hf.get_parameter(name)
    if parameter.is_meta:
        parent, _, leaf = name.rpartition(".")
        base.hf.get_submodule(parent).register_parameter(leaf, _parameter(value))
    else:
        parameter.data = value


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
