"""How far the step of a low-rank product is from the full gradient, layer by layer and step by step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrft.core.analysis import Analysis
from lrft.core.optimizer import Optimizer, contract_of
from lrft.core.run import Run
from lrft.methods.analysis._factors import with_factors
from lrft.registry.axes import ANALYSES
from lrft.registry.config import Field, MethodConfig
from lrft.registry.errors import RecipeError


@ANALYSES.register
class GradientGap(Analysis):
    """Distance of the step that gradient descent on A and B makes of s B A from the full gradient, site by site.

        D        = s (B gA + gB A),  gA = dL/dA,  gB = dL/dB
        plain    = ||D - G|| / ||G||
        adjusted = the same with the gA', gB' that the optimizer makes of them, where it makes any; else plain
        cosine   = <D, G> / (||D|| ||G||)

    with G = sum of dy^T x over the step's tokens the full gradient, from hooks, so the base may be stored in any
    format; s the adapter's scale. The cosine is the direction alone, whatever s. Frobenius norms, float32; gradients
    are unclipped.

    Shapes: G, D (out, in), A, gA (r, in), B, gB (out, r).
    Found: `plain`, `adjusted` and `cosine` for each `STEP:SITE` of the first `steps` steps; nothing where G is 0, and
    no `cosine` where D is 0. Costs one product (out, tokens) x (tokens, in) a layer, and G in memory.
    Source: Wang et al., "LoRA-Pro", ICLR 2025, arXiv 2407.18242, section 2, which states the objective
    ||g_equiv - g||_F^2; the cosine: Wang et al., "LoRA-GA", 2024, arXiv 2407.05000, whose objective leaves the scale of
    G free.
    Departures: the quotient by ||G|| is ours, so that layers compare.
    """

    requires = {"low_rank", "trained_pair", "backward"}

    config: Config

    class Config(MethodConfig):
        steps: int = Field(20, gt=0, description="how many steps are measured")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.full: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []

    def start(self, run: Run) -> None:
        if run.accelerator is not None and run.accelerator.num_processes > 1:
            message = "sees the gradients of one process alone; run this recipe in one process"
            raise RecipeError(f"gradient_gap {message}", "analyse")
        if run.optimizer is None or contract_of(run.optimizer).consumes_gradients:
            raise RecipeError(
                "gradient_gap needs all gradients at once; write optimizer.per_layer: false", "analyse"
            )
        if any(getattr(module.adapter.config, "dropout", 0) for _, module in run.adapted()):
            raise RecipeError("gradient_gap needs one matrix for all tokens; write 0", "adapter.dropout")
        sites = with_factors(run, self.name)
        if run.step < self.config.steps:
            for module in sites:
                watch = partial(self._watch, module.adapter.site.name)
                self.handles.append(module.register_forward_hook(watch))

    def before_step(self, run: Run) -> None:
        self.full = {}

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        if not self.handles:
            return
        optimizer = contract_of(run.optimizer)
        adjust = optimizer.adjusted_gradients if isinstance(optimizer, Optimizer) else None
        for module in with_factors(run, self.name):
            adapter, site = module.adapter, module.adapter.site.name
            G, A, B = self.full.get(site), adapter.get_parameter("A"), adapter.get_parameter("B")
            if G is None or A.grad is None or B.grad is None or not (size := float(G.norm())):
                continue
            key, scaling = f"{run.step + 1}:{site}", adapter.scaling
            step = equivalent(A.grad, B.grad, A, B, scaling)
            plain = float((step - G).norm()) / size
            better = adjust(B) if adjust is not None else None
            best = step if better is None else equivalent(better[0], better[1], A, B, scaling)
            self.note(plain={key: plain}, adjusted={key: float((best - G).norm()) / size})
            if length := float(step.norm()):
                self.note(cosine={key: float((step * G).sum()) / (length * size)})
        self.full = {}
        if run.step + 1 >= self.config.steps:
            self.close()

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _watch(self, site: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return  # a pass for scores alone
        x = inputs[0].detach().flatten(0, -2).float()

        def take(dy: Tensor) -> None:
            G = dy.detach().flatten(0, -2).float().mT @ x
            self.full[site] = self.full[site] + G if site in self.full else G

        output.register_hook(take)


def equivalent(gA: Tensor, gB: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The step of the product, s (B gA + gB A), (out, in) float32."""
    return scaling * (B.float() @ gA.float() + gB.float() @ A.float())
