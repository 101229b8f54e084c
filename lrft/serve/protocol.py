"""OpenAI's requests and answers of chat and completions: what is read of them, and what is refused.

Source: https://platform.openai.com/docs/api-reference/chat and /completions. A field that would change the answer and
is not done here is refused by name; those that only tell the server about the client are taken and left.
"""

from __future__ import annotations

import os
import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lrft.evaluation.sampling import Sampling
from lrft.registry.json import Json

Told = Annotated[Json, Field(exclude=True)]


class StreamOptions(BaseModel):
    """What a stream holds beside the pieces."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Ask(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="not OpenAI's: draw from so many likeliest tokens; 0 is all")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    # One answer, without penalties, which are what their absence means.
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    # About the client.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    def sampling(self) -> Sampling:
        """How tokens are drawn: by the request's seed, or one that nobody knows."""
        if self.temperature == 0:
            return Sampling()
        seed = int.from_bytes(os.urandom(8), "big") if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, self.top_k, seed)

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > 16 or any(not 0 < len(one) <= 256 for one in given):
            raise ValueError("stop: give at most 16 texts of 1 to 256 characters")
        return tuple(given)


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def said(self) -> dict[str, Json]:
        """As rows of conversations have it; a developer is what templates call the system."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(BaseModel):
    """Only text is written."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class ChatAsk(Ask):
    """POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    top_logprobs: Literal[0] | None = None

    @property
    def most(self) -> int | None:
        """New tokens asked for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionAsk(Ask):
    """POST /v1/completions."""

    prompt: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _alone(cls, given: object) -> object:
        """One prompt, also where it is the only one of a list of prompts."""
        if not isinstance(given, list) or not any(isinstance(one, str | list) for one in given):
            return given
        if len(given) > 1:
            raise ValueError("one prompt a request is answered; ask for each by itself")
        return given[0]

    @property
    def most(self) -> int | None:
        """New tokens asked for; OpenAI's own default is 16."""
        return self.max_tokens or 16


class Answer:
    """The documents of one answer.

    Args:
        chat: of a conversation, else of a completion.
        usage: prompt tokens are known before.
    """

    def __init__(self, chat: bool, model: str, prompt_tokens: int) -> None:
        self.chat, self.model, self.prompt_tokens = chat, model, prompt_tokens
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{os.urandom(12).hex()}"
        self.created = int(time.time())

    def usage(self, tokens: int) -> dict[str, Json]:
        """Tokens, those that end an answer not counted."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def whole(self, text: str, reason: str, tokens: int) -> dict[str, Json]:
        """The answer at once."""
        said: dict[str, Json] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        choice: dict[str, Json] = {"index": 0, **said, "finish_reason": reason, "logprobs": None}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": self.usage(tokens)}

    def piece(self, text: str, reason: str | None = None, first: bool = False) -> dict[str, Json]:
        """More of the text, or with a reason its end."""
        delta: dict[str, Json] = {
            **({"role": "assistant"} if first else {}),
            **({} if reason else {"content": text}),
        }
        said: dict[str, Json] = {"delta": delta} if self.chat else {"text": text}
        choice: dict[str, Json] = {"index": 0, **said, "finish_reason": reason, "logprobs": None}
        return {
            **self._head("chat.completion.chunk" if self.chat else "text_completion"),
            "choices": [choice],
        }

    def counted(self, tokens: int) -> dict[str, Json]:
        """The last document of a stream that was asked for its usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(tokens)}

    def _head(self, kind: str) -> dict[str, Json]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def fault(status: int, message: str, code: str | None = None) -> dict[str, Json]:
    """The document of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
