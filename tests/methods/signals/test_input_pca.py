"""Incremental principal components: their own statements, and PEFT's numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.stages import Tokens
from lrft.methods.signals.input_pca import InputPCA


def all_of(rows):
    return Tokens(torch.arange(rows.shape[0]), torch.arange(rows.shape[0] - 1))


def data(batches=4, rows=50, width=20):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(1, -2, width)
    return [torch.randn(rows, width, generator=generator) @ mixing.mT + 3 for _ in range(batches)]


def fitted(batches, **options):
    pca = InputPCA(tokens="all", **options)
    for rows in batches:
        pca.update(rows, None, all_of(rows))
    return pca


def test_its_rows_are_orthonormal_and_the_leading_components_of_all_centred_rows():
    batches = data()
    found = fitted(batches, components=20, niter=None).result()
    X = torch.cat(batches).double()
    _, S, Vh = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    torch.testing.assert_close(found[:, :20] @ found[:, :20].mT, torch.eye(20), atol=1e-4, rtol=0)
    agreement = (found[:8, :20].double() * Vh[:8]).sum(1).abs()
    torch.testing.assert_close(agreement, torch.ones(8, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:8, 20].double(), S[:8], atol=1e-3, rtol=1e-4)
    total = (X - X.mean(0)).square().sum()
    torch.testing.assert_close(found[:8, 21].double(), S[:8].square() / total, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("components", [4, 9])
def test_the_numbers_are_those_of_pefts_incremental_pca(components):
    pca = pytest.importorskip("peft.utils.incremental_pca")
    theirs = pca.IncrementalPCA(n_components=components, copy=True, lowrank=True, lowrank_seed=42)
    ours = InputPCA(components=components, tokens="all")
    before = None
    for rows in data():
        ours.update(rows, None, all_of(rows))
        theirs.partial_fit(rows)
        found, components_ = ours.result(), theirs.components_.float()
        torch.testing.assert_close(found[:, :20], components_, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[:, 20], theirs.singular_values_.float(), atol=1e-3, rtol=1e-4)
        ratio = theirs.explained_variance_ratio_.float()
        torch.testing.assert_close(found[:, 21], ratio, atol=1e-6, rtol=1e-4)
        if before is not None:
            cosine = torch.nn.functional.cosine_similarity(components_, before)
            torch.testing.assert_close(found[:, 22], cosine, atol=1e-5, rtol=1e-4)
        before = components_


def test_it_reads_the_inputs_of_the_answer_tokens():
    """Position 3 is supervised because token 4 is a target; token 4's own input is what counts."""
    rows = data(batches=1)[0]
    pca, expected = InputPCA(components=5), InputPCA(components=5, tokens="all")
    pca.update(rows, None, Tokens(torch.arange(50), torch.arange(3, 40)))
    expected.update(rows[4:41], None, all_of(rows[4:41]))
    assert torch.equal(pca.result(), expected.result())


def test_too_few_tokens_wait_for_the_next_batch():
    rows = data(batches=1)[0]
    apart, together = fitted([rows[:3], rows[3:]], components=10), fitted([rows], components=10)
    assert torch.equal(apart.result(), together.result())
    assert fitted(rows.split(6), components=12).count == 48  # the last two rows still wait


def test_there_are_at_most_as_many_components_as_features():
    assert fitted(data(batches=1), components=50).result().shape == (20, 23)


def test_fewer_tokens_than_components_in_all_are_an_error_with_both_numbers():
    with pytest.raises(ValueError, match="7 tokens, fewer than its 10 components"):
        fitted([data(batches=1)[0][:7]], components=10).result()


def test_it_has_converged_when_every_component_stays():
    batches = data(batches=1) * 6
    pca = fitted(batches[:1], components=3, tau=0.99)
    assert not pca.converged  # there is no step before
    for rows in batches[1:]:
        pca.update(rows, None, all_of(rows))
    assert pca.converged
    assert not fitted(batches, components=3, tau=1.0 + 1e-3).converged


def test_with_a_rule_for_all_sites_only_the_components_that_it_spends_rank_on_must_settle():
    batches = data(batches=3)

    def only_first(ratios, budget):
        assert budget == 8
        return dict.fromkeys(ratios, 1)

    sites = {site: fitted(batches, components=12, rank=4, needed=only_first) for site in "ab"}
    assert not any(one.converged for one in sites.values())
    assert sites["a"].has_settled(1)
    assert InputPCA.settled(sites) == {"a", "b"}
    assert InputPCA.settled({site: fitted(batches, components=12) for site in "ab"}) == set()
