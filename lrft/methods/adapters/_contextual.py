"""Which channels of every layer a micro-batch goes through, by what a few directions of the weights say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.adapter import Hosting, Shared
from lrft.core.batch import Batch
from lrft.core.context import current_batch, real_tokens, share_done
from lrft.core.frozen import FrozenLinear
from lrft.core.in_layer import in_layer
from lrft.ops.channel_matmul import Channels, channel_linear
from lrft.ops.linalg import truncated_svd
from lrft.registry.errors import RecipeError

ATTENTION, BLOCK = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CHUNK = 1024  # tokens whose intermediate channels are predicted at a time
Predictor = tuple[Tensor, Tensor]
"""down (r, in) and up (out, r) with W ~ up down."""


class Contextual(Shared):
    """Chooses, before an attention or a feed-forward block computes, the channels of its layers.

    It holds nothing that trains. Predictors are made of the weights when they are first asked for, with a seed of their
    own, and are not saved.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layers: dict[str, nn.Module] = {}
        self.chosen: dict[str, Channels | None] = {}
        self._predictors: dict[str, Predictor] = {}
        self._tokens: tuple[Batch, torch.device, Tensor, Tensor] | None = None

    def bind(self, model: Hosting) -> None:
        """Watch the blocks of the layers that are sparse.

        Raises:
            RecipeError: the model's layers are of another form, or none or no channel is left.
        """
        found = dict(model.hf.named_modules())
        attentions, blocks = _with(found, ATTENTION), _with(found, BLOCK)
        text: Any = getattr(model.hf, "config", None)
        if text is None:
            return  # a layer by itself
        many = text.get_text_config().num_hidden_layers
        if (
            len(attentions) != many
            or len(blocks) != many
            or any(not hasattr(b, "act_fn") for b in blocks.values())
        ):
            message = f"knows layers of an attention ({', '.join(ATTENTION)}) and a feed-forward block "
            message += f"({', '.join(BLOCK)}, act_fn), which this model's are not; use lora"
            raise RecipeError(message, "adapter.method")
        for key, members, watch in (
            ("attention", attentions, self._of_attention),
            ("feed_forward", blocks, self._of_block),
        ):
            names = list(members)
            for place in self._sparse(key, many):
                self._watch(names[place], members[names[place]], watch)

    def peft_tensors(self) -> dict[str, Tensor]:
        """None: what is trained is a LoRA."""
        return {}

    def _sparse(self, key: str, many: int) -> Sequence[int]:
        """The layers of `many` whose attention, or feed-forward block, is sparse."""
        said: list[int] | None = getattr(self.config, f"{key}_layers")
        if said is not None:
            if max(said) >= many:
                message = f"names layer {max(said)}, and the model has 0 to {many - 1}; write those"
                raise RecipeError(message, f"adapter.{key}_layers")
            return said
        between = range(self.config.dense_first, many - self.config.dense_last)
        if not between:
            message = f"and dense_last leave none of {many} layers sparse; write less"
            raise RecipeError(message, "adapter.dense_first")
        return between

    def _watch(self, name: str, block: nn.Module, choose: Any) -> None:
        key, parts = ("attention", ATTENTION) if choose == self._of_attention else ("feed_forward", BLOCK)
        share = getattr(self.config, key)
        if share == 0:
            return
        for part in parts:
            layer = block.get_submodule(part)
            path = f"{name}.{part}"
            self.layers[path] = layer
            if isinstance(layer, FrozenLinear):
                layer.forward = partial(self._through, path, layer)  # type: ignore[method-assign]
        channels = self._base(f"{name}.{parts[1] if key == 'attention' else parts[0]}").out_features
        if kept_of(channels, share) == 0:
            raise RecipeError(
                f"leaves none of the {channels} channels of {name}; write less", f"adapter.{key}"
            )
        block.register_forward_pre_hook(partial(self._before, name, choose), with_kwargs=True)

    def _through(self, path: str, layer: FrozenLinear, x: Tensor) -> Tensor:
        channels = self.chosen.get(path)
        return type(layer).forward(layer, x) if channels is None else channel_linear(x, layer, channels)

    def _before(
        self, name: str, choose: Any, block: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]
    ) -> None:
        x = inputs[0] if inputs else named["hidden_states"]
        found = {}
        if self._is_sparse(block):
            with torch.no_grad():
                found = choose(name, block, x)
        for part in (*ATTENTION, *BLOCK):
            self.chosen[f"{name}.{part}"] = found.get(part)

    def _is_sparse(self, block: nn.Module) -> bool:
        """Whether what trains is computed in a step, which is not one of the first; no reference for it."""
        done = share_done()
        trains = block.training and torch.is_grad_enabled()
        return trains and done is not None and done >= self.config.dense_steps

    def _of_attention(self, name: str, block: nn.Module, x: Tensor) -> dict[str, Channels]:
        seen = _real(x)
        q, k, v = (
            projected_norms(seen, *self._predictor(f"{name}.{part}"))
            for part in ("q_proj", "k_proj", "v_proj")
        )
        width, share = int(block.head_dim), self.config.attention  # type: ignore[arg-type]
        groups = len(q) // len(k)
        score = q.view(-1, groups, width).mean(1).flatten() * k
        qk, vo = (largest(norms, share) for norms in (score, v))
        tokens = self._divided(x)
        return {
            "q_proj": Channels(in_all_groups(qk, groups, width), False, *tokens),
            "k_proj": Channels(qk, False, *tokens),
            "v_proj": Channels(vo, False, *tokens),
            "o_proj": Channels(in_all_groups(vo, groups, width), True, *tokens),
        }

    def _of_block(self, name: str, block: nn.Module, x: Tensor) -> dict[str, Channels]:
        gate, up = (self._predictor(f"{name}.{part}") for part in ("gate_proj", "up_proj"))
        gate = (gate[0], gate[1] * float(getattr(block, "gate_multiplier", 1.0)))
        index = largest(
            gated_norms(_real(x), gate, up, block.get_submodule("act_fn")), self.config.feed_forward
        )
        tokens = self._divided(x)
        return {part: Channels(index, part == "down_proj", *tokens) for part in BLOCK}

    def _divided(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices of the tokens that are read, and of those that are learnt; a label's is what it is read from."""
        batch = current_batch()
        assert batch is not None and batch.input_ids.numel() == x.shape[:-1].numel(), (
            "tokens of another batch"
        )
        known = self._tokens
        if known is None or known[0] is not batch or known[1] != x.device:
            learnt = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
            told = (
                1 if batch.labels is None and not batch.texts else 0
            )  # a token is told from the one before it
            learnt[batch.supervised.cpu() + told] = True
            sparse, dense = (side.nonzero().flatten().to(x.device) for side in (~learnt, learnt))
            self._tokens = known = (batch, x.device, sparse, dense)
        return known[2], known[3]

    def _base(self, path: str) -> FrozenLinear:
        layer = self.layers[path]
        base = layer.base if isinstance(layer, Adapted) else layer
        assert isinstance(base, FrozenLinear), path
        return base

    def _predictor(self, path: str) -> Predictor:
        if path not in self._predictors:
            weight = self._base(path).weight().float()
            with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
                torch.manual_seed(0)  # a resumed run makes the same ones
                U, S, Vh = truncated_svd(weight, self.config.predictor_rank, None)
            self._predictors[path] = (S[:, None] * Vh, U)
        return self._predictors[path]


def _with(modules: Mapping[str, nn.Module], parts: tuple[str, ...]) -> dict[str, nn.Module]:
    """What holds these and stands in a decoder layer itself: beside a shared expert others compute all channels."""
    own = [name for name in modules if (found := in_layer(name)) and found.rest and "." not in found.rest]
    return {name: modules[name] for name in own if all(f"{name}.{part}" in modules for part in parts)}


def _real(x: Tensor) -> Tensor:
    """The tokens that are no padding, (tokens, in) in float32."""
    mask = real_tokens(x)
    return (x.flatten(0, -2) if mask is None else x[mask]).float()


def projected_norms(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """L2 norm over the tokens of every output of x (tokens, in) under up down, without forming the outputs."""
    t = x @ down.mT
    return ((up @ (t.mT @ t)) * up).sum(1).clamp_min(0).sqrt()


def gated_norms(x: Tensor, gate: Predictor, up: Predictor, act: nn.Module) -> Tensor:
    """L2 norm over the tokens of act(gate x) * up x, channel by channel."""
    total = x.new_zeros(len(up[1]))
    for rows in x.split(CHUNK):
        g, u = ((rows @ down.mT) @ wide.mT for down, wide in (gate, up))
        total += (act(g) * u).square().sum(0)
    return total.sqrt()


def largest(norms: Tensor, sparsity: float) -> Tensor:
    """Where the channels stand that are kept, ascending."""
    return norms.sort(descending=True, stable=True).indices[: kept_of(len(norms), sparsity)].sort().values


def kept_of(channels: int, sparsity: float) -> int:
    """How many channels are computed."""
    return int(channels * (1 - sparsity))  # as in the code, where 100 (1 - 0.9) is 9.99... and 9


def in_all_groups(index: Tensor, groups: int, width: int) -> Tensor:
    """Channels of the keys' heads, of `width` each, as those of all the queries' heads that read them."""
    heads = index[:, None] // width * groups + torch.arange(groups, device=index.device)
    return (heads * width + index[:, None] % width).flatten().sort().values
