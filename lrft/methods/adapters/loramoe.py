"""LoRAMoE: all experts at once, softly, with a balance that may favour the experts of a task type."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.context import current_batch
from lrft.core.params import Site
from lrft.methods.adapters._experts import Experts
from lrft.methods.adapters._routing import document_sums, squared_variation
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field
from lrft.registry.errors import DataError


@ADAPTERS.register
class LoRAMoE(Experts):
    """Soft mixture of LoRA experts: every expert weighs in for every token, with localized balancing.

        y = x W^T + b + s sum_e g_e(x) (drop_e(x) A_e^T) B_e^T,  e = 1 ... E
        g = softmax(x R^T)
        loss += sum over sites of beta var(Z) / mean(Z)^2
        Z[n, e] = I[n, e] * sum of g_e over the tokens of document n
        I[n, e] = 1 + delta where expert e belongs to the task type of document n, 1 - delta elsewhere

    with E = `experts`, r = `rank` of each expert, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`),
    beta = `beta`, delta = `delta`; drop_e is dropout of probability `dropout`, drawn apart for every expert; var and
    mean are over all entries of Z. Task types 1 and 0 own the first and the second half of the experts. Z constant
    gives 0; delta = 0 makes it the plain balance of all experts. R and g are float32 whatever the activations are.

    Shapes: A_e (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B_e (out, r) = 0, so W' = W at step 0; R (E, in) as A_e, no bias;
    Z (documents, E).
    Trains: E (r (in + out) + in) numbers per site.
    Source: Dou et al., 2023, arXiv 2312.09979, and the authors' code (Ablustrund/LoRAMoE).
    Departures: the penalty's form is the code's (the paper prints var / mean); `beta` is 0.1, the paper's as far as it
    is known, and `delta` 0, where the code's script switches both off; padding does not enter Z, and the documents of a
    packed row are samples of their own.
    Advice: the change depends on the token, so it cannot be merged. `delta` > 0 needs task types, which no data format
    carries yet.
    """

    provides = {"adapters", "experts", "expert_count"}

    config: Config

    class Config(Experts.Config):
        targets: str | list[str] = Field(["mlp.*"], description="as for every adapter; by default the MLPs")
        rank: int = Field(4, gt=0, le=65_536, description="rank of each expert")
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        beta: float = Field(0.1, ge=0, description="weight of the balance penalty")
        delta: float = Field(0.0, ge=0, lt=1, description="how far the experts of a task type are favoured")

    def __init__(self, config: Config, site: Site) -> None:
        if config.delta and "task_types" not in {field.name for field in fields(Batch)}:
            raise ValueError("delta needs task types, which no data format carries yet; write delta: 0")
        if config.delta and config.experts % 2:
            raise ValueError(f"delta halves the experts between two task types; {config.experts} is odd")
        super().__init__(config, site)

    def gates(self, x: Tensor, probabilities: Tensor) -> Tensor:
        if self.training and self.config.beta > 0:
            sums = document_sums(probabilities, x)
            if self.config.delta:
                sums = sums * importance(_task_types(), self.config.delta, sums.shape[1]).to(sums)
            self.routing.leave(sums)
        return probabilities

    def penalty(self) -> Tensor | None:
        left = self.routing.take()
        return self.config.beta * squared_variation(left[0]) if left else None


def importance(types: Tensor, delta: float, experts: int) -> Tensor:
    """I (documents, E): 1 + delta where the expert belongs to the document's type, 1 - delta elsewhere.

    Args:
        types: (documents,), 1 owns the first half of the experts and 0 the second.
    """
    first = types.reshape(-1, 1) == 1
    half = experts // 2
    own = torch.cat([first.expand(-1, half), ~first.expand(-1, half)], dim=1)
    return torch.where(own, 1.0 + delta, 1.0 - delta)


def _task_types() -> Tensor:
    types: object = getattr(current_batch(), "task_types", None)
    if types is None:
        raise DataError(
            "adapter.delta needs a task type, 0 or 1, with every row; give them or write delta: 0"
        )
    return torch.as_tensor(types)
