"""How a search is made, as the words of a command line say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lrft.lab.runs.executor import Executor
from lrft.lab.search.front import COSTS, Cost
from lrft.recipe.catalog import search_meant
from lrft.recipe.document import parse
from lrft.recipe.fields import Slot
from lrft.recipe.tree import Place
from lrft.registry.axes import SEARCHES
from lrft.registry.config import MethodConfig, parse_choice
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What a search is made with.

    Attributes:
        out: folder of runs, lines and report.
        budget: arms in all.
        method: settings of the search.
        metric: see `lrft.lab.runs.judged`.
        against: the cost that is traded for the score.
        seed: of the search; the arms' own is in the recipe.
        jobs: runs at a time.
        keep_checkpoints: of every run, and not its adapter alone.
        cluster: where runs are made; None for processes of this machine.
        trust_remote_code: let code run that comes with the base model.
    """

    out: Path
    budget: int
    method: MethodConfig
    metric: str = "eval_loss"
    against: Cost = "trainable"
    seed: int = 0
    jobs: int = 1
    keep_checkpoints: bool = False
    cluster: Executor | None = None
    trust_remote_code: bool = False


def parse_settings(
    out: Path,
    *,
    budget: int,
    method: str = "random",
    metric: str = "eval_loss",
    against: str = "trainable",
    seed: int = 0,
    jobs: int = 1,
    keep_checkpoints: bool = False,
    cluster: str | None = None,
    cluster_settings: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Settings:
    """The settings that the words of a command line mean.

    Args:
        method: a name, or `{method: NAME, ...}` as recipes write sections.
        cluster: see `lrft.lab.runs.cluster.Cluster`.

    Raises:
        UsageError: names the flag that makes no sense.
        MissingExtra: submitit is needed and not installed.
    """
    cost = next((known for known in COSTS if known == against), None)
    if cost is None:
        raise UsageError(f"--against {against}: choose {' or '.join(COSTS)}")
    if cluster_settings and cluster is None:
        raise UsageError(
            f"--cluster-set {cluster_settings[0]}: there is no cluster to set it for; add --cluster slurm"
        )
    executor = None
    if cluster is not None:
        from lrft.lab.runs.cluster import Cluster

        executor = Cluster(cluster, cluster_settings, out, jobs)
    chosen = parse_method(method)
    return Settings(
        out, budget, chosen, metric, cost, seed, jobs, keep_checkpoints, executor, trust_remote_code
    )


def parse_method(text: str) -> MethodConfig:
    """The settings of the search that is named.

    Raises:
        UsageError: there is no such search, or it has no such setting or value.
        RecipeError: the text is no YAML.
    """
    node, problems = parse(text, Place("--method"))
    if problems:
        raise UsageError(f"--method {text}: {problems[0].message}")
    plain = node.plain()
    name = plain.get("method") if isinstance(plain, dict) else plain
    if isinstance(name, str) and (meant := search_meant(name)):
        raise UsageError(f"--method {text}: is called {meant} here; write --method {meant}")
    try:
        return parse_choice(SEARCHES, plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"--method {text}: {_sentence(plain, first['type'], first['loc'], first['msg'])}"
        ) from None
    except PydanticCustomError as error:
        raise UsageError(f"--method {text}: {error.message()}") from None


def _sentence(plain: object, kind: str, loc: tuple[int | str, ...], message: str) -> str:
    """What is wrong with a setting, as recipes are told it."""
    name = plain.get("method") if isinstance(plain, dict) else plain
    config = SEARCHES.declared(str(name)).config
    key = str(loc[0]) if loc else ""
    if kind == "extra_forbidden":
        known = [field for field in config.model_fields if field != "method"]
        return f"{key} is no setting of {name}{did_you_mean(key, known) if known else ', which has none'}"
    if kind == "value_error" or key not in config.model_fields:
        return message.removeprefix("Value error, ")
    field = config.model_fields[key]
    return f"{key} must be {Slot.of(field.annotation, tuple(field.metadata), field).words()}"
