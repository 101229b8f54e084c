"""Measuring a pretrained model at its sites, by inputs and output gradients, before anything is attached."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.params import Site
from lrft.core.stages import Signals, Statistic, Tokens, WarmUp
from lrft.model.causal_lm import CausalLM
from lrft.model.experts import tokens_of
from lrft.model.kept import is_kept, watching
from lrft.model.moving import moving
from lrft.registry.errors import DataError

Make = Callable[[str, str], Statistic]
"""(site name, statistic name) -> a fresh statistic with its options."""


def calibrate(
    model: CausalLM,
    sites: dict[str, Site],
    batches: Iterable[Batch],
    objective: Objective,
    make: Make,
    wants: Iterable[str],
    progress: Callable[[int], None] | None = None,
    warm_up: WarmUp | None = None,
) -> Signals:
    """The statistics `wants` of every site, over the micro-batches or until all have converged.

    Weights need no gradient: dL/dW is the sum of dy^T x, so this works on any storage. With gradients the model
    computes in training mode, as the authors' codes do; where no statistic asks for them, only the body runs, forward,
    in evaluation mode. The loss behind the gradients is the objective's, divided as for a step of this micro-batch.

    Sites that read the same tensor share a statistic `of_input` that was made with the same options.

    Args:
        batches: micro-batches; of one document each where a statistic is `per_document`.
        progress: hears how many micro-batches are done.
        warm_up: how all weights train meanwhile, a step a micro-batch, to be put back at the end.

    Returns:
        Site name -> statistic name -> tensor on the CPU; shared statistics are one tensor.

    Raises:
        DataError: a statistic could not be measured at a site.
    """
    names = list(wants)
    watch = _Watch({site: {name: make(site, name) for name in names} for site in sites})
    with watch.attached(model), moving(model.hf, warm_up) as step:
        for done, batch in enumerate(batches):
            stop.poll()
            watch.expect(batch, model.device)
            if not watch.live:
                break
            _run(model, batch.to(model.device), objective, watch.backward)
            step()
            watch.first = False
            if progress is not None:
                progress(done + 1)
    model.zero_grad(
        set_to_none=True
    )  # base weights that train have some, which are no part of the first step
    return watch.results()


@dataclass(frozen=True)
class _Totals:
    """A micro-batch as a whole step, for the objective's divisor."""

    targets: int
    examples: int
    micro_batch_count: int = 1


def _run(model: CausalLM, batch: Batch, objective: Objective, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            model.hidden(batch)
        return
    totals = _Totals(batch.targets.numel(), len(batch.examples))
    (objective(model, batch) / max(1, objective.divisor(totals))).backward()


class _Watch:
    """The statistics of all sites and the hooks that feed them.

    Attributes:
        statistics: site -> name -> statistic.
        live: (site, name) of the statistics that take the coming micro-batch.
        first: no forward pass is over yet, so who shares an input is still to be seen.
    """

    def __init__(self, statistics: dict[str, dict[str, Statistic]]) -> None:
        self.statistics = statistics
        self.backward = any(one.backward for found in statistics.values() for one in found.values())
        self.live: set[tuple[str, str]] = set()
        self.first = True
        self.tokens = Tokens(torch.empty(0), torch.empty(0))
        self._fresh = {
            (site, name): dict(vars(one)) for site, found in statistics.items() for name, one in found.items()
        }
        self._followers: set[tuple[str, str]] = set()
        self._readers: dict[int, tuple[weakref.ref[Tensor], list[str]]] = {}

    @contextmanager
    def attached(self, model: CausalLM) -> Iterator[None]:
        """Hooks on the sites, the model in the mode it is measured in."""
        handles = [
            model.hf.get_submodule(name).register_forward_hook(self._hook(name, tokens_of(model.hf, name)))
            for name in self.statistics
        ]
        if self.backward:
            handles.append(model.hf.get_input_embeddings().register_forward_hook(_track))
        was_training = model.training
        model.train(self.backward)
        kept = {site for site, found in self.statistics.items() if self._of_kept(site, found)}
        try:
            with watching(model.hf, kept, self._take_kept):
                yield
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()

    def _of_kept(self, site: str, found: dict[str, Statistic]) -> bool:
        return is_kept(site) and any(one.of_kept for one in found.values())

    def _take_kept(self, site: str, part: Tensor) -> None:
        """Keys or values (B, heads, L, head) as attention keeps them."""
        rows = part.detach().transpose(1, 2).flatten(0, 1)
        for name, statistic in self.statistics[site].items():
            if statistic.of_kept and (site, name) in self.live:
                self._update(site, name, statistic, rows, None, self.tokens)

    def expect(self, batch: Batch, device: torch.device) -> None:
        """Make ready for a micro-batch: which of its tokens count, and which statistics still want any."""
        length = batch.input_ids.shape[1]
        spans = [
            torch.arange(row * length + start, row * length + end) for row, start, end in batch.documents
        ]
        self.tokens = Tokens(torch.cat(spans).to(device), batch.supervised.to(device))
        self.live = {
            (site, name)
            for name in {name for found in self.statistics.values() for name in found}
            for site in self.statistics.keys() - self._settled(name)
        }

    def _settled(self, name: str) -> set[str]:
        statistics = {site: found[name] for site, found in self.statistics.items()}
        return type(next(iter(statistics.values()))).settled(statistics)

    def results(self) -> Signals:
        """Site -> name -> tensor on the CPU."""
        tensors: dict[int, Tensor] = {}
        found: Signals = {site: {} for site in self.statistics}
        for site, statistics in self.statistics.items():
            for name, statistic in statistics.items():
                if statistic.of_kept and not is_kept(site):
                    continue
                if id(statistic) not in tensors:
                    try:
                        tensors[id(statistic)] = statistic.result().cpu()
                    except ValueError as error:
                        raise DataError(
                            f"{site}: {name} cannot be measured: {error}; use more batches"
                        ) from None
                found[site][name] = tensors[id(statistic)]
        return found

    def _hook(
        self, site: str, chosen: Callable[[], Tensor] | None
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.backward and not output.requires_grad:
                return  # a pass for reference alone
            if self.first:
                self._share(site, inputs[0])
            x, y = (tensor.detach().flatten(0, -2) for tensor in (inputs[0], output))
            tokens = self.tokens if chosen is None else self.tokens.of_expert(chosen())
            later = []
            for name, statistic in self.statistics[site].items():
                if (site, name) not in self.live or (site, name) in self._followers or statistic.of_kept:
                    continue
                if statistic.backward:
                    later.append((name, statistic))
                else:
                    self._update(site, name, statistic, y if statistic.of_output else x, None, tokens)
            if later:

                def take(dy: Tensor) -> None:
                    for name, statistic in later:
                        seen = y if statistic.of_output else x
                        self._update(site, name, statistic, seen, dy.detach().flatten(0, -2), tokens)

                output.register_hook(take)

        return hook

    def _update(
        self, site: str, name: str, statistic: Statistic, x: Tensor, dy: Tensor | None, tokens: Tokens
    ) -> None:
        try:
            statistic.update(x, dy, tokens)
        except ValueError as error:
            raise DataError(f"{site}: {name} cannot be measured: {error}") from None

    def _share(self, site: str, x: Tensor) -> None:
        """Let `site` use the statistics of a site that has just read the same tensor."""
        known = self._readers.get(id(x))
        if known is None or known[0]() is not x:
            self._readers[id(x)] = (weakref.ref(x), [site])
            return
        for name, statistic in self.statistics[site].items():
            for other in known[1]:
                theirs = self.statistics[other][name]
                if statistic.of_input and self._fresh[other, name] == vars(statistic):
                    self.statistics[site][name] = theirs
                    self._followers.add((site, name))
                    break
        known[1].append(site)


def _track(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """With every weight frozen nothing would require a gradient before the first adapter."""
    return output.requires_grad_()
