"""Which attention backend a model runs on: the first that its architecture takes, and that computes what it should."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import NamedTuple

import torch

from lrft.core.siblings import noticing
from lrft.model import varlen
from lrft.model.causal_lm import CausalLM
from lrft.model.kept import prove_kept
from lrft.model.probe import FUTURE, VALUES, Fault, batch_of, find_fault, training_fault
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError, first_line

# Tokens of a row for which a mask of all pairs is made on a GPU: it takes 8 MiB, and of 32,768 tokens 2 GiB.
MASKED = 2048


def attention_backends(section: ModelSection, device: torch.device) -> list[str]:
    """The attention implementations that `model.attention` allows on `device`, best first."""
    if section.attention != "auto":
        return [str(section.attention)]
    if device.type == "cpu" and not section.compile:
        return ["segmented", "sdpa", "eager"]
    if device.type != "cuda" or section.compile or section.dtype == "float32":
        return ["sdpa", "eager"]
    flash = importlib.util.find_spec("flash_attn") is not None
    kernels = {"flash_attention_2": flash, varlen.NAME: varlen.is_here()}
    return [*(name for name, there in kernels.items() if there), "sdpa", "eager"]


def first_backend(model: CausalLM, section: ModelSection, device: torch.device) -> None:
    """Set the first backend that the architecture takes.

    Raises:
        RecipeError: it takes none of those that `model.attention` allows.
    """
    backends = attention_backends(section, device)
    if not any(model.set_attention(backend) for backend in backends):
        others = [backend for backend in ("segmented", "sdpa", "eager") if model.set_attention(backend)]
        raise RecipeError(
            f"{type(model.hf).__name__} does not take {backends[-1]}; write {' or '.join(others) or 'auto'}",
            "model.attention",
        )


class Settled(NamedTuple):
    """How the rows of training are attended to.

    Attributes:
        packing: whether they hold several documents.
        note: a sentence where that or the backend is not the first choice, or empty.
        told: the note says that the model does not keep the documents of a row apart.
    """

    packing: bool
    note: str
    told: bool = False


def settle_attention(
    model: CausalLM, section: ModelSection, device: torch.device | str, packing: bool | None
) -> Settled:
    """Set the first backend with which the model computes what it should.

    Args:
        model: with its weights, where the backend can run.
        packing: whether rows will hold several documents; None to let them where the model keeps them apart.

    Raises:
        RecipeError: no backend that `model.attention` allows will do; says what would.
    """
    if packing is not None:
        return Settled(packing, _settle(model, section, device, packing))
    try:
        return Settled(True, _settle(model, section, device, True))
    except RecipeError as error:
        if error.problems[0].key != "train.packing":
            raise
        note = _settle(model, section, device, False)
        reason = error.problems[0].message.partition("; ")[0]
        return Settled(False, f"train.packing: false ({reason}){f'; {note}' if note else ''}", told=True)


def keeps_apart(model: CausalLM, section: ModelSection) -> bool:
    """Whether the backend computes each document of a row by itself, so that a long row costs no more than many."""
    ours = model.attention == "segmented" or model.flattens
    return ours and not section.compile  # a compiled model is made for one length


def check_mask(model: CausalLM, section: ModelSection, device: torch.device | str, row: int) -> None:
    """Refuse rows on a GPU whose mask, one number for every pair of tokens, would take more than the layers do.

    Args:
        model: with the backend that was settled on.
        row: most tokens of a row that needs a mask; 0 where none does.

    Raises:
        RecipeError: says what would work.
    """
    if torch.device(device).type != "cuda" or keeps_apart(model, section) or row <= MASKED:
        return
    shorter = f"train.max_length={MASKED} or train.batch_size=1 with train.packing=false"
    remedies = {
        f"model.dtype=bfloat16, or {shorter}": section.dtype == "float32",
        f"model.compile=false, or {shorter}": section.compile,
        f"model.attention=auto, or {shorter}": section.attention != "auto",
    }
    remedy = next((text for text, fits in remedies.items() if fits), shorter)
    raise RecipeError(
        f"{row} tokens of a row are more than {MASKED}, beyond which the mask of {model.attention} attention outgrows "
        f"a GPU; write {remedy}",
        "train.max_length",
    )


def why_padded(model: CausalLM, section: ModelSection, packing: bool) -> str:
    """Why the rows of a micro-batch are not joined to one, which needs no padding; empty where they are.

    Args:
        model: with the backend that was settled on.
        packing: the documents of a row are known to be kept apart.
    """
    if not keeps_apart(model, section):
        return f"{model.attention} attention computes every pair of tokens of a row"
    fault = None if packing else find_fault(model, packing=True)
    return "" if fault is None else f"{type(model.hf).__name__}: {fault.what}"


def _settle(model: CausalLM, section: ModelSection, device: torch.device | str, packing: bool) -> str:
    """Set the first backend that has no fault; a sentence where it is not the first."""
    faults: dict[str, Fault] = {}
    for backend in attention_backends(section, torch.device(device)):
        if not model.set_attention(backend):
            faults[backend] = Fault(VALUES, f"{type(model.hf).__name__} does not take it")
            continue
        fault = _varlen_fault(model, backend, device) or find_fault(model, packing)
        if fault is None:
            why = "; ".join(f"{name}: {fault.what}" for name, fault in faults.items())
            return f"model.attention: {backend} ({why})" if faults else ""
        faults[backend] = fault
    raise _refusal(model, faults, packing)


def _varlen_fault(model: CausalLM, backend: str, device: torch.device | str) -> Fault | None:
    """What keeps a model from `varlen`, where that is asked, beside what it computes in evaluation mode."""
    if backend != varlen.NAME:
        return None
    if torch.device(device).type != "cuda" or not varlen.is_here():
        return Fault(VALUES, "it needs a GPU, and a torch that has it")
    return training_fault(model)


def _refusal(model: CausalLM, faults: dict[str, Fault], packing: bool) -> RecipeError:
    """What would work instead of backends that have these faults."""
    told = [item for item in faults.items() if item[1].kind != VALUES]
    backend, fault = next(iter([*told, *faults.items()]))
    family = type(model.hf).__name__
    others = [name for name in ("segmented", "sdpa", "eager") if name not in faults]
    what = f"{family} with {backend} attention: {fault.what}"
    if works := _first_faultless(model, others, packing):
        return RecipeError(f"{what}; write {works}", "model.attention")
    if packing and (works := _first_faultless(model, [*faults, *others], False)):
        remedy = "write false" if works in faults else f"write false, with model.attention: {works}"
        return RecipeError(f"{what}; {remedy}", "train.packing")
    if fault.kind == FUTURE:
        return RecipeError(
            f"{family} is no causal language model: {fault.what}; name one that is", "model.name"
        )
    return RecipeError(f"{what}; lrft cannot train this model, see the models that it can", "model.name")


def _first_faultless(model: CausalLM, backends: Iterable[str], packing: bool) -> str | None:
    return next((b for b in backends if model.set_attention(b) and find_fault(model, packing) is None), None)


def check_runs(model: CausalLM) -> None:
    """Run a few tokens forward and back in training mode through the layers that replaced the model's own.

    Sites that are given one tensor are computed together from then on (`lrft.core.siblings`). What is kept of keys and
    values is compared with the model's own cache.

    Raises:
        RecipeError: the model's code looks for something of its own layers that these have not, or keeps other keys
            and values.
    """
    training = model.training
    # One is enough for a pass all the way back, and the gradients of all may be more than fits.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad][:1]
    model.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad(), noticing(model.hf):
            hidden = model.hidden(batch_of([[[1, 2, 3]]]).to(model.device))
            if hidden.requires_grad:
                torch.autograd.grad(hidden.float().sum(), trained, allow_unused=True)
    except Exception as error:  # whatever a model's own code raises
        reason = first_line(error)
        raise RecipeError(
            f"the code of {type(model.hf).__name__} does not run with layers in place of its own "
            f"({type(error).__name__}: {reason}), so it cannot be adapted or quantized; docs/models.md lists families "
            "that can",
            "model.name",
        ) from None
    finally:
        model.train(training)
    prove_kept(model)
