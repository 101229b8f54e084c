"""Laplace-LoRA's arithmetic beside dense matrices, exact Bayesian linear regression and the paper's own forms."""

import math

import pytest
import torch

from lrft.ops.kfac import Factor, Sum
from lrft.ops.laplace import Block, evidence_of, fisher_roots, predictive, variance
from tests.each import each


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factor(rows: torch.Tensor, rank: int | None = None) -> Factor:
    total = Sum(rows.shape[1], rank)
    total.add(rows)
    return total.factor()


def dense(block: Block, precision: float) -> torch.Tensor:
    """P of one factor, (m p, m p), row-major as `flatten` lays a factor out."""
    H = torch.kron(block.left.dense(), block.right.dense())
    return H + precision * torch.eye(len(H), dtype=H.dtype)


@each(("rows", "rank"), [(5, None), (40, None), (5, 5), (40, 6), (3, 6)])
def test_a_sum_that_keeps_enough_is_the_sum(rows, rank):
    x, total = drawn(rows, 6), Sum(6, rank)
    for part in x.split(2):
        total.add(part)
    assert torch.allclose(total.factor().dense(), x.mT @ x, atol=1e-9)


def test_a_root_is_that_of_incremental_svds():
    """As the authors' library has it: U S of [root, rows^T], cut at the rank, batch after batch."""
    x, total, root = drawn(30, 12), Sum(12, 3), torch.zeros(12, 3, dtype=torch.float64)
    for part in x.split(7):
        total.add(part)
        U, S, _ = torch.linalg.svd(torch.hstack((root, part.mT)), full_matrices=False)
        root = U[:, :3] * S[:3]
    assert torch.allclose(total.factor().dense(), root @ root.mT, atol=1e-9)
    assert not torch.allclose(total.factor().dense(), x.mT @ x, atol=1e-2)


def test_the_fisher_roots_are_the_hessian_of_the_cross_entropy():
    logits = drawn(2, 4)
    for tau in (1.0, 2.5):
        roots = fisher_roots(logits, tau)
        for row in range(2):

            def loss(f, tau=tau):
                return -torch.log_softmax(f / tau, dim=-1)[1]

            hessian = torch.autograd.functional.hessian(loss, logits[row])
            assert torch.allclose(roots[row].mT @ roots[row], hessian, atol=1e-9)


@each("rank", [None, 3])
def test_variance_and_evidence_are_those_of_the_dense_precision(rank):
    block = Block(factor(drawn(9, 4)), factor(drawn(20, 7, seed=1), rank)).scaled(1 / 20)
    J, theta, precision = drawn(3, 5, 4, 7, seed=2), drawn(28, seed=3), 0.3
    P, flat = dense(block, precision), J.flatten(2)
    assert torch.allclose(
        variance({"x": block}, {"x": J}, precision), flat @ P.inverse() @ flat.mT, atol=1e-9
    )
    evidence = evidence_of([block], -4.0, float(theta @ theta))
    prior = precision * torch.eye(28, dtype=P.dtype)
    expected = -4.0 - 0.5 * (P.logdet() - prior.logdet() + theta @ prior @ theta)
    assert evidence.at(torch.tensor(precision, dtype=torch.float64)).item() == pytest.approx(
        float(expected), abs=1e-9
    )


def test_a_truncated_factor_gives_the_papers_woodbury_form():
    """s2 G G^T - s2^2 (B^T G L) M^-1 (B^T G L)^T with M = I + s2 (B^T B kron L^T L), and log det M, s2 = 1 / lambda."""
    B, L, s2 = drawn(15, 3), torch.linalg.cholesky(factor(drawn(9, 4, seed=1)).dense()), 2.0
    block = Block(factor(B.mT.clone()), factor(L.mT.clone()))
    J = drawn(2, 5, 15, 4, seed=2)
    M = torch.eye(12, dtype=B.dtype) + s2 * torch.kron(B.mT @ B, L.mT @ L)
    inner = (B.mT @ J @ L).flatten(2)
    expected = s2 * J.flatten(2) @ J.flatten(2).mT - s2**2 * inner @ M.inverse() @ inner.mT
    assert torch.allclose(variance({"x": block}, {"x": J}, 1 / s2), expected, atol=1e-8)
    evidence = evidence_of([block], 0.0, 0.0).at(torch.tensor(1 / s2, dtype=B.dtype))
    assert float(evidence) == pytest.approx(-0.5 * float(M.logdet()), abs=1e-9)


def test_it_is_exact_for_bayesian_linear_regression():
    """Unit noise makes Lambda the identity, so posterior and evidence are those of the closed form."""
    X, precision, outputs = drawn(12, 5), 0.7, 2
    Y = X @ drawn(5, outputs, seed=1) + drawn(12, outputs, seed=2)
    ridge = X.mT @ X + precision * torch.eye(5, dtype=X.dtype)
    theta = torch.linalg.solve(ridge, X.mT @ Y)
    block = Block(factor(torch.eye(outputs, dtype=X.dtype)), factor(X))
    residual = Y - X @ theta
    likelihood = -0.5 * float(residual.square().sum()) - 0.5 * Y.numel() * math.log(2 * math.pi)
    evidence = evidence_of([block], likelihood, float(theta.square().sum()))
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(12, dtype=X.dtype), X @ X.mT / precision + torch.eye(12, dtype=X.dtype)
    )
    expected = sum(float(marginal.log_prob(Y[:, k])) for k in range(outputs))
    assert float(evidence.at(torch.tensor(precision, dtype=torch.float64))) == pytest.approx(
        expected, abs=1e-9
    )

    x = drawn(4, 5, seed=3)
    J = torch.einsum("kc,ni->nkci", torch.eye(outputs, dtype=X.dtype), x)
    spread = (x @ ridge.inverse() * x).sum(1)[:, None, None] * torch.eye(outputs, dtype=X.dtype)
    assert torch.allclose(variance({"x": block}, {"x": J}, precision), spread, atol=1e-9)


def test_the_precision_that_is_found_has_the_largest_evidence():
    evidence = evidence_of([Block(factor(drawn(9, 4)), factor(drawn(20, 7, seed=1)))], -4.0, 6.0)
    found, best = evidence.best()
    grid = torch.logspace(-3, 3, 400, dtype=torch.float64)
    at = torch.stack([evidence.at(one) for one in grid])
    assert found == pytest.approx(float(grid[at.argmax()]), rel=0.03)
    assert best >= float(at.max()) - 1e-6


def test_a_sure_posterior_is_the_map_and_an_unsure_one_is_nearer_to_uniform():
    mean, generator = drawn(3, 4) * 2, torch.Generator()
    sure = predictive(mean, torch.zeros(3, 4, 4), 20_000, generator.manual_seed(0))
    assert torch.allclose(sure, torch.softmax(mean, -1), atol=1e-3)
    spread = 4 * torch.eye(4, dtype=mean.dtype).expand(3, 4, 4)
    unsure = predictive(mean, spread, 20_000, generator.manual_seed(0))
    assert (unsure.max(1).values < sure.max(1).values).all()
    assert torch.equal(unsure.argmax(1), sure.argmax(1))
    probit = torch.softmax(mean / math.sqrt(1 + math.pi / 8 * 4), -1)
    assert (unsure - probit).abs().max() < 0.06
    assert torch.equal(unsure, predictive(mean, spread, 20_000, generator.manual_seed(0)))


def test_a_variance_that_rounding_made_indefinite_is_taken_for_what_it_was():
    """Logits that move together: what float32 leaves of their differences is noise, of either sign."""
    J = drawn(1, 3000, seed=1).expand(4, 3000).float() * 10
    noise = torch.tensor([[0.0, 2e-2, 0, 0], [2e-2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    spread, mean = (J @ J.mT + noise)[None], drawn(1, 4)
    assert float(torch.linalg.eigvalsh(spread.double()).min()) < -1e-3
    found = predictive(mean, spread, 2000, torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.softmax(mean, -1), atol=2e-3)
    both = predictive(mean.expand(2, 4), torch.cat([spread, torch.eye(4)[None]]), 9, torch.Generator())
    assert both.isfinite().all()


def waves(*shape: int, start: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Numbers without a pattern that every machine has alike."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(start + 1.7 * k + 0.3 * k**1.5)).reshape(shape)


def test_variance_and_determinant_are_those_that_the_authors_library_gives():
    """Figures of bayesian_lora's own functions, run once on these inputs: two factors, rank 3, roots of rank 4."""
    right, left = Sum(20, 4), Sum(17, 4)
    for k in range(3):
        right.add(waves(5, 20, start=float(k)))
        left.add(waves(4, 17, start=9.0 + k))
    small_left, small_right = factor(waves(9, 3, start=5.0)), factor(waves(8, 3, start=7.0))
    blocks = {"A": Block(small_left, right.factor()), "B": Block(left.factor(), small_right)}
    jacobians = {"A": waves(2, 3, 3, 20, start=1.0, scale=0.4), "B": waves(2, 3, 17, 3, start=2.0, scale=0.4)}
    expected = torch.tensor(
        [
            [
                [2.7335539, 0.1397673, 0.0163297],
                [0.1397673, 3.8306341, 0.4116372],
                [0.0163297, 0.4116372, 4.7302923],
            ],
            [
                [4.5084591, -0.0892490, 0.1730977],
                [-0.0892490, 4.2153630, -0.0018705],
                [0.1730977, -0.0018705, 3.5478452],
            ],
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(variance(blocks, jacobians, 1 / 0.6), expected, atol=1e-5)
    found = evidence_of(list(blocks.values()), 0.0, 0.0).at(torch.tensor(1 / 0.6, dtype=torch.float64))
    assert float(found) == pytest.approx(-0.5 * 65.1618509551392, rel=1e-7)
