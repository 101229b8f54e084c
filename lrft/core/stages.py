"""What happens once, before training: the plan of the sites, and the initialisation of their adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from lrft.core.adapter import Adapter, Factors
from lrft.core.frozen import Quantizer
from lrft.core.params import Site
from lrft.core.tokens import Tokens as Tokens
from lrft.registry.config import AdapterConfig, MethodConfig, Source
from lrft.registry.errors import DamagedFile, RecipeError
from lrft.registry.json import Json


@dataclass
class SitePlan:
    """What was decided for one site, after every planner had its say.

    Attributes:
        config: the adapter's settings there; None where no adapter goes.
        quantization: settings of the storage that differ from the recipe's.
    """

    site: Site
    config: AdapterConfig | None = None
    quantization: dict[str, Json] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """The adapter's rank there, if it has one."""
        rank: int | None = self.setting("rank")
        return rank

    def setting(self, name: str) -> Any:
        """The adapter's setting of that name; None where there is no adapter, or none of that name."""
        return getattr(self.config, name, None)

    def changed(self, **settings: object) -> SitePlan:
        """The plan of the site with other settings of the adapter, which must be there and have such settings."""
        assert self.config is not None and settings.keys() <= type(self.config).model_fields.keys()
        return replace(self, config=self.config.model_copy(update=settings))

    def record(self) -> dict[str, Json]:
        """Plain values for plan.json."""
        settings = None if self.config is None else self.config.model_dump()
        return {**asdict(self.site), "settings": settings, "quantization": self.quantization}

    @classmethod
    def of(cls, record: dict[str, Any], config: type[AdapterConfig]) -> SitePlan:
        """What `record` gave, back; `config` is the adapter's.

        Raises:
            DamagedFile: these are no settings of the adapter.
        """
        names = {field.name for field in fields(Site)}
        site = Site(**{key: value for key, value in record.items() if key in names})
        settings = record["settings"]
        try:
            chosen = None if settings is None else config.model_validate(settings)
        except ValueError as error:  # of pydantic: a heading, a key, what is wrong with it
            said = ": ".join(line.strip().partition(" [type=")[0] for line in str(error).splitlines()[1:3])
            raise DamagedFile("plan.json", f"{site.name} has settings that are none ({said})") from None
        return cls(site, chosen, record.get("quantization", {}))


Plan = dict[str, SitePlan]


def ranks_of(plan: Plan) -> list[int]:
    """The rank of every site whose adapter has one."""
    return [entry.rank for entry in plan.values() if entry.rank is not None]


WarmUp = Callable[[list[Tensor]], Callable[[], None]]
Signals = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> tensor, measured by calibration."""


@dataclass(frozen=True)
class Evidence:
    """What a planner may look at.

    Attributes:
        signals: the statistics the planner `needs`, by site.
        weight: site name -> the dense weight (out, in).
        quantize: how bases are stored; keyword settings override the recipe's.
        progress: hears (sites done, sites in all).
    """

    signals: Signals
    weight: Callable[[str], Tensor]
    quantize: Quantizer
    progress: Callable[[int, int], None] = lambda done, total: None


class Planner:
    """Decides about all sites at once: ranks, bits.

    Attributes of the class, or of an instance:
        needs: statistics to measure first, by name; `name@label` is measured over the rows of `sources()[label]`
            instead of the training rows. A planner with needs has a setting `batches`, how many micro-batches.
        reads_weights: `plan` looks at weights. A dry run asks such a planner, and one with needs, `foresee`.
        objective: the objective whose gradients are measured, by name; by default the recipe's.
        warm_up: all weights -> what steps with their gradients while they are measured; they are put back after.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    needs: tuple[str, ...] = ()
    reads_weights: bool = False
    objective: str | None = None
    warm_up: WarmUp | None = None
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`; `needs` asks for a setting that not all have

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan, changed or not. `evidence` is None only where neither needs nor weights were asked for."""
        return plan

    def foresee(self, plan: Plan) -> Plan:
        """The plan as far as a dry run can tell, which looks at nothing: counts that sum to what they will."""
        return plan

    def sources(self) -> dict[str, Source]:
        """Label -> rows that statistics called `name@label` are measured over."""
        return {}

    def signal_options(self, name: str, config: AdapterConfig) -> dict[str, object]:
        """Keyword arguments of the statistic `name` at a site with these adapter settings."""
        return {}


class Init(Planner):
    """Sets an adapter's factors from the true weight, before that weight is quantized.

    With `residual` the start of the adapter is a change of the weight that the base gives up, so that the model is
    the pretrained one at step 0. The start is kept with the adapter: it says what the base gave up, on a resume
    and on export.

    Class attributes:
        residual: see above.
        directions: how many directions of a matrix (out, in) the start takes for each rank component; 0 where it takes
            none. The matrix has no more of them than its shorter side has entries.
    """

    residual: ClassVar[bool] = False
    directions: ClassVar[int] = 0

    def most_rank(self, site: Site) -> int | None:
        """The highest rank that a start can have at `site`; None where every rank can start."""
        return min(site.in_features, site.out_features) // self.directions if self.directions else None

    def check(self, plan: Plan) -> None:
        """Refuse ranks that there are not enough directions for, before anything is measured or decomposed.

        Raises:
            RecipeError: names the site that allows the lowest rank.
        """
        ranks = {name: entry.rank for name, entry in plan.items() if entry.config is not None}
        over = []
        for name, rank in ranks.items():
            most = self.most_rank(plan[name].site)
            if rank is not None and most is not None and rank > most:
                over.append((most, name))
        if not over:
            return
        most, name = min(over)
        shape = f"{plan[name].site.out_features} x {plan[name].site.in_features}"
        remedy = f"use at most {most} there" if most else "leave it out of adapter.targets"
        raise RecipeError(
            f"rank {ranks[name]} is more than {self.name} can start at {name}, which is {shape}; {remedy}, or choose "
            f"another init ({len(over)} of {len(ranks)} layers have too high a rank)",
            "adapter.rank",
        )

    def apply(
        self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer
    ) -> Factors | None:
        """Set the adapter's factors in place.

        Args:
            weight: the dense weight (out, in), never a rounded one.
            signal: the statistics named in `needs`, for this site.
            quantize: how the base will be stored, for decompositions that iterate with the real rounding.

        Returns:
            With `residual`: what is taken off the weight before it is stored, when that is not the start itself
            (joint decompositions end with the adapter, so their base was stored against the factors before). None
            otherwise. Factors are kept in the checkpoint, so that the base can be stored again on a resume.
        """
        return None  # the start that the adapter's own constructor drew


class Statistic:
    """Something measured at a site while the pretrained model runs over calibration batches.

    Class attributes:
        backward: needs the gradient of the output; without it only forward passes are run.
        per_document: every micro-batch is one document.
        of_input: depends on the input alone, so layers that share an input share the statistic.
        of_output: is given the outputs (T, out) in the place of the inputs.
        path: where it is not 0, what a document is given is one row, of the last token of its prompt: the output there,
            and the mean gradient of the score of the model's own answer along the path from 0 to that output, by the
            trapezoidal rule over so many points. Every micro-batch is one document.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    backward: ClassVar[bool] = True
    per_document: ClassVar[bool] = False
    of_input: ClassVar[bool] = False
    of_output: ClassVar[bool] = False
    path: ClassVar[int] = 0

    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        """Take one micro-batch: inputs (T, in) and gradients of the outputs (T, out), padding included.

        The loss behind `dy` is the mean over the micro-batch's target tokens, unless it is taken along a `path`.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no update")

    @property
    def converged(self) -> bool:
        """More batches would change nothing; calibration ends when all statistics say so."""
        return False

    @classmethod
    def settled(cls, statistics: Mapping[str, Self]) -> set[str]:
        """Sites whose statistic needs no more batches, given those of all sites."""
        return {site for site, statistic in statistics.items() if statistic.converged}

    def result(self) -> Tensor:
        """The statistic over all micro-batches."""
        raise NotImplementedError(f"{type(self).__name__} declares no result")
