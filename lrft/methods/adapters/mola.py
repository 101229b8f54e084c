"""MoLA: a few of several LoRA experts for every token, with a number of experts that depends on the layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lrft.core.adapter import Shared
from lrft.core.in_layer import layer_of
from lrft.core.params import Site
from lrft.methods.adapters._experts import Experts
from lrft.methods.adapters._routing import Balance, choose, measure, spread, switch_balance
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, model_validator


@ADAPTERS.register
class MoLA(Experts):
    """Top-k mixture of LoRA experts at every linear layer, with a number of experts that may differ by layer.

        y = x W^T + b + s sum over the k chosen e of w_e(x) (drop_e(x) A_e^T) B_e^T
        w = the k largest of softmax(x R^T), divided by their sum
        loss += balance sum over layers of E sum_e f_e p_e

    with k = `top_k`, r = `rank` of each expert, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`); drop_e is
    dropout of probability `dropout`, drawn apart for every expert. E is that of the site's layer: `experts` everywhere,
    or what `allocate: mola` sets. f_e is the share of token slots sent to expert e (sum 1) and p_e its mean
    probability, both over the real tokens of all the layer's sites together; a layer's term is `balance` when routing
    is uniform. A step's loss of balance is the mean of its micro-batches', as in the code, so rows cut into others have
    another. R and w are float32.

    Shapes: A_e (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B_e (out, r) = 0, so W' = W at step 0; R (E, in) as A_e, no bias,
    one per site.
    Trains: E (r (in + out) + in) numbers per site. Experts not chosen get no gradient. A step multiplies every token
    with all experts, chosen or not, as a LoRA of rank E r does, and passes over x once more for each draw of their
    dropout.
    Source: Gao et al., "Higher Layers Need More LoRA Experts", 2024, arXiv 2402.08562, and the authors' code
    (GCYZSL/MoLA), which balances a layer's routers as one where the paper's text has a term for each.
    Departures: padding is left out of f and p; all experts' products are formed and those not chosen weigh 0; the
    router is float32 where the code's is in the activations' precision; the code leaves the penalty off by default.
    Advice: 2, 4, 6, 8 experts from low layers to high is the paper's best. The change depends on the token, so it
    cannot be merged.
    """

    provides = {"adapters", "experts", "expert_count", "routed"}

    config: Config

    class Config(Experts.Config):
        experts: int = Field(
            5, gt=0, description="experts at every site; an allocation may change it by layer"
        )
        top_k: int = Field(2, gt=0, description="experts a token is sent to")
        balance: float = Field(1e-3, ge=0, description="weight of the balance loss; 0 for none")

        @model_validator(mode="after")
        def _check_top_k(self) -> MoLA.Config:
            if self.top_k > self.experts:
                raise ValueError(f"top_k is {self.top_k}, but there are {self.experts} experts")
            return self

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Balance()

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> MoLA:
        made = cls(config, site)
        if isinstance(shared, Balance):
            # Routers with different numbers of experts cannot be balanced as one.
            made.routing = shared.join(f"{layer_of(site.name)} {config.experts}")
        return made

    def gates(self, x: Tensor, probabilities: Tensor) -> Tensor:
        weights, chosen = choose(probabilities, self.config.top_k)
        if self.training:
            self.routing.leave(measure(x, probabilities, chosen))
        return spread(weights, chosen, self.config.experts)

    def penalty(self) -> Tensor | None:
        loads = self.routing.take()
        return self.config.balance * switch_balance(loads) if loads and self.config.balance > 0 else None
