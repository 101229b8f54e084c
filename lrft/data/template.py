"""A chat template that a recipe asks for, put on a tokenizer: its stop token, and what its marks cost.

A named template is a body that writes `bos` and `stop`; the line before it, written here, says what they are for one
tokenizer, so that what is saved with the model needs nothing else. Of any other template the stop token is read off: it
is the first special token that the template writes after an answer.
"""

from __future__ import annotations

import json
import re
from datetime import date

from lrft.core.notes import say
from lrft.data.chat import PROBE, ChatTemplate
from lrft.data.example import Message
from lrft.data.seam import prefix_ids, token_ids
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.protocols import Tokenizer
from lrft.registry.templates import is_jinja, named_template, template_names

KEY = "data.template"
STOP = re.compile(r"stop: (\S+) -#}")  # of a named template, in its first line
MARK = re.compile(
    r"<\|?[^\s<>|]+\|?>|\[/?[A-Z_]{2,}\]"
)  # what is meant as one token, such as <|im_start|> or [INST]
QUESTION = "Qx6"


def put_on(tokenizer: Tokenizer, stops: set[int], template: str) -> set[int]:
    """Give the tokenizer the template; the tokens that then end a generation. Says what of it is no single token.

    Args:
        tokenizer: changed: its template, and, where another token ends an answer, its end-of-text token.
        stops: what ended a generation before.
        template: a name, or Jinja.

    Raises:
        RecipeError: an unknown name, a template that does not render, or one that ends answers in no stop token.
    """
    name = None if is_jinja(template) else template
    before, mark = tokenizer.eos_token, None if name is None else _stop_mark(name)
    if mark is not None and not _is_token(tokenizer, mark):
        say(
            f"{KEY}: this tokenizer has no token {mark}, so messages end in its end-of-text token {before}; "
            f"model.add_tokens: {{special: ['{mark}']}} gives it one"
        )
        mark = None
    tokenizer.chat_template = template if name is None else _filled_in(tokenizer, name, mark)
    text = _rendered(tokenizer, stops)
    ends = stops | {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    stop = _stop_after(tokenizer, ends if mark is None else {*token_ids(tokenizer, mark)}, text)
    if stop not in stops and "eos_token" not in tokenizer.chat_template:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens([stop])[0]
    _say_costs(tokenizer, text)
    return stops | {stop}


def _filled_in(tokenizer: Tokenizer, name: str, stop: str | None) -> str:
    """A named template as Jinja that stands alone."""
    bos = "bos_token" if _begins_texts(tokenizer) else "''"
    end = "eos_token" if stop is None else json.dumps(stop)
    return f"{{%- set bos = {bos} -%}}{{%- set stop = {end} -%}}\n{named_template(name)}"


def _stop_mark(name: str) -> str | None:
    """What a named template means to end an answer with; None for the end-of-text token, whichever it is.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in template_names():
        known = did_you_mean(name, template_names())
        raise RecipeError(f"there is no template {name!r}{known}, and a file is named by its path", KEY)
    found = STOP.search(named_template(name))
    assert found is not None, f"the first line of {name}.jinja says no stop"
    return None if found[1] == "eos" else found[1]


def _begins_texts(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts its beginning-of-text token before a text: its model then never saw one without."""
    return tokenizer.bos_token_id is not None and prefix_ids(tokenizer)[:1] == [tokenizer.bos_token_id]


def _rendered(tokenizer: Tokenizer, stops: set[int]) -> str:
    """A question and its answer."""
    turns: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": PROBE}]
    try:
        text = ChatTemplate(tokenizer, stops, date(2000, 1, 1)).render(turns)
    except DataError as error:
        raise RecipeError(f"a question and its answer cannot be written: {error}", KEY) from error
    if PROBE not in text:
        raise RecipeError("the template does not write the text of an answer; correct it", KEY)
    return text


def _stop_after(tokenizer: Tokenizer, ends: set[int], text: str) -> int:
    """The first token after the answer that may end one."""
    ending = text.rpartition(PROBE)[2]
    found = next((number for number in token_ids(tokenizer, ending) if number in ends), None)
    if found is None:
        raise RecipeError(
            f"the template writes {ending!r} after an answer, which holds no special token, so nothing would learn to "
            "stop; write {{ eos_token }} there",
            KEY,
        )
    return found


def _say_costs(tokenizer: Tokenizer, text: str) -> None:
    marks = dict.fromkeys(MARK.findall(text.replace(QUESTION, " ").replace(PROBE, " ")))
    costs = [f"{mark} {len(token_ids(tokenizer, mark))}" for mark in marks if not _is_token(tokenizer, mark)]
    if costs:
        say(
            f"{KEY}: marks that are no tokens of this tokenizer cost several wherever they stand: {', '.join(costs)}; "
            "make tokens of them with model.add_tokens, name a tokenizer that has them as model.tokenizer, or write "
            "plain, which needs none"
        )


def _is_token(tokenizer: Tokenizer, mark: str) -> bool:
    """Whether a mark is one token, and stays one between words."""
    alone = token_ids(tokenizer, mark)
    return len(alone) == 1 and alone[0] in token_ids(tokenizer, f"a{mark}a")
