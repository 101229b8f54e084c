"""What a class of adapters says of itself: asked of the class alone, before there is a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lrft.core.callback import Callback
from lrft.core.params import Site
from lrft.core.peft import PeftForm
from lrft.core.shared import Shared
from lrft.registry.config import AdapterConfig


class AdapterClass:
    """The declarations of an `Adapter`: its traits, its settings, its count, and what it brings along.

    Class attributes:
        provides, requires: traits (`lrft.registry.traits`).
        site_kinds: kinds of site the method adapts (`lrft.core.params.KINDS`).
        roles: parameter name -> role, read by optimizers that treat factors differently.
        by_position: what it does to a token depends on where in the batch that stands, which an expert does not know.
        wide: its numbers are written in float32 where `dtype` says nothing, whatever the model's precision.
        peft: how PEFT holds the method. Read from the class itself and never inherited: a change of a method that
            PEFT has is another function, so a child says its own form, or has none.
    """

    name: ClassVar[str]
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    roles: ClassVar[dict[str, str]] = {}
    peft: ClassVar[PeftForm | None] = None
    by_position: ClassVar[bool] = False
    wide: ClassVar[bool] = False

    Config: ClassVar[type[AdapterConfig]] = AdapterConfig

    @classmethod
    def shared(cls, config: Any, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """The part that all sites share, made once, or None."""
        return None

    @classmethod
    def timed(cls, config: Any) -> Callback | None:
        """What of the method happens between steps, over all sites, or None; `config` is the recipe's, of no site."""
        return None

    @classmethod
    def peft_form(cls) -> PeftForm | None:
        """The class's own `peft`; a parent's says nothing of a child."""
        form: PeftForm | None = cls.__dict__.get("peft")
        return form

    @classmethod
    def why_not_merged(cls, config: Any, site: Site) -> str:
        """Why what trains at `site` cannot be merged, in one sentence; empty where it can. Asked before loading too."""
        if "mergeable" in cls.provides:
            return ""
        kinds = "".join(
            f"name one kind of row, such as --features {f}, or " for f in cls.row_features(config)[:1]
        )
        return f"{cls.name} cannot be merged (site {site.name}); {kinds}keep the adapter separate"

    @staticmethod
    def count(config: Any, site: Site) -> int:
        """How many numbers train at `site`, as the docstring's formula says."""
        raise NotImplementedError("declare the parameter count")

    @staticmethod
    def virtual_tokens(config: Any) -> int:
        """How many virtual tokens go before every document while the adapter is on (`lrft.core.virtual`)."""
        return 0

    @staticmethod
    def row_features(config: Any) -> tuple[str, ...]:
        """Features of rows, as `column=value`, that the adapter goes by (`lrft.core.features`): trait `features`."""
        return ()
