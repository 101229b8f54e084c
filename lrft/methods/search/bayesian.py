"""Multi-objective Bayesian search."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lrft.core.search import Gene, Genes, Known, Search
from lrft.registry.axes import SEARCHES
from lrft.registry.config import Field, MethodConfig
from lrft.registry.errors import MissingExtra

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

OLDEST = 5  # major version of Optuna
AGAIN = 8  # proposals that were tried before or are no recipe, until one is drawn


@SEARCHES.register
class Bayesian(Search):
    """Model score and cost by Gaussian processes, and try what widens their Pareto front most.

        x_i = argmax_x  log E[HV(F + y(x)) - HV(F)],   y_j(x) ~ GP_j given the arms that are over

    with HV the area that a front dominates, F the front so far, y the pair of losses: the score, and the cost of
    `--against`. The first `initial` arms are drawn as by `random`; the others come in batches of `batch`, of which each
    takes those proposed before it for running, so all of a batch can run at a time. An arm that diverged tells nothing.

    Space: lists (of numbers: ordered), choices, ranges, subsets (an option of two for each item).
    State: none beyond the arms and their losses: the processes are fitted anew for each proposal, which takes seconds.
    Source: Zhou et al., "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning", TACL 2024,
    arXiv 2301.12132, and the authors' code (cambridgeltl/autopeft), from which batches of 4 are. Processes, expected
    improvement of the hypervolume and its maximisation are Optuna's `GPSampler`.
    Departures: their process has a sparsity prior on the length scales (SAAS) and is sampled by NUTS, Optuna's is
    fitted by maximum a posteriori; they transform losses by a copula, Optuna standardizes them; half of their 200 arms
    are drawn.
    """

    aliases = {
        "autopeft multi_objective_bayesian": "--method bayesian",
    }

    config: Config

    class Config(MethodConfig):
        initial: int = Field(10, ge=2, description="arms that are drawn before anything is modelled")
        batch: int = Field(4, ge=1, description="arms that are proposed without a result between them")

    def __init__(self, config: MethodConfig, genes: Sequence[Gene], seed: int) -> None:
        super().__init__(config, genes, seed)
        _sampler(0)  # told before the first arm is trained, not after

    def known(self, index: int) -> int:
        modelled = index - self.config.initial
        return 0 if modelled < 0 else index - modelled % self.config.batch

    def propose(self, index: int, known: Known) -> Genes | None:
        rng = self.rng(index)
        if index >= self.config.initial and any(trial.losses for trial in known.trials):
            pending = list(known.chosen[len(known.trials) :])
            for _ in range(AGAIN):
                genes = self._model(rng.randrange(2**31), known, pending)
                if known.is_new(genes):
                    return genes
                pending.append(genes)
        return self.new(known, lambda: self.draw(rng))

    def _model(self, seed: int, known: Known, pending: Sequence[Genes]) -> Genes:
        """Where the expected improvement is largest, given the trials and that `pending` ones run."""
        import optuna
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=_sampler(seed))
        space = {str(place): _distribution(gene) for place, gene in enumerate(self.genes)}

        def numbered(genes: Genes) -> dict[str, int | float]:
            return {str(place): value for place, value in enumerate(genes)}

        for trial in known.trials:
            if trial.losses is not None:
                told = create_trial(
                    params=numbered(trial.genes), distributions=space, values=list(trial.losses)
                )
                study.add_trial(told)
        for genes in pending:
            running = create_trial(params=numbered(genes), distributions=space, state=TrialState.RUNNING)
            study.add_trial(running)
        found = study.ask(space).params
        return tuple(
            found[str(place)] if gene.options else gene.round(found[str(place)])
            for place, gene in enumerate(self.genes)
        )


def _distribution(gene: Gene) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if gene.options and not gene.ordered:
        return CategoricalDistribution(range(gene.options))
    if gene.options:
        return IntDistribution(0, gene.options - 1)
    if gene.whole:
        return IntDistribution(int(gene.low), int(gene.high), log=gene.log)
    return FloatDistribution(gene.low, gene.high, log=gene.log)


def _sampler(seed: int) -> BaseSampler:
    """Optuna's Gaussian processes.

    Raises:
        MissingExtra: Optuna is not installed, is older than its batches of two losses, or lacks SciPy.
    """
    found = all(find_spec(library) for library in ("optuna", "scipy"))
    if not found or int(version("optuna").partition(".")[0]) < OLDEST:
        raise MissingExtra(
            f"--method bayesian: arms are proposed by Optuna {OLDEST}, which is not installed; install it with "
            "`pip install 'lrft[search]'`, or choose --method evolution"
        )
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=1)
