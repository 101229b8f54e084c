"""What is asked of objects of libraries that the room which asks does not import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import FrameType
from typing import NotRequired, Protocol, TypedDict


class Token(Protocol):
    """A token that was added to a vocabulary; its text is `str` of it."""

    special: bool


class Tokenizer(Protocol):
    """A transformers tokenizer, as far as it is used."""

    chat_template: str | dict[str, str] | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_tokens: list[str]
    added_tokens_decoder: Mapping[int, Token]

    def __len__(self) -> int: ...

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = ...,
        return_offsets_mapping: bool = ...,
        verbose: bool = ...,
    ) -> Encoding: ...

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = ...,
        clean_up_tokenization_spaces: bool = ...,
    ) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]: ...

    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    def add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = ...) -> int: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Sequence[Mapping[str, object]]],
        *,
        tools: Sequence[Mapping[str, object]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Sequence[str]:
        """The texts of a batch of conversations."""

    def save_pretrained(self, save_directory: str | PathLike[str]) -> object: ...


class Encoding(TypedDict):
    """What a tokenizer makes of one text."""

    input_ids: list[int]
    offset_mapping: NotRequired[list[tuple[int, int]]]


SignalHandler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` takes, and gives back."""
