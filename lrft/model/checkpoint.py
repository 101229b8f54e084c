"""What a model's files may not hold: other tensors than the architecture's, packed bits, another head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from lrft.model.packing import packing_said
from lrft.registry.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from lrft.model.hf import ModelConfig

SHOWN = 3  # tensors named in a message
MOST_LAYERS = 10_000  # each is built before a weight is read
OTHER_HEADS = (
    "SequenceClassification",
    "TokenClassification",
    "QuestionAnswering",
    "MultipleChoice",
    "Regression",
)


class LoadingReport(TypedDict):
    """Transformers' `output_loading_info`."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]
    error_msgs: list[str]


def check_config(name: str, config: ModelConfig) -> None:
    """Refuse what the configuration already says cannot be trained. Layers in few bits that a storage takes over can.

    Raises:
        RecipeError: the weights are quantized, the head is not that of a language model, or its layers
            are more than any model has.
    """
    stored = getattr(config, "quantization_config", None)
    plain = stored if isinstance(stored, dict) or stored is None else stored.to_dict()
    if plain is not None:
        _check_packed(name, plain)
    for architecture in getattr(config, "architectures", None) or ():
        _, _, purpose = architecture.partition("For")
        if purpose in OTHER_HEADS:
            raise RecipeError(
                f"{name!r} is a {architecture}, which gives no next token; name the language model it was made from",
                "model.name",
            )
    check_layers(name, getattr(config.get_text_config(), "num_hidden_layers", None))


def check_layers(name: str, count: object) -> None:
    """Refuse more layers than can be meant, before each of them is built.

    Raises:
        RecipeError: there are.
    """
    if isinstance(count, int) and not 0 <= count <= MOST_LAYERS:
        raise RecipeError(
            f"{name!r} says that it has {count:,} layers, and at most {MOST_LAYERS:,} can be meant; get it again",
            "model.name",
        )


def _check_packed(name: str, said: Mapping[str, Any]) -> None:
    """Refuse a `quantization_config` that no storage here takes over."""
    reason = ""
    try:
        if packing_said(said) is not None:
            return
    except UsageError as error:
        reason = f", and {error}"
    method = said.get("quant_method") or "an unnamed method"
    bits = " (8 bits)" if said.get("load_in_8bit") else ""
    raise RecipeError(
        f"{name!r} holds weights that {method} has quantized already{bits}{reason}; name the unquantized checkpoint, "
        "whose layers the quantization section of the recipe stores in few bits",
        "model.name",
    )


def check_loaded(name: str, report: LoadingReport) -> None:
    """Refuse tensors that are missing, unexpected or of another shape: what is missing would be drawn at random.

    Args:
        report: transformers' `output_loading_info`.

    Raises:
        RecipeError: names the first of each kind.
    """
    mismatched = {
        key: f"{key} ({_shape(own)} in the file, {_shape(ours)} in the model)"
        for key, own, ours in report["mismatched_keys"]
    }
    kinds = {
        "does not hold": sorted(report["missing_keys"] - mismatched.keys()),
        "holds what the architecture has no place for:": sorted(report["unexpected_keys"]),
        "holds in another shape": [mismatched[key] for key in sorted(mismatched)],
    }
    found = [f"{words} {_listed(keys)}" for words, keys in kinds.items() if keys]
    found += [str(message).splitlines()[0] for message in report["error_msgs"]]
    if found:
        raise RecipeError(
            f"{name!r} {'; it '.join(found)}; give a checkpoint that holds the whole language model and nothing else",
            "model.name",
        )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
