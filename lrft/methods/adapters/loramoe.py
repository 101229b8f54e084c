"""LoRAMoE: all experts at once, softly, with a balance that may favour the experts of a task type."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lrft.core.context import current_batch, not_all_tokens
from lrft.core.params import Site
from lrft.methods.adapters._experts import Experts
from lrft.methods.adapters._routing import document_sums, squared_variation
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, Field, Iterator, Problem, RecipeView, model_validator


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
    mean are over all entries of Z. `types: {COLUMN: [one, other]}` names a column of `data.features` and its two task
    types, which own the first and the second half of the experts; a document of neither type, or of both, has I = 1.
    Z constant gives 0 and parts the types: of a document the half with I = 1 + delta then holds (1 - delta) / 2.
    delta = 0 makes it the plain balance of all experts. A step's penalty is the mean of its micro-batches', as in the
    code, so rows cut into others have another. R and g are float32 whatever the activations are.

    Shapes: A_e (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B_e (out, r) = 0, so W' = W at step 0; R (E, in) as A_e, no bias;
    Z (documents, E).
    Trains: E (r (in + out) + in) numbers per site. A step multiplies every token with all experts, chosen or not, as a
    LoRA of rank E r does, and passes over x once more for each draw of their dropout.
    Source: Dou et al., 2023, arXiv 2312.09979, and the authors' code (Ablustrund/LoRAMoE).
    Departures: the penalty's form is the code's (the paper prints var / mean); `beta` is 0.1, the paper's as far as it
    is known, and `delta` 0, where the code's script switches both off; padding does not enter Z, and the documents of a
    packed row are samples of their own.
    Advice: the paper's types are questions about knowledge of the world and all other tasks, its `delta` 0.1 as far as
    it is known. Types act through the penalty alone, so scores and generation do not need them. The change depends on
    the token, so it cannot be merged.
    """

    provides = {"adapters", "experts", "expert_count", "features", "training_features", "routed"}
    skipped = False  # every token goes to all experts

    config: Config

    class Config(Experts.Config):
        targets: str | list[str] = Field(["mlp.*"], description="as for every adapter; by default the MLPs")
        rank: int = Field(4, gt=0, le=65_536, description="rank of each expert")
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        beta: float = Field(0.1, ge=0, description="weight of the balance penalty")
        delta: float = Field(0.0, ge=0, lt=1, description="how far task types part the experts, with `types`")
        types: Annotated[dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]] | None, ADDED] = (
            Field(
                None,
                min_length=1,
                max_length=1,
                description="a column of `data.features` and its two task types, as {task: [knowledge, other]}",
            )
        )

        @model_validator(mode="after")
        def _check_types(self) -> LoRAMoE.Config:
            if self.delta and self.types is None:
                raise ValueError(
                    "delta parts two task types; write types: {COLUMN: [ONE, OTHER]}, or delta: 0"
                )
            if self.types is not None and not (self.delta and self.beta):
                raise ValueError(
                    "types act through beta and delta alone; write both above 0, or leave types out"
                )
            if any(one == other for one, other in (self.types or {}).values()):
                raise ValueError("types name one value twice; write two")
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Columns that are not read, or are read for nothing."""
            read, wanted = recipe["data.features"], list(self.types or {})
            if isinstance(read, list) and list(map(str, read)) != wanted:
                said = f"adapter.types is of {wanted[0]}" if wanted else "adapter.types is left out"
                yield Problem("data.features", f"{said}; write [{', '.join(wanted)}]")

    def __init__(self, config: Config, site: Site) -> None:
        if config.delta and config.experts % 2:
            raise ValueError(f"delta halves the experts between two task types; {config.experts} is odd")
        super().__init__(config, site)

    def gates(self, x: Tensor, probabilities: Tensor) -> Tensor:
        if self.training and (self.config.beta > 0 or self.routing.watched):
            self.routing.leave(document_sums(probabilities, x))
        return probabilities

    def penalty(self) -> Tensor | None:
        left = self.routing.take()
        if not left or self.config.beta == 0:
            return None
        (sums,) = left
        if self.config.delta:
            types = self._types(len(sums))
            sums = sums * importance(types, self.config.delta, sums.shape[1]).to(sums.device)
        return self.config.beta * squared_variation(sums)

    def _types(self, documents: int) -> Tensor:
        """Of each document of the micro-batch 1 where it is of the first type, -1 of the second, else 0."""
        batch, (one, other) = current_batch(), self.row_features(self.config)
        if batch is None or len(batch.features) != documents:
            raise not_all_tokens(self.site.name)
        return torch.tensor([float(one in held) - float(other in held) for held in batch.features])

    @staticmethod
    def row_features(config: Any) -> tuple[str, ...]:
        return tuple(
            f"{column}={value}" for column, values in (config.types or {}).items() for value in values
        )

    @classmethod
    def why_not_merged(cls, config: Any, site: Site) -> str:
        """The change depends on the token, whatever the types of its row."""
        return f"{cls.name} cannot be merged (site {site.name}); keep the adapter separate"


def importance(types: Tensor, delta: float, experts: int) -> Tensor:
    """I (documents, E): 1 + delta where the expert belongs to the document's type, 1 - delta elsewhere.

    Args:
        types: (documents,), 1 owns the first half of the experts, -1 the second, and 0 neither: I is 1.
    """
    half = torch.ones(experts // 2)
    return 1 + delta * types[:, None] * torch.cat([half, -half])
