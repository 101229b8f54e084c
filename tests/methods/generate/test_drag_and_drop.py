"""Drag-and-Drop: tokens there and back, what is masked, and the decoder against convolutions written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.generate import Known, Layout
from lrft.methods.generate._chunks import Chunks
from lrft.methods.generate._hyperconv import HyperConvolution, between
from lrft.registry.errors import UsageError
from tests.methods.generate.made import LAYOUT, draws, generator, library


@pytest.mark.parametrize("width", [2, 3, 4, 128])
def test_an_adapter_that_was_cut_into_tokens_is_put_together_again(width):
    chunks = Chunks(LAYOUT, width)
    vectors = 0.05 * torch.randn(2, LAYOUT.size, generator=draws(), dtype=torch.float64) + 0.01
    tokens = chunks.tokens(vectors)
    assert tokens.shape == (2, len(chunks), 6, width + width % 2 + 2)
    torch.testing.assert_close(chunks.vectors(tokens.nan_to_num()), vectors)


def test_a_factor_that_is_0_stays_0():
    """As B is before the first step: its token is no 0 / 0."""
    chunks = Chunks(Layout({"a.A": (2, 4), "a.B": (4, 2)}), 4)
    vector = torch.cat([torch.randn(8, generator=draws()), torch.zeros(8)])
    found = chunks.vectors(chunks.tokens(vector).nan_to_num())
    assert found.isfinite().all()
    torch.testing.assert_close(found, vector, atol=1e-6, rtol=1e-5)


def test_a_token_holds_a_piece_in_its_own_units_and_says_these_at_its_edges():
    """As the authors lay it out: 10 x 130 for rank 8, [8 mean, log(0.9 std + 0.1) + 1.6] in pairs."""
    chunks = Chunks(Layout({"a.A": (8, 256), "a.B": (128, 8)}), 128)
    vector = torch.randn(8 * 256 + 8 * 128, generator=draws())
    tokens = chunks.tokens(vector)
    assert tokens.shape == (3, 10, 130) and not tokens.isnan().any()
    pieces = [*vector[:2048].view(8, 256).split(128, dim=1), vector[2048:].view(128, 8).T]
    for token, piece in zip(tokens, pieces, strict=True):
        torch.testing.assert_close(token[:8, :128], (piece - piece.mean()) / piece.std())
        pair = torch.stack([8 * piece.mean(), torch.log(0.9 * piece.std() + 0.1) + 1.6])
        torch.testing.assert_close(token[-2:], pair.repeat(2, 65))
        torch.testing.assert_close(token[:, -2:], pair.expand(10, 2))


def test_what_a_token_has_not_gets_no_gradient():
    made, known = generator("drag_and_drop")
    targets = made.chunks.tokens(known[0].samples[:1])
    made.decoder.register_forward_hook(lambda module, inputs, out: out.retain_grad())
    seen = {}
    made.decoder.register_forward_hook(lambda module, inputs, out: seen.update(out=out))
    made.error(known[0].condition[None, :2], targets).backward()
    gradient = seen["out"].grad
    assert targets.isnan().any() and not gradient[targets.isnan()].any() and gradient[~targets.isnan()].all()


def test_the_weight_of_a_token_is_how_far_its_entries_move_beside_all():
    made, known = generator("drag_and_drop", [*library("drag_and_drop", tasks=1)])
    spread = made.chunks.tokens(known[0].samples).std(0, correction=0)
    whole = spread[~spread.isnan()].mean()
    expected = torch.stack([token[~token.isnan()].mean() / whole for token in spread])
    torch.testing.assert_close(made.importance, expected, rtol=1e-4, atol=1e-4)


def test_a_task_of_one_adapter_again_and_again_has_no_weights():
    one = library("drag_and_drop")[0]
    same = Known("same", one.samples[:1].expand(3, -1), one.condition)
    with pytest.raises(UsageError, match="checkpoints of same are all the same"):
        generator("drag_and_drop", [same])


def test_noise_leaves_states_and_targets_as_they_were():
    made, known = generator("drag_and_drop", noise=1.0)
    before = [(one.condition.clone(), one.samples.clone()) for one in known]
    made.loss(known, draws())
    for one, (condition, samples) in zip(known, before, strict=True):
        assert torch.equal(one.condition, condition) and torch.equal(one.samples, samples)


def test_the_order_of_prompts_is_a_difference():
    made, known = generator("drag_and_drop")
    states = known[0].condition[:2]
    assert not torch.allclose(made.decoder(states[None]), made.decoder(states.flip(0)[None]))


def test_a_stage_is_its_convolutions_written_out_one_plane_at_a_time():
    stage = HyperConvolution((2, 4, 5), (3, 6, 4), 3)
    x = torch.randn(1, 2, 4, 5, generator=draws())
    u = F.layer_norm(x, (4, 5), stage.norm.weight, stage.norm.bias)[0]  # (N, H, W)

    def over(weight, channels_first):
        return F.conv2d(channels_first[None], weight, padding=1)[0]

    first = over(stage.first_width.weight, torch.einsum("nhw->whn", u))
    first = over(stage.first_height.weight, torch.einsum("whn->hnw", first))
    second = over(stage.second_height.weight, torch.einsum("nhw->hnw", u))
    second = over(stage.second_width.weight, torch.einsum("hnw->whn", second))
    y = torch.einsum("hnw->nhw", first) + torch.einsum("whn->nhw", second).tanh() + stage.bias
    torch.testing.assert_close(
        stage(x)[0], F.conv2d(y[None] / 3, stage.along.weight, stage.along.bias, padding=1)[0]
    )


def test_shapes_between_change_by_one_ratio():
    assert between((8, 16, 64), (32, 4, 16), 2) == [(8, 16, 64), (16, 8, 32), (32, 4, 16)]


def test_a_pool_holds_as_many_prompts_as_are_drawn():
    made, _ = generator("drag_and_drop")
    config = made.config.model_copy(update={"pool": 1})
    with pytest.raises(UsageError, match="pool 1 is less than prompts 2"):
        type(made).wants(config)
