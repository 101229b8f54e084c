"""The posterior of `lrft.ops.laplace` over a trained adapter: measured on training rows, asked about others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.evaluation.choices import Choice
from lrft.evaluation.jacobians import Look, looks
from lrft.evaluation.pairs import Pair, parameters_of
from lrft.evaluation.subject import Subject
from lrft.ops.kfac import Sum
from lrft.ops.laplace import STEPS, Block, evidence_of, fisher_roots, predictive, variance
from lrft.registry.errors import NumericalError


@dataclass(frozen=True)
class Tried:
    """One temperature, the prior's precision that is best with it, and the evidence there."""

    temperature: float
    prior_precision: float
    log_evidence: float
    log_likelihood: float


@dataclass(frozen=True)
class Posterior:
    """The curvature of every factor, by `SITE.A` and `SITE.B`, with the prior and the temperature that were chosen."""

    blocks: Mapping[str, Block]
    chosen: Tried
    tried: Sequence[Tried]
    rows: int
    parameters: int


def fit(
    subject: Subject,
    pairs: Sequence[Pair],
    choices: Sequence[Choice],
    *,
    temperatures: Sequence[float] = (1.0,),
    rank: int | None = 10,
    above: int = 512,
    steps: int = STEPS,
    tokens: int | None = None,
) -> Posterior:
    """The posterior given these rows, at the temperature of largest evidence.

    Args:
        rank, above: sides of `above` numbers or more keep `rank` eigenpairs; None keeps all of every side.
        steps: of Adam, for the prior's precision.
        tokens: of a batch; by default those of an evaluation.

    Raises:
        NumericalError: no evidence is to be had at a temperature.
    """
    sums = _Sums(pairs, temperatures, rank, above)
    likelihoods = [0.0] * len(temperatures)
    gold = torch.tensor([one.gold for one in choices])
    for indices, logits, found in looks(subject, pairs, choices, "curvature", tokens or subject.batch_tokens):
        for k, temperature in enumerate(temperatures):
            log_p = torch.log_softmax(logits.double() / temperature, dim=-1).cpu()
            likelihoods[k] += float(log_p.gather(1, gold[indices][:, None]).sum())
        sums.add(logits, found)
    squared = sum(float(factor.detach().double().square().sum()) for factor in parameters_of(pairs))
    made = [sums.blocks(k, len(choices)) for k in range(len(temperatures))]
    tried = []
    for temperature, blocks, likelihood in zip(temperatures, made, likelihoods, strict=True):
        precision, evidence = evidence_of(list(blocks.values()), likelihood, squared).best(steps)
        if not (math.isfinite(precision) and math.isfinite(evidence) and math.isfinite(likelihood)):
            raise NumericalError(
                f"at temperature {temperature:g} the evidence is no finite number; give temperatures nearer to 1"
            )
        tried.append(Tried(temperature, precision, evidence, likelihood))
    best = max(range(len(tried)), key=lambda k: tried[k].log_evidence)
    parameters = sum(factor.numel() for factor in parameters_of(pairs))
    return Posterior(made[best], tried[best], tried, len(choices), parameters)


def probabilities(
    subject: Subject,
    pairs: Sequence[Pair],
    choices: Sequence[Choice],
    posterior: Posterior,
    samples: int,
    tokens: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of every row (C,) float64: the probabilities of the adapter as it is, and those of the posterior.

    Samples are drawn from one seed, in the order of the batches, so the same rows give the same numbers.

    Raises:
        NumericalError: the posterior is none, as where the prior's precision is all but 0.
    """
    before: list[Tensor] = [torch.empty(0)] * len(choices)
    after: list[Tensor] = [torch.empty(0)] * len(choices)
    tau, precision = posterior.chosen.temperature, posterior.chosen.prior_precision
    generator = torch.Generator().manual_seed(0)
    for indices, logits, found in looks(subject, pairs, choices, "posterior", tokens or subject.batch_tokens):
        with torch.no_grad():
            jacobians = {
                f"{pair.name}.{factor}": J
                for pair in pairs
                for factor, J in found[pair.name].jacobians(pair).items()
            }
            spread = variance(posterior.blocks, jacobians, precision)
            sure = torch.softmax(logits.double(), dim=-1).cpu()
            try:
                unsure = predictive(logits.double() / tau, spread / tau**2, samples, generator)
            except ValueError as error:
                raise NumericalError(
                    f"the posterior gives these rows no probabilities ({error}); measure it again, at a temperature "
                    "nearer to 1"
                ) from None
        for place, index in enumerate(indices):
            before[index], after[index] = sure[place], unsure[place]
    return before, after


class _Sums:
    """A sum for the inputs of every factor, and one for its gradients at every temperature."""

    def __init__(
        self, pairs: Sequence[Pair], temperatures: Sequence[float], rank: int | None, above: int
    ) -> None:
        self.pairs, self.temperatures = pairs, temperatures
        self.right: dict[str, Sum] = {}
        self.left: dict[str, list[Sum]] = {}
        for pair in pairs:
            for name, factor in (("A", pair.A), ("B", pair.B)):
                m, p = factor.shape
                kept = [
                    Sum(d, rank if d >= above else None, factor.device) for d in (p, *[m] * len(temperatures))
                ]
                self.right[f"{pair.name}.{name}"], *self.left[f"{pair.name}.{name}"] = kept

    @torch.no_grad()
    def add(self, logits: Tensor, found: Mapping[str, Look]) -> None:
        roots = [fisher_roots(logits, temperature) for temperature in self.temperatures]
        for pair in self.pairs:
            seen = found[pair.name]
            gradients = seen.gradients(pair)
            for name, inputs in seen.inputs(pair).items():
                key = f"{pair.name}.{name}"
                self.right[key].add(inputs[seen.real])
                for left, root in zip(self.left[key], roots, strict=True):
                    weighted = torch.einsum("nkc,cntm->kntm", root, gradients[name])
                    left.add(weighted[:, seen.real].flatten(0, 1))

    def blocks(self, temperature: int, rows: int) -> dict[str, Block]:
        """The curvature H of every factor: 1 / rows of the product of its two sums."""
        return {
            key: Block(self.left[key][temperature].factor(), right.factor()).scaled(1 / rows)
            for key, right in self.right.items()
        }
