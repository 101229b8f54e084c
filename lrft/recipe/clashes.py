"""Combinations of keys that cannot work though every section is valid; each function looks for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lrft.recipe.data_clashes import DATA_CLASHES
from lrft.recipe.embedding_clashes import EMBEDDING_CLASHES
from lrft.recipe.federate_clashes import FEDERATE_CLASHES
from lrft.recipe.fields import slot_at
from lrft.recipe.head_clashes import HEAD_CLASHES
from lrft.recipe.more_clashes import MORE
from lrft.recipe.offload_section import OFFLOAD_CLASHES
from lrft.recipe.privacy_section import PRIVACY_CLASHES
from lrft.recipe.scores import SCORES
from lrft.registry.axes import AXES
from lrft.registry.config import parse_choice
from lrft.registry.declared import Declaration
from lrft.registry.errors import Problem
from lrft.registry.json import Json


class Faulty(Exception):
    """Asked for a key that is wrong already."""


class Settings:
    """Values by dotted key, defaults included."""

    def __init__(self, plain: Json, faulty: Collection[str]) -> None:
        self.plain = plain
        self.faulty = faulty

    def __getitem__(self, key: str) -> Json:
        keys = tuple(key.split("."))
        if any(".".join(keys[:length]) in self.faulty for length in range(1, len(keys) + 1)):
            raise Faulty(key)
        value: Json = self.plain
        for part in keys:
            if not isinstance(value, dict) or part not in value:
                slot = slot_at(keys, self.plain)
                default: Json = slot.field.default if slot is not None and slot.field is not None else None
                return default
            value = value[part]
        return value

    def declared(self, axis: str) -> Declaration | None:
        """What is declared of the method chosen on an axis; None where the axis is null."""
        return None if self[axis] is None else AXES[axis].declared(self.text(f"{axis}.method"))

    def that_provide(self, axis: str, trait: str) -> list[str]:
        """The methods of an axis that provide a trait."""
        registry = AXES[axis]
        return [name for name in registry.names() if trait in registry.declared(name).provides]

    def text(self, key: str) -> str:
        """The value of a key that holds a word, whatever else the recipe says."""
        value = self[key]
        assert isinstance(value, str), key
        return value


def _float16_on_cpu(settings: Settings) -> Iterator[Problem]:
    if settings["model.dtype"] == "float16" and settings["train.device"] == "cpu":
        yield Problem("model.dtype", "float16 does not train on the CPU; write bfloat16 or float32")


def _tf32_on_cpu(settings: Settings) -> Iterator[Problem]:
    if settings["train.tf32"] and settings["train.device"] == "cpu":
        yield Problem("train.tf32", "a CPU has no products of that kind; write false")


def _flash_attention(settings: Settings) -> Iterator[Problem]:
    kernel = settings["model.attention"]
    if kernel not in ("flash_attention_2", "varlen"):
        return
    if settings["train.device"] == "cpu":
        message = f"{kernel} needs a GPU, but train.device is cpu; write sdpa or auto"
        yield Problem("model.attention", message)
    if settings["model.dtype"] == "float32":
        message = f"{kernel} has no float32 kernel; write sdpa, or model.dtype: bfloat16"
        yield Problem("model.attention", message)


def _no_targets(settings: Settings) -> Iterator[Problem]:
    if settings["adapter"] is None:
        return
    targets = settings["adapter.targets"]
    if targets == [] or targets == "" or (isinstance(targets, list) and "" in targets):
        yield Problem(
            "adapter.targets", "names no layer; write all-linear, or patterns such as [q_proj, v_proj]"
        )


def _dropped_function(settings: Settings) -> Iterator[Problem]:
    if settings["init"] is None:
        return
    init = AXES["init"].declared(settings.text("init.method"))
    if "undropped" in init.requires and settings["adapter.dropout"]:
        message = f"{init.name} puts a part of the pretrained function where dropout would remove it; write 0"
        yield Problem("adapter.dropout", message)


def _what_trains(settings: Settings) -> Iterator[Problem]:
    weights, quantized = settings["trainable.weights"], settings.text("quantization.method")
    if weights == "full" and settings["adapter"] is not None:
        message = "full trains the weights themselves; write adapter: null, or trainable: adapter"
        yield Problem("trainable.weights", message)
    if weights == "adapter" and settings["adapter"] is None:
        message = "there is no adapter, so nothing would train; write trainable: full, or choose an adapter"
        yield Problem("adapter", message)
    if settings["init"] is None and settings["adapter"] is not None:
        yield Problem("init", "an adapter needs a start; leave the line out, or write init: default")
    if weights == "full" and "dense_base" not in AXES["quantization"].declared(quantized).provides:
        message = f"weights stored as {quantized} cannot be trained; write quantization: none"
        yield Problem("quantization.method", message)
    if weights == []:
        yield Problem("trainable.weights", "is an empty list; write adapter, full, or patterns of parameters")
    if weights != "adapter" and settings["model.dtype"] == "float16":
        yield Problem("model.dtype", "float16 base weights do not train; write bfloat16 or float32")
    if settings["trainable.update"] != "in_place":
        if weights == "adapter":
            message = "is about base weights, and none train; remove it (adapters are float32 already)"
            yield Problem("trainable.update", message)
        elif settings["model.dtype"] == "float32":
            yield Problem("trainable.update", "float32 weights need no master copy; write in_place")


def _end_that_is_not_planned(settings: Settings) -> Iterator[Problem]:
    """Ranks that move and restarts follow the whole run; cut short, a budget is not met and a stage is not folded."""
    ends = [key for key in ("train.stop_below", "train.patience") if settings[key] is not None]
    if not ends:
        return
    allocation = AXES["allocate"].declared(settings.text("allocate.method"))
    timed = [] if settings["restart"] is None else [f"restart {settings['restart.method']}"]
    timed += [f"allocate {allocation.name}"] if "one_stage" in allocation.requires else []
    pruner = settings.declared("prune")
    timed += [f"prune {pruner.name}"] if pruner and "cut_units" not in pruner.provides else []
    if timed:
        message = f"would end the run before {' and '.join(timed)} had done its part; write null"
        yield from (Problem(key, message) for key in ends)


def _compiled_for_one_shape(settings: Settings) -> Iterator[Problem]:
    if settings["model.compile"] is not True:
        return
    if settings["train.packing"] is False:
        yield Problem(
            "model.compile",
            "would compile anew for every length; write train.packing: true or compile: false",
        )
    if (attention := settings["model.attention"]) in ("segmented", "varlen"):
        yield Problem(
            "model.attention",
            f"{attention} changes with every batch and cannot be compiled; write sdpa or auto",
        )
    if settings["model.liger"] is True:
        message = "its kernels would stand in a body that is compiled as a whole; write one of the two"
        yield Problem("model.liger", message)


def _shards_of_nothing(settings: Settings) -> Iterator[Problem]:
    if settings["train.shard_base"] is not True:
        return
    if settings["trainable.weights"] == "full":
        message = "parts of frozen weights are kept, and with trainable: full none is frozen; write false"
        yield Problem("train.shard_base", message)
    if settings["model.compile"] is True:
        yield Problem("model.compile", "cannot gather weights of several processes; write false")
    if settings["model.experts"] == "split":
        message = "its experts would be gathered by processes whose tokens chose others; write whole"
        yield Problem("model.experts", f"{message}, or train.shard_base: false")


def _of_methods(settings: Settings) -> Iterator[Problem]:
    """What the chosen methods' own settings cannot work with; methods that are wrong themselves are not asked."""
    for axis, registry in AXES.items():
        try:
            chosen = settings[axis]
            config = None if chosen is None else parse_choice(registry, chosen)
            yield from () if config is None else config.clashes(settings)
        except (Faulty, ValidationError, PydanticCustomError):
            continue


CLASHES: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    _float16_on_cpu,
    _tf32_on_cpu,
    _flash_attention,
    _no_targets,
    _dropped_function,
    _what_trains,
    *DATA_CLASHES,
    *HEAD_CLASHES,
    *EMBEDDING_CLASHES,
    *SCORES,
    _end_that_is_not_planned,
    *MORE,
    _compiled_for_one_shape,
    _shards_of_nothing,
    *FEDERATE_CLASHES,
    *OFFLOAD_CLASHES,
    *PRIVACY_CLASHES,
    _of_methods,
)
