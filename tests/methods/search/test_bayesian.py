"""Bayesian search: what its library is told, batches, and that it widens a front faster than drawing does."""

from __future__ import annotations

import pytest

from lrft.core.search import Gene, Known, Trial
from lrft.lab.search.front import front
from lrft.methods.search import bayesian
from lrft.registry.axes import SEARCHES
from lrft.registry.errors import MissingExtra
from tests.contracts.test_searches import arms

optuna = pytest.importorskip("optuna")

GENES = (
    Gene("adapter.rank", 11, ordered=True),
    Gene("adapter", 3),
    Gene("optimizer.lr", 0, True, 1e-4, 1e-1, log=True),
    Gene("adapter.alpha", 0, True, 2, 40, whole=True),
)


def made(genes=GENES, seed=0, **settings):
    return SEARCHES.get("bayesian")(SEARCHES.settings("bayesian", **settings), genes, seed)


def test_a_batch_waits_for_the_batches_before_it_alone():
    search = made(initial=3, batch=2)
    assert [search.known(index) for index in range(8)] == [0, 0, 0, 3, 3, 5, 5, 7]
    drawn = SEARCHES.get("random")(SEARCHES.settings("random"), GENES, 0)
    assert arms(search, 3) == arms(drawn, 3)


def test_the_library_is_told_losses_that_are_known_and_which_arms_run(monkeypatch):
    """What Optuna would model, seen by a sampler in its place; arms that diverged are left out."""
    told = []

    class Sampler(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, space):
            told.append(study.get_trials(deepcopy=False)[:-1])
            return {}

        def infer_relative_search_space(self, study, trial):
            return {"0": optuna.distributions.IntDistribution(0, 10)}

    monkeypatch.setattr(bayesian, "_sampler", lambda seed: Sampler(seed=seed))
    trials = [
        Trial((3, 1, 0.01, 4), (0.5, 300.0)),
        Trial((0, 0, 0.1, 5), None),
        Trial((9, 2, 1e-4, 6), (0.2, 900.0)),
    ]
    running = (4, 1, 0.002, 7)
    known = Known((*(trial.genes for trial in trials), running), trials, lambda genes: True)
    found = made(initial=3, batch=4).propose(4, known)
    assert [trial.values for trial in told[0]] == [[0.5, 300.0], [0.2, 900.0], None]
    assert [trial.state.name for trial in told[0]] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert told[0][0].params == {"0": 3, "1": 1, "2": 0.01, "3": 4}
    kinds = [type(one).__name__ for one in told[0][0].distributions.values()]
    assert kinds == [
        "IntDistribution",
        "CategoricalDistribution",
        "FloatDistribution",
        "IntDistribution",
    ]
    assert float(f"{found[2]:.3g}") == found[2] and isinstance(found[3], int)


@pytest.mark.parametrize(("library", "number"), [("optuna", "5.0.0"), ("scipy", "5.0.0"), ("", "4.9.0")])
def test_without_its_library_the_install_line_is_said_before_anything_trains(monkeypatch, library, number):
    found = bayesian.find_spec
    monkeypatch.setattr(bayesian, "find_spec", lambda name: None if name == library else found(name))
    monkeypatch.setattr(bayesian, "version", lambda name: number)
    with pytest.raises(
        MissingExtra, match=r"Optuna 5, which is not installed; install it with .*lrft\[search\]"
    ):
        made()


def area(points):
    """What the points dominate below (1, 1)."""
    trials = [Trial(genes, at) for genes, at in points]
    found, best = 0.0, 1.0
    for place in front(trials):
        score, cost = trials[place].losses
        found += max(0.0, best - score) * max(0.0, 1.0 - cost)
        best = min(best, score)
    return found


@pytest.mark.slow  # Gaussian processes: seconds a proposal; what they are told is tested above
def test_a_front_is_wider_than_that_of_as_many_draws():
    genes = (Gene("a", 0, True, 0.0, 1.0), Gene("b", 0, True, 0.0, 1.0))

    def losses(x):
        """The front is b = 1/2, where the score is (1 - a)^2 at the cost a."""
        return ((1 - x[0]) ** 2 + 4 * (x[1] - 0.5) ** 2, x[0])

    search, chosen = made(genes, initial=6, batch=2), []
    while len(chosen) < 16:
        trials = [Trial(x, losses(x)) for x in chosen[: search.known(len(chosen))]]
        known = Known(tuple(chosen), trials, lambda x: True)
        chosen.append(search.propose(len(chosen), known))
    assert (
        made(genes, initial=6, batch=2).propose(15, Known(tuple(chosen[:15]), trials, lambda x: True))
        == chosen[15]
    )
    drawn = arms(SEARCHES.get("random")(SEARCHES.settings("random"), genes, 0), 16)
    assert area([(x, losses(x)) for x in chosen]) > area([(x, losses(x)) for x in drawn]) + 0.02
