"""PELA's objective: a low-rank student beside the model that it approximates, layer by layer and weight by weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.batch import Batch
from lrft.core.in_layer import in_layer
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._reference import base_alone
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field


@OBJECTIVES.register
class PELA(CrossEntropy):
    """Feature distillation and a bound on the change of every weight, beside next-token cross-entropy.

        loss = sum over supervised positions t of  CE_t + (k_f / L) sum over layers l of mean_d (h_l,t - h*_l,t)^2
                                                        + (k_w / n) sum over sites of (max |P Q - W| - eps)^2

    with CE_t and `label_smoothing` as in `cross_entropy`, h_l the output of decoder layer l of L, h* that of the base
    model without its adapters, in evaluation mode and without gradient; k_f = `features`, k_w = `weights`, eps =
    `epsilon`, P Q and W the product and the weight of each of n sites, max over the entries of their difference.

    Shapes: h (tokens, d). At step 0 neither term is 0 unless the product is W: the SVD is the best in another norm.
    Trains: what the adapter trains; adds no parameter. A second forward pass without gradient, whose h* of the
    supervised positions are kept for the step, and for each site a matrix (out, in), one at a time. Of max |P Q - W|
    the gradient is that of the one entry, so no such matrix is kept.
    Source: Guo et al., "PELA", CVPR 2024, arXiv 2310.10700, and the authors' code of its vision-language model: k_f
    0.1, k_w 1, eps 0.001 there; k_f 1 in the vision ones. The distance is to eps from both sides, as in the code.
    Departures: h of supervised positions, so that batches add up; on text (`data.format: text`) these are all tokens.
    The authors' loop leaves dropout on in the teacher. A distance of the logits, of weight 0 there, is left out.
    """

    aliases = {"feature_distillation": "adapter: pela\nobjective: pela"}
    provides = {"backward"}
    requires = {"stands_for_weight", "fixed_base", "beside_base", "eager"}

    config: Config

    class Config(CrossEntropy.Config):
        features: float = Field(0.1, ge=0, description="weight of the distance of the layers' outputs")
        weights: float = Field(1.0, ge=0, description="weight of the bound on the change of every weight")
        epsilon: float = Field(
            0.001, ge=0, description="largest change of an entry of a weight that is wanted"
        )

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        assert isinstance(model, nn.Module), "adapters sit in a module"
        sites = list(adapted(model))
        layers = list(dict.fromkeys(found.path for name, _ in sites if (found := in_layer(name))))
        if not layers or not self.config.features:
            return super().__call__(model, batch, run) + self._bound(batch, sites)
        with torch.no_grad(), base_alone(model), _outputs(model, layers, batch) as theirs:
            model.hidden(batch)
        with _outputs(model, layers, batch) as ours:
            loss = super().__call__(model, batch, run)
        distances = [
            (mine - given).float().square().mean(1).sum() for mine, given in zip(ours, theirs, strict=True)
        ]
        loss = loss + self.config.features / len(layers) * torch.stack(distances).sum()
        return loss + self._bound(batch, sites)

    def _bound(self, batch: Batch, sites: list[tuple[str, Adapted]]) -> Tensor | float:
        products = [site for _, site in sites if "stands_for_weight" in site.adapter.provides]
        if not products or not self.config.weights:
            return 0.0
        gaps = torch.stack([largest_gap(site) for site in products])
        return self.config.weights * batch.targets.numel() * (gaps - self.config.epsilon).square().mean()


def largest_gap(site: Adapted) -> Tensor:
    """Max |P Q - W| over the entries, a float32 scalar with the graph of that entry."""
    A, B = site.adapter.get_parameter("A"), site.adapter.get_parameter("B")
    with torch.no_grad():
        weight = site.base.weight().float()
        place = (B.float() @ A.float() - weight).abs().argmax().view(1)
        row, column = place // A.shape[1], place % A.shape[1]
        held = weight.flatten().index_select(0, place)
    entry = (B.index_select(0, row)[0] * A.index_select(1, column)[:, 0]).sum()
    return (entry - held[0]).abs()


@contextmanager
def _outputs(model: nn.Module, layers: list[str], batch: Batch) -> Iterator[list[Tensor]]:
    """What these layers give at the supervised positions, (N, d) each, once a forward pass is through."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(batch.supervised_rows(hidden))

    handles = [model.get_submodule(layer).register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
