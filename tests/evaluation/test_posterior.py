"""The posterior of a small model's adapter beside brute force: Jacobians, the whole Gauss-Newton matrix, metrics."""

import math
from dataclasses import replace

import pytest
import torch

from lrft.core.adapted import adapted
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.rows import Rows
from lrft.evaluation.choices import Choice, choices_of, task_of
from lrft.evaluation.jacobians import look, looks
from lrft.evaluation.pairs import trained_pairs
from lrft.evaluation.posterior import fit, probabilities
from lrft.evaluation.probabilities import expected_calibration_error, probability_scores
from lrft.ops.laplace import fisher_roots, variance
from lrft.registry.errors import DataError, NumericalError, UsageError
from tests.evaluation.conftest import adapt
from tests.evaluation.test_multiple_choice import LETTERS, TRUTH, row

CHOICES = [
    Choice([5, 6, 7], (8, 9, 10), 1, ("a", "b", "c")),
    Choice([11, 12], (8, 9, 10), 0, ("a", "b", "c")),
]


def logits_of(subject, choice: Choice) -> torch.Tensor:
    encoded = Encoded([*choice.prompt, choice.classes[0]], [False] * len(choice.prompt) + [True])
    batch = collate([[encoded]], subject.pad_id, None, [[0]])
    hidden = subject.model.hidden(batch)[0, len(choice.prompt) - 1]
    return subject.model.head.logits(hidden)[list(choice.classes)]


def brute(subject, choice: Choice, factor: torch.Tensor) -> torch.Tensor:
    """(C, m, p), one backward pass through the model a class, of one row without padding."""
    logits = logits_of(subject, choice)
    return torch.stack([torch.autograd.grad(f, factor, retain_graph=True)[0] for f in logits])


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_jacobians_are_those_of_the_model(make_subject, storage):
    dense_subject = make_subject()
    adapt(dense_subject, storage)
    pairs = trained_pairs(dense_subject.model)
    ((indices, logits, found),) = looks(dense_subject, pairs, CHOICES, "", 512)
    for place, index in enumerate(indices):
        assert torch.allclose(logits[place], logits_of(dense_subject, CHOICES[index]), atol=1e-4)
    for pair in (pairs[0], pairs[-1]):
        for name, J in found[pair.name].jacobians(pair).items():
            for place, index in enumerate(indices):
                expected = brute(dense_subject, CHOICES[index], getattr(pair, name))
                assert torch.allclose(J[place], expected, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize(
    ("family", "leaf"), [("qwen2_moe", "shared_expert.up_proj"), ("deepseek_v3", "kv_b_proj")]
)
def test_jacobians_of_layers_that_are_not_given_rows_of_tokens(make_subject, family, leaf):
    """A shared expert gets the tokens of all rows as one, latent attention expands keys with a dimension of heads."""
    subject = make_subject(family)
    adapt(subject, "none")
    pairs = [pair for pair in trained_pairs(subject.model) if pair.name.endswith(leaf)]
    ((indices, _, found),) = looks(subject, pairs, CHOICES, "", 512)
    for pair in pairs:
        for name, J in found[pair.name].jacobians(pair).items():
            for place, index in enumerate(indices):
                expected = brute(subject, CHOICES[index], getattr(pair, name))
                assert torch.allclose(J[place], expected, atol=1e-4 * float(expected.abs().max()) + 1e-6)


def test_of_one_row_of_one_token_it_is_the_gauss_newton_matrix(dense_subject):
    """Nothing is summed then, so every block is J^T Lambda J itself, and the variance that of its inverse."""
    pairs = trained_pairs(dense_subject.model, "last")[:2]
    one = Choice([5], (8, 9, 10), 1, ("a", "b", "c"))
    for tau in (1.0, 2.0):
        posterior = fit(dense_subject, pairs, [one], temperatures=(tau,), rank=None, steps=3)
        logits, found = look(dense_subject, pairs, [one])
        root = fisher_roots(logits, tau)[0].double()
        spread, jacobians = torch.zeros(3, 3, dtype=torch.float64), {}
        for pair in pairs:
            for name, factor in (("A", pair.A), ("B", pair.B)):
                J = brute(dense_subject, one, factor).double().flatten(1)
                G = J.mT @ root.mT @ root @ J
                block = posterior.blocks[f"{pair.name}.{name}"]
                kron = torch.kron(block.left.dense(), block.right.dense())
                assert torch.allclose(kron, G, atol=1e-5 * float(G.abs().max()))
                spread += J @ torch.linalg.inv(G + 0.5 * torch.eye(len(G))) @ J.mT
                jacobians[f"{pair.name}.{name}"] = found[pair.name].jacobians(pair)[name].double()
        assert torch.allclose(variance(posterior.blocks, jacobians, 0.5)[0], spread, rtol=1e-3, atol=1e-5)
    likelihood = torch.log_softmax(logits.double() / tau, -1)[0, 1]
    assert posterior.chosen.log_likelihood == pytest.approx(float(likelihood), rel=1e-5)


def test_padding_and_batches_change_nothing(dense_subject):
    pairs = trained_pairs(dense_subject.model, "last")
    together = fit(dense_subject, pairs, CHOICES, rank=None, steps=20)
    apart = fit(dense_subject, pairs, CHOICES, rank=None, steps=20, tokens=1)
    for name, block in together.blocks.items():
        for mine, other in ((block.left, apart.blocks[name].left), (block.right, apart.blocks[name].right)):
            assert torch.allclose(mine.dense(), other.dense(), rtol=1e-3, atol=1e-5)
    assert together.chosen.log_evidence == pytest.approx(apart.chosen.log_evidence, rel=1e-4)
    assert together.parameters == sum(pair.A.numel() + pair.B.numel() for pair in pairs)


def test_the_temperature_of_largest_evidence_is_kept(dense_subject):
    pairs = trained_pairs(dense_subject.model, "last")
    posterior = fit(dense_subject, pairs, CHOICES, temperatures=(0.5, 1.0, 4.0), rank=4, above=16, steps=20)
    assert [one.temperature for one in posterior.tried] == [0.5, 1.0, 4.0]
    assert posterior.chosen.log_evidence == max(one.log_evidence for one in posterior.tried)
    before, after = probabilities(dense_subject, pairs, CHOICES, posterior, 2000)
    for choice, p, q in zip(CHOICES, before, after, strict=True):
        own = torch.softmax(logits_of(dense_subject, choice).double(), -1)
        assert torch.allclose(p, own, atol=1e-4) and float(q.sum()) == pytest.approx(1)


def test_a_variance_that_is_no_number_is_refused(dense_subject):
    pairs = trained_pairs(dense_subject.model, "last")
    posterior = fit(dense_subject, pairs, CHOICES, rank=4, above=16, steps=2)
    unsure = replace(posterior, chosen=replace(posterior.chosen, prior_precision=1e-60))
    with pytest.raises(NumericalError, match="the variance of a logit is no finite number"):
        probabilities(dense_subject, pairs, CHOICES, unsure, 10)


def test_only_products_of_two_trained_factors_have_one(dense_subject):
    model = dense_subject.model
    everywhere, last = trained_pairs(model), trained_pairs(model, "last")
    assert {pair.name for pair in last} == {p.name for p in everywhere if ".layers.1." in p.name}
    _, site = next(adapted(model.hf))
    site.adapter.register_parameter("m", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(UsageError, match=r"lora at model\.layers\.0.* is more than one product .*A, B, m"):
        trained_pairs(model)


def test_base_weights_that_trained_have_none(dense_subject):
    dense_subject.model.hf.get_input_embeddings().weight.requires_grad_(True)
    for name, parameter in dense_subject.model.hf.named_parameters():
        parameter.requires_grad_("embed" in name or ".adapter." in name)
    with pytest.raises(UsageError, match="weights of the base model trained too"):
        trained_pairs(dense_subject.model)


def test_rows_are_decided_by_one_token(make_subject):
    subject = make_subject(rows=[LETTERS, TRUTH], format="instruction")
    renderer = task_of([]).renderer(subject)
    found = choices_of(subject, subject.rows, renderer)
    assert [one.gold for one in found] == [0, 0] and found[1].labels == ("true", "false")
    for choice, made in zip(found, (LETTERS, TRUTH), strict=True):
        whole = [*renderer.question(made).prompt, *renderer.question(made).answer]
        assert [*choice.prompt, choice.classes[choice.gold]] == whole[: len(choice.prompt) + 1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"instruction": "How many?", "output": "2"}, "answer is missing"),
        (row("q", "", "aa/aab", "aa", "{}"), "aa, aab are not told apart by one token"),
        (
            row("q", "", "/".join(map(str, range(30))), "1"),
            "it has 30 labels, and a posterior is over 2 to 26",
        ),
    ],
)
def test_rows_that_are_no_classification_are_refused_by_line(make_subject, made, message):
    subject = make_subject(rows=[TRUTH, made], format="instruction")
    with pytest.raises(DataError, match=rf"^made\.jsonl:2: .*{message}"):
        choices_of(subject, Rows([TRUTH, made], "made.jsonl", "made", [1, 2]), task_of([]).renderer(subject))


def test_calibration_is_counted_by_bins():
    confidence = torch.tensor([0.9, 0.9, 0.6, 0.6])
    assert expected_calibration_error(confidence, torch.tensor([True, False, True, True])) == pytest.approx(
        (abs(0.5 - 0.9) * 2 + abs(1 - 0.6) * 2) / 4
    )
    sure = expected_calibration_error(torch.full((8,), 0.7), torch.tensor([True] * 3 + [False] * 5))
    assert sure == pytest.approx(abs(3 / 8 - 0.7))
    scores = probability_scores([torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])], [0, 0])
    assert scores["acc"] == 0.5
    assert scores["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.4)) / 2)
    assert scores["brier"] == pytest.approx((0.3**2 * 2 + 0.6**2 * 2) / 2)
