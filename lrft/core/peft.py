"""`PeftForm`: how PEFT holds a method, said by the method itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrft.registry.json import Json

if TYPE_CHECKING:
    from lrft.core.adapter import Adapter

# What a method's own functions take is its own class and its own settings, which nothing here knows.
# None where PEFT has no place for what the model holds.
Together = Callable[[list[Any], Any], tuple[dict[str, Tensor], dict[str, Json]] | None]

Settings = dict[str, Json]
Tensors = dict[str, Tensor]
Taken = Callable[[Settings, str, Tensors], tuple[Settings, Tensors]]

LORA_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight"}


def own_state(adapter: Adapter, start: Adapter | None = None) -> dict[str, Tensor]:
    """The adapter's own tensors, where PEFT holds the same ones."""
    assert start is None, f"{type(adapter).__name__} declares no form with a start"
    found: dict[str, Tensor] = adapter.state_dict()
    return found


@dataclass(frozen=True)
class PeftForm:
    """How PEFT holds a method.

    Attributes:
        keys: (settings, whether the tensors hold the start too) -> the method's own keys of adapter_config.json.
        tensors: (adapter, the start that the base gave up or None) -> name -> tensor as PEFT expects it, the start
            subtracted, so that they fit the pretrained base.
        names: those names -> what PEFT calls the tensors.
        keys_here: adapter -> its keys, where training changes what the settings say.
        read: (keys of an adapter_config.json, name of a site) -> the method's settings there, None where the file is of
            another method; a ValueError says what the file has that is not read. None where no file is.
        taken: (those settings, name of the site, what a file holds there by our names) -> settings and tensors as the
            method has them, where the tensors say more than the keys, or in another shape.
        unrounded: those names whose tensors PEFT reads in float32 alone; others are written in the adapter's precision.
        transposed: whether PEFT has the method on layers that store (in, out) too, as GPT-2's do.
        lacks: keys of every configuration of PEFT's that it has not for this method.
        together: (adapters of all sites, transformers' model) -> PEFT's tensors and keys, where PEFT holds the method
            as one thing and not site by site; the other attributes then say nothing.
        holds: adapter -> whether PEFT computes its function with its settings; where not, there is no form.
    """

    keys: Callable[[Any, bool], dict[str, Json]] = lambda config, with_start: {}
    tensors: Callable[[Any, Any], dict[str, Tensor]] = own_state
    names: Mapping[str, str] = field(default_factory=lambda: dict(LORA_NAMES))
    keys_here: Callable[[Any], dict[str, Json]] | None = None
    read: Callable[[Mapping[str, Any], str], dict[str, Json] | None] | None = None
    taken: Taken = lambda settings, site, held: (settings, held)
    unrounded: tuple[str, ...] = ()
    transposed: bool = True
    lacks: tuple[str, ...] = ()
    together: Together | None = None
    holds: Callable[[Any], bool] = lambda adapter: True

    def fitted(self, config: dict[str, Json], transposed: bool) -> dict[str, Json] | None:
        """A configuration with the keys that PEFT has for the method; None where the others would say something.

        Args:
            transposed: whether the model's layers store (in, out), which says nothing of a method without the key.
        """
        if any(config.get(key) not in (None, False, "none") for key in self.lacks):
            return None
        whole = {**config, "fan_in_fan_out": transposed} if self.transposed else config
        return {key: value for key, value in whole.items() if key not in self.lacks}

    def keys_of(self, adapter: Adapter, with_start: bool = False) -> dict[str, Json]:
        """The keys of this very adapter."""
        return self.keys(adapter.config, with_start) if self.keys_here is None else self.keys_here(adapter)

    def tensors_of(self, adapter: Adapter, start: Adapter | None = None) -> dict[str, Tensor]:
        """PEFT's name -> tensor of this adapter at its site."""
        return {self.names[name]: tensor for name, tensor in self.tensors(adapter, start).items()}


def lora_keys(rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False) -> dict[str, Json]:
    """The keys of a plain LoRA."""
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
    }
