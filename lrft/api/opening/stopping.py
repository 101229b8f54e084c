"""A merged folder generates as the run does: by its own tokenizer, template and settings it stops where ours stops."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from lrft.build.rows import training_rows
from lrft.build.text import Text
from lrft.core import stop
from lrft.core.notes import say
from lrft.data.tokenize import Renderer
from lrft.evaluation.batching import scoring
from lrft.evaluation.generate import before_stop
from lrft.export.fidelity import Generation
from lrft.model.batching import own_settings, stock_attention
from lrft.model.causal_lm import CausalLM
from lrft.model.rope import positions_of
from lrft.model.stopping import generation_of, read_tokenizer
from lrft.model.tokenizer import is_left_out
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, first_line
from lrft.registry.protocols import Tokenizer

NEW_TOKENS = 48


def check_stops(recipe: Recipe, text: Text, merged: CausalLM, folder: Path, trusted: bool) -> Generation:
    """Generate an answer greedily by the folder's own files, and without any stop to cut by the run's stop ids.

    Returns:
        `eos_token_id` and `pad_token_id` of the folder; `agrees`, whether its ids, its prompt and its answer are those
        of the run; `new_tokens` of the answer and whether it `stopped` before the limit, where a row has a prompt;
        `generates` is false where the model cannot.
    """
    settings, tokenizer = generation_of(folder), read_tokenizer(folder, trusted)
    said = settings.eos_token_id
    ends = said if isinstance(said, list) else [said]
    pads = settings.pad_token_id not in ends or not is_left_out(text.tokenizer, text.pad_id)
    agrees = set(ends) == text.stop_ids and pads
    agrees = agrees and tokenizer.eos_token_id in (None, ends[0])
    found: Generation = {"eos_token_id": ends, "pad_token_id": settings.pad_token_id, "agrees": agrees}
    prompts = _prompts(recipe, text, tokenizer)
    if prompts is None or (room := _room(merged, prompts[0])) < 1:
        return found
    endless = copy.deepcopy(settings)
    endless.eos_token_id = None
    with scoring(merged), stock_attention(merged.hf), stop.at_once():
        try:
            theirs = _greedy(merged, prompts[1], max_new_tokens=room)
            with own_settings(merged.hf):
                ours = _greedy(merged, prompts[0], max_new_tokens=room, generation_config=endless)
        except Exception as error:  # whatever a model's own code raises: there is no answer to compare
            reason = first_line(error)
            say(f"the merged model does not generate ({reason}), so only its stop ids were compared")
            return {**found, "generates": False}
    answer = before_stop(ours, text.stop_ids)
    expected = ours[: len(answer) + 1]  # the stop token itself, where there is one
    agrees = agrees and prompts[0] == prompts[1] and theirs == expected
    return {**found, "agrees": agrees, "new_tokens": len(theirs), "stopped": len(answer) < len(ours)}


def _prompts(recipe: Recipe, text: Text, tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """The prompt of the first row as the run renders it and as the folder's tokenizer does; None without one."""
    ours = text.renderer
    folders = Renderer(tokenizer, ours.format, text.stop_ids, ours.max_length, ours.too_long, ours.today)
    try:
        row = (text.held_out or training_rows(recipe, 1))[0]
        prompts = ours.prompt_ids(row), folders.prompt_ids(row)
    except DataError:
        return None  # said already where the rows to compare on were looked for
    return prompts if prompts[0] else None


def _room(model: CausalLM, prompt: list[int]) -> int:
    """New tokens that the model has positions for, up to the limit."""
    positions = positions_of(model.hf.config.get_text_config())
    return NEW_TOKENS if positions is None else min(NEW_TOKENS, positions - len(prompt))


def _greedy(model: CausalLM, prompt: list[int], **settings: object) -> list[int]:
    """New token ids, the stop token included."""
    ids = torch.tensor([prompt], device=model.device)
    one = {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "min_length": 0,
        "min_new_tokens": 0,
    }
    produced: torch.Tensor = model.hf.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **one, **settings
    )
    new: list[int] = produced[0, len(prompt) :].tolist()
    return new
