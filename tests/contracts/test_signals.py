"""What every registered statistic owes."""

from __future__ import annotations

import inspect

import pytest
import torch

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS

ALL = pytest.mark.parametrize("name", SIGNALS.names())
WIDTH, OUT, LENGTH = 12, 10, 30


def micro_batches(count=3, dtype=torch.float32):
    """Inputs, gradients of the outputs, and the tokens that count: the last five of each are padding."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        x = torch.randn(LENGTH, WIDTH, generator=generator) * torch.logspace(0, -2, WIDTH)
        dy = torch.randn(LENGTH, OUT, generator=generator) / LENGTH
        real = torch.arange(LENGTH - 5)
        dy[LENGTH - 5 :] = 0
        yield x.to(dtype), dy.to(dtype), Tokens(real, torch.arange(3, LENGTH - 6))


def measured(name, batches, **options):
    cls = SIGNALS.get(name)
    statistic = cls(**options)
    for x, dy, tokens in batches:
        seen = x[:, :OUT] if cls.of_output else x  # as wide as the outputs
        statistic.update(seen, dy if cls.backward else None, tokens)
    return statistic.result()


@ALL
def test_options_are_keywords_with_defaults(name):
    assert issubclass(SIGNALS.get(name), Statistic)
    parameters = list(inspect.signature(SIGNALS.get(name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@ALL
def test_what_depends_on_the_input_alone_asks_for_no_backward_pass(name):
    cls = SIGNALS.get(name)
    assert not (cls.of_input and cls.backward)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_finite_float32_without_a_graph(name, dtype):
    result = measured(name, micro_batches(dtype=dtype))
    assert result.dtype == torch.float32 and result.isfinite().all() and not result.requires_grad


@ALL
def test_padding_has_no_influence(name):
    def with_other_padding():
        for x, dy, tokens in micro_batches():
            x[LENGTH - 5 :] = 1e4
            dy[LENGTH - 5 :] = 7.0
            longer = torch.full((4, WIDTH), -3e3), torch.full((4, OUT), 9.0)
            yield torch.cat([x, longer[0]]), torch.cat([dy, longer[1]]), tokens

    assert torch.equal(measured(name, with_other_padding()), measured(name, micro_batches()))


@ALL
def test_the_same_batches_give_the_same_bits_whatever_the_ambient_seed(name):
    torch.manual_seed(1)
    one = measured(name, micro_batches())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = measured(name, micro_batches())
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


@ALL
def test_measuring_leaves_the_inputs_as_they_are(name):
    batches = list(micro_batches())
    measured(name, batches)
    for (x, dy, _), (x0, dy0, _) in zip(batches, micro_batches(), strict=True):
        assert torch.equal(x, x0) and torch.equal(dy, dy0)


@ALL
def test_a_micro_batch_without_a_target_is_no_error(name):
    x, dy, tokens = next(micro_batches())
    nothing = (x, torch.zeros_like(dy), Tokens(tokens.real, torch.empty(0, dtype=torch.int64)))
    batches = list(micro_batches())
    result = measured(name, [*batches, nothing])
    assert result.isfinite().all()
    if SIGNALS.get(name).backward:
        assert torch.equal(result, measured(name, batches))


@ALL
def test_without_a_batch_the_error_says_so(name):
    with pytest.raises(ValueError, match=r"calibration"):
        SIGNALS.get(name)().result()


@ALL
def test_the_order_of_the_tokens_is_no_matter(name):
    def turned():
        for x, dy, tokens in micro_batches():
            order = torch.arange(LENGTH).flip(0)
            supervised = LENGTH - 2 - tokens.supervised  # whose successors are the same tokens as before
            yield x[order], dy[order], Tokens(LENGTH - 1 - tokens.real, supervised - 1)

    torch.testing.assert_close(
        measured(name, turned()), measured(name, micro_batches()), atol=1e-5, rtol=1e-4
    )


def joined(batches):
    """All micro-batches as one, in which every target weighs the same."""
    xs, dys, real, supervised = [], [], [], []
    for number, (x, dy, tokens) in enumerate(batches):
        xs.append(x)
        dys.append(dy / len(batches))
        real.append(tokens.real + number * LENGTH)
        supervised.append(tokens.supervised + number * LENGTH)
    return torch.cat(xs), torch.cat(dys), Tokens(torch.cat(real), torch.cat(supervised))


@pytest.mark.parametrize(("name", "options"), [("grad", {}), ("input_pca", {"components": WIDTH})])
def test_what_is_a_mean_over_tokens_does_not_depend_on_the_micro_batches(name, options):
    """The others square or scale micro-batch by micro-batch, as their sources do."""
    batches = list(micro_batches())
    whole, parts = measured(name, [joined(batches)], **options), measured(name, batches, **options)
    width = WIDTH + 2 if name == "input_pca" else WIDTH  # the last column is about the steps
    torch.testing.assert_close(parts[:, :width], whole[:, :width], atol=1e-5, rtol=1e-3)
