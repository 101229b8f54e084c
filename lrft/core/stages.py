"""What happens once, before training: the plan of the sites, and the initialisation of their adapters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.config import MethodConfig
from lrft.core.frozen import Quantizer
from lrft.core.params import Site


@dataclass
class SitePlan:
    """What was decided for one site: the adapter's settings there, after every planner had its say."""

    site: Site
    settings: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        return {**asdict(self.site), "settings": self.settings}


Plan = dict[str, SitePlan]
Signals = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> tensor, measured by calibration."""


class Planner:
    """Decides about all sites at once: ranks, bits."""

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    needs: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def plan(self, plan: Plan, signals: Signals) -> Plan:
        """The plan, changed or not."""
        return plan


class Init(Planner):
    """Sets an adapter's factors from the true weight, before that weight is quantized.

    With `residual` the start of the adapter is a change of the weight that the base gives up, so that the model is
    the pretrained one at step 0. The start is kept with the adapter: it says what the base gave up, on a resume
    and on export.
    """

    residual: ClassVar[bool] = False

    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        """Set the adapter's factors in place.

        Args:
            weight: the dense weight (out, in), never a rounded one.
            signal: the statistics named in `needs`, for this site.
            quantize: how the base will be stored, for decompositions that iterate with the real rounding.
        """


class Statistic:
    """Something measured at a site while the pretrained model runs forward and backward over calibration batches."""

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def update(self, x: Tensor, dy: Tensor) -> None:
        """Take one micro-batch: inputs (tokens, in) and gradients of the outputs (tokens, out)."""
        raise NotImplementedError(f"{type(self).__name__} declares no update")

    def result(self) -> Tensor:
        """The statistic over all micro-batches."""
        raise NotImplementedError(f"{type(self).__name__} declares no result")
