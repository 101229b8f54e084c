"""Loading the tokenizer, and the tokens that end a generation."""

from __future__ import annotations

from typing import cast

from lrft.core import stop
from lrft.data.template import put_on
from lrft.model.files import Where, quiet, resolve
from lrft.model.new_tokens import NewTokens, add_tokens
from lrft.model.opening import opening
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from lrft.registry.protocols import Tokenizer

LARGEST = 2**31  # beyond every token's id


def load_tokenizer(
    section: ModelSection, trust_remote_code: bool = False, template: str | None = None
) -> tuple[Tokenizer, set[int]]:
    """The tokenizer of `model.tokenizer`, or of `model.name`, and every token id that ends a generation.

    The pad token is never one of the stop tokens: a tokenizer whose pad is its stop token gets another special token.

    Args:
        template: `data.template` of the recipe, a chat template in the place of the tokenizer's own.

    Raises:
        RecipeError: it cannot be loaded, knows no token to stop at, or cannot write the template.
    """
    key, (name, options), tokenizer = _read(section, trust_remote_code)
    stops = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if section.weights == "pretrained":  # what a model was trained to stop at; one without weights was not
        name, options = resolve(section.name, section.revision)
    stops |= _ends(section.name, name, options)
    if not stops:
        raise RecipeError("the tokenizer has no end-of-sequence token, so nothing could learn to stop", key)
    add_tokens(tokenizer, section)
    if template is not None:
        stops = put_on(tokenizer, stops, template)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        token = _spare_token(tokenizer, stops)
        if token is not None:
            tokenizer.pad_token = token
    return tokenizer, stops


def _ends(said: str, name: str, options: Where) -> set[int]:
    """The tokens that a model's generation config ends an answer at; none without one.

    Raises:
        RecipeError: it is torn, or holds what is no token.
    """
    from transformers import GenerationConfig

    with opening(said):
        try:
            ends = GenerationConfig.from_pretrained(name, **options).eos_token_id
        except OSError as error:
            if "valid JSON" in str(error):
                raise
            return set()  # a model without a generation config stops at its tokenizer's eos
        found = set(ends if isinstance(ends, list) else [ends]) - {None}
        if wrong := next((one for one in found if not (type(one) is int and 0 <= one < LARGEST)), None):
            raise ValueError(f"its generation config ends answers at {str(wrong)[:40]!r}, which is no token")
        return found


def read_new_tokens(section: ModelSection, trust_remote_code: bool = False) -> NewTokens | None:
    """What `model.add_tokens` adds to the tokenizer, or None.

    Raises:
        RecipeError: the tokenizer cannot be loaded, or cannot take them.
    """
    return None if section.add_tokens is None else add_tokens(_read(section, trust_remote_code)[2], section)


def _read(section: ModelSection, trusted: bool) -> tuple[str, tuple[str, Where], Tokenizer]:
    """The tokenizer as its files have it, the key that names it, and where it was found."""
    from transformers import AutoTokenizer

    quiet()
    key, source = _tokenizer_source(section)
    name, options = resolve(*source)
    with opening(source[0], key), stop.at_once():
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted, **options)
        found("a")  # settings of other types are met no sooner
    # transformers finds names of special tokens when they are asked for
    return key, (name, options), cast(Tokenizer, found)


def pad_id(tokenizer: Tokenizer, stops: set[int]) -> int:
    """The id that fills rows: the pad token, or the first id that stops nothing. Never seen by the loss."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
        return int(tokenizer.pad_token_id)
    return next(i for i in range(len(tokenizer)) if i not in stops)


def is_left_out(tokenizer: Tokenizer, token: int) -> bool:
    """Whether decoding without special tokens leaves the token out; any other is text, wherever it stands."""
    added = tokenizer.added_tokens_decoder.get(token)
    named = tokenizer.convert_ids_to_tokens([token])[0] in tokenizer.all_special_tokens
    return named or (added is not None and added.special)


def _tokenizer_source(section: ModelSection) -> tuple[str, tuple[str, str | None]]:
    """The key that names the tokenizer, its name and its revision, which is that of the model alone."""
    if section.tokenizer is None:
        return "model.name", (section.name, section.revision)
    return "model.tokenizer", (section.tokenizer, None)


def _spare_token(tokenizer: Tokenizer, stops: set[int]) -> str | None:
    """A special token that ends nothing and begins nothing: unk first, then one that calls itself padding."""
    special = [tokenizer.unk_token, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)]
    usable = [
        token
        for token in special
        if token is not None
        and tokenizer.convert_tokens_to_ids(token) not in stops
        and token != tokenizer.bos_token
    ]
    padding = [token for token in usable if "pad" in token.lower()]
    return next(iter([*padding, *usable]), None)
