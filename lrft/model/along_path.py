"""What the outputs of single sites do for the model's own answer: gradients along a path from nothing to all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.params import Site
from lrft.core.stages import Signals, Statistic, Tokens
from lrft.model.calibrate import Make
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import DataError

ROW = Tokens(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


def measure_along_path(
    model: CausalLM,
    sites: dict[str, Site],
    batches: Iterable[Batch],
    make: Make,
    names: list[str],
    progress: Callable[[int], None],
) -> Signals:
    """The statistics with a `path`, over micro-batches of one document each; without dropout, site by site.

    One forward pass a document says the answer: the most likely token, or label, after the prompt. Then every site has
    one of as many rows as its statistic has points, in each of which its output at the last token of the prompt is
    scaled, and nothing else.

    Raises:
        DataError: a statistic could not be measured at a site.
    """
    if expert := next((name for name, site in sites.items() if site.kind == "expert"), None):
        raise DataError(
            f"{expert}: {names[0]} is measured at the last token of a row, which an expert may not be given; leave "
            "experts out of adapter.targets"
        )
    statistics = {site: {name: make(site, name) for name in names} for site in sites}
    was_training = model.training
    model.eval()
    try:
        for done, batch in enumerate(batches):
            stop.poll()
            if batch.supervised.numel():
                _measure(model, _prompt(batch).to(model.device), statistics)
            progress(done + 1)
    finally:
        model.train(was_training)
    found: Signals = {}
    for site, named in statistics.items():
        for name, statistic in named.items():
            try:
                found.setdefault(site, {})[name] = statistic.result().cpu()
            except ValueError as error:
                raise DataError(f"{site}: {name} cannot be measured: {error}; use more batches") from None
    return found


def _measure(model: CausalLM, prompt: Batch, statistics: dict[str, dict[str, Statistic]]) -> None:
    with torch.no_grad():
        answer = int(_scores(model, prompt)[0].argmax())
    for site, named in statistics.items():
        for name, statistic in named.items():
            output, gradient = _along(model, site, prompt, answer, statistic.path)
            try:
                statistic.update(output, gradient, ROW)
            except ValueError as error:
                raise DataError(f"{site}: {name} cannot be measured: {error}") from None


def _along(model: CausalLM, site: str, prompt: Batch, answer: int, points: int) -> tuple[Tensor, Tensor]:
    """Output at the last token and mean gradient of the answer's score along its path, (1, out) each in float32."""
    shares = torch.linspace(0, 1, points, device=model.device)
    held: list[Tensor] = []

    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = output.detach().view(points, -1, output.shape[-1])  # also where all rows were put into one
        scaled = (rows[:, -1] * shares.to(output.dtype)[:, None]).requires_grad_()
        held[:] = [rows[0, -1:], scaled]
        return torch.cat([rows[:, :-1], scaled[:, None]], dim=1).view(output.shape)

    handle = model.hf.get_submodule(site).register_forward_hook(scale)
    try:
        with torch.enable_grad():
            scores = _scores(model, _repeated(prompt, points))[:, answer]
    finally:
        handle.remove()
    output, scaled = held
    (gradient,) = torch.autograd.grad(scores.float().sum(), scaled)
    weights = torch.full_like(shares, 1 / (points - 1))
    weights[[0, -1]] /= 2
    return output.float(), (weights[:, None] * gradient.float()).sum(0, keepdim=True)


def _scores(model: CausalLM, batch: Batch) -> Tensor:
    """Of the tokens that may follow each row, or of its labels, (rows, scores)."""
    if model.labels:
        return model.scores(batch)
    return model.head.logits(model.hidden(batch)[:, -1])


def _prompt(batch: Batch) -> Batch:
    """The document up to the last token before the first that is to be learnt."""
    row, start, _ = batch.documents[0]
    end = int(batch.supervised[0]) - row * batch.input_ids.shape[1] + 1
    ids = batch.input_ids[row : row + 1, start:end]
    return Batch(ids, torch.arange(end - start)[None], ((0, 0, end - start),), *_last(1, end - start))


def _repeated(prompt: Batch, rows: int) -> Batch:
    length = prompt.input_ids.shape[1]
    ids, positions = (
        tensor.expand(rows, -1).contiguous() for tensor in (prompt.input_ids, prompt.position_ids)
    )
    documents = tuple((row, 0, length) for row in range(rows))
    return Batch(ids, positions, documents, *_last(rows, length)).to(ids.device)


def _last(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """The last token of each row as the one to be learnt from, and no target."""
    return (torch.arange(rows) + 1) * length - 1, torch.zeros(rows, dtype=torch.int64)
