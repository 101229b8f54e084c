"""A model cut in three: its first and last blocks at a client, those between at a server, and a counted link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.params import ParamInfo
from lrft.model.causal_lm import CausalLM
from lrft.model.probe import batch_of
from lrft.model.recompute import recomputable
from lrft.ops.linalg import Context
from lrft.registry.errors import RecipeError

Change = Callable[[Tensor], Tensor]


@dataclass
class Link:
    """Bytes that went to the server (`up`) and came from it (`down`)."""

    up: int = 0
    down: int = 0

    def count(self, sent: Tensor, up: bool) -> None:
        """Count the numbers of a tensor in the precision in which it travels."""
        size = sent.numel() * sent.element_size()
        self.up, self.down = self.up + size * up, self.down + size * (not up)


class SplitModel:
    """A model whose first `head` blocks, with the embedding, and last `tail`, with norm and head, are a client's.

    The blocks between are the server's body. Nothing is copied: one model computes, and what passes from one part to
    another goes through a `Link`, hidden states on the way forward and their gradients on the way back.

    Args:
        trains: everything that does.

    Raises:
        RecipeError: the model cannot be cut so, or a part that the server holds trains.
    """

    def __init__(self, model: CausalLM, head: int, tail: int, trains: Sequence[ParamInfo]) -> None:
        self.model = model
        blocks = recomputable(model.hf)
        if head + tail >= len(blocks):
            raise RecipeError(
                f"{head} blocks of head and {tail} of tail leave none of the {len(blocks)} that "
                f"{type(model.hf).__name__} lets us cut between; write fewer",
                "federate.aggregate",
            )
        self.body = blocks[head : len(blocks) - tail]
        held = {id(param): place for place, block in enumerate(blocks) for param in block.parameters()}
        inside = range(head, len(blocks) - tail)
        if odd := [info.name for info in trains if held.get(id(info.param)) in inside]:
            raise RecipeError(
                f"{odd[0]} is in the body, which the server holds frozen; let nothing train in blocks "
                f"{inside.start} to {inside.stop - 1} (adapter.layers, adapter.targets, trainable.weights)",
                "federate.aggregate",
            )
        self._prove()

    @contextmanager
    def linked(self, link: Link, hide: Change | None = None) -> Iterator[None]:
        """Let what passes between client and server in the passes within be counted.

        Args:
            hide: changes the hidden states that go up; their gradients come back as they are.
        """
        hooks = [
            self.body[0].register_forward_pre_hook(_entering(link, hide or _as_it_is), with_kwargs=True),
            self.body[-1].register_forward_hook(_leaving(link)),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Let the passes within go from head to tail, as if the body were not there; nothing travels."""
        own = [vars(block).get("forward") for block in self.body]
        for block in self.body:
            block.forward = _identity
        try:
            yield
        finally:
            for block, forward in zip(self.body, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    @torch.no_grad()
    def _prove(self) -> None:
        """Hidden states must enter the body once and leave it once, and it must be possible to go around it."""
        batch, link, trained = batch_of([[[1, 2, 3, 4]]]).to(self.model.device), Link(), self.model.training
        self.model.eval()
        try:
            whole = self.model.hidden(batch)
            with self.linked(link):
                cut = self.model.hidden(batch)
            with self.bypassed():
                around = self.model.hidden(batch)
            fits = torch.equal(whole, cut) and around.shape == whole.shape and link.up == link.down > 0
            why = "" if fits else "its blocks do not compute one after another on hidden states alone"
        except Exception as error:  # whatever a model's own code raises
            why = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        finally:
            self.model.train(trained)
        if why:
            raise RecipeError(
                f"{type(self.model.hf).__name__} cannot be cut between its blocks ({why}); choose another aggregator",
                "federate.aggregate.method",
            )


class _Crossing(torch.autograd.Function):
    """The identity, whose input is counted on the way there and whose gradient on the way back."""

    @staticmethod
    def forward(ctx: _Kept, hidden: Tensor, link: Link, up: bool) -> Tensor:
        ctx.link, ctx.up = link, up
        link.count(hidden, up)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.link.count(grads[0], not ctx.up)
        return grads[0], None, None


class _Kept(Context):
    """What a crossing keeps for its way back."""

    link: Link
    up: bool


def _cross(hidden: Tensor, link: Link, up: bool) -> Tensor:
    crossed: Tensor = _Crossing.apply(hidden, link, up)  # type: ignore[no-untyped-call]
    return crossed


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _entering(link: Link, hide: Change) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Inputs]:
    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Inputs:
        if inputs:
            return (_cross(hide(inputs[0]), link, True), *inputs[1:]), named
        return inputs, {**named, "hidden_states": _cross(hide(named["hidden_states"]), link, True)}

    return enter


def _leaving(link: Link) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return _cross(output, link, False)
        return (_cross(output[0], link, False), *output[1:])

    return leave


def _as_it_is(hidden: Tensor) -> Tensor:
    return hidden


def _identity(*inputs: Any, **named: Any) -> Any:
    return inputs[0] if inputs else named["hidden_states"]
