"""SFPrompt: the error by which rows are kept, and what a client does in a round."""

from __future__ import annotations

import pytest
import torch

from tests.methods.aggregate.replies import lora, made


def test_the_error_of_a_token_is_the_distance_of_probabilities_from_the_target():
    """By hand: probabilities (.5, .25, .25) against the first and the last of three tokens, and a sure hit."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log()
    found = made("sfprompt", lora()).error(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([0.375**0.5, 0.875**0.5]))
    sure = made("sfprompt", lora()).error(torch.tensor([[80.0, 0.0], [80.0, 0.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(sure, torch.tensor([0.0, 2.0**0.5]))


def test_the_error_is_the_norm_of_the_vector_on_random_logits():
    logits = torch.randn(40, 17, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(17, (40,), generator=torch.Generator().manual_seed(1))
    expected = (logits.softmax(-1) - torch.nn.functional.one_hot(targets, 17)).norm(dim=-1)
    torch.testing.assert_close(made("sfprompt", lora()).error(logits, targets), expected)


def test_a_round_is_passes_around_the_body_and_then_kept_rows_through_it():
    server = made("sfprompt", lora(), local_epochs=2.0, keep=0.25)
    alone, split = server.phases
    assert (alone.bypass, alone.epochs, alone.keep) == (True, 2.0, 1.0)
    assert (split.bypass, split.epochs, split.keep) == (False, None, 0.25)
    assert [phase.bypass for phase in made("sfprompt", lora(), local_epochs=0.0).phases] == [False]
    assert (server.split.head, server.split.tail) == (1, 1)


def test_both_ends_are_averaged_by_rows():
    server = made("sfprompt", lora(), 2)
    held = {"p": torch.zeros(3)}
    from lrft.core.aggregate import Reply

    replies = [Reply(0, 1, {"p": torch.full((3,), 4.0)}), Reply(1, 3, {"p": torch.zeros(3)})]
    assert server.aggregate(held, replies, 0)["p"].tolist() == pytest.approx([1.0, 1.0, 1.0])
