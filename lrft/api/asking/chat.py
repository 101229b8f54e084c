"""`lrft chat`: a conversation with a run, by the chat template and the format it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lrft.api.opening.open_run import bare_base, check_base, open_run, sample_row
from lrft.build.scoring import subject
from lrft.data.example import Message
from lrft.data.prompts import Asker
from lrft.evaluation.decoded import decoded
from lrft.evaluation.sampling import Sampling, check_new_tokens
from lrft.evaluation.stream import stream
from lrft.evaluation.subject import Subject
from lrft.registry.errors import DataError, UsageError
from lrft.training.folder import RunFolder, find


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        tokens: how many it generated.
        ended: `stopped` (a stop token), `limit` (the most new tokens) or `cut` (somebody asked to stop).
    """

    text: str
    tokens: int
    ended: str


class Conversation:
    """The turns so far, and how the next answer is generated.

    A run whose format is no conversation is asked every text alone, as it was taught.

    Attributes:
        remembers: whether earlier turns are part of the next question.
        messages: the turns so far; where they are remembered, as the chat template gets them.
        replies: answers since the beginning; with the seed that decides what is drawn.
        should_stop: asked between two tokens.
    """

    def __init__(
        self,
        subject: Subject,
        asker: Asker,
        base: Callable[[], AbstractContextManager[None]],
        sampling: Sampling,
        max_new_tokens: int,
    ) -> None:
        self.subject, self.asker, self._base = subject, asker, base
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.remembers = bool(asker.text("Hi").messages)
        self.messages: list[Message] = []
        self.replies = 0
        self._off = ExitStack()
        self.adapter = True

    def say(self, text: str, tell: Callable[[str], None], should_stop: Callable[[], bool]) -> Reply:
        """Ask `text`; `tell` hears the answer piece by piece.

        Raises:
            DataError: it does not fit the model; the conversation is as it was before.
            NumericalError: the model's logits are no numbers.
        """
        asked = self.asker.text(text)
        earlier = self.messages if self.remembers else []
        turns = [*earlier, *(asked.messages[-1:] if earlier else asked.messages)]
        example = replace(asked, messages=tuple(turns))
        ids = self.asker.ids(example)
        room = min(self.max_new_tokens, self._room(len(ids)))
        target = replace(self.subject, should_stop=should_stop, progress=None)
        tokens, stopped = stream(target, ids, room, tell, self.sampling, self.replies)
        self.replies += 1
        said = target.decode(tokens)
        question = turns if self.remembers else [*self.messages, {"role": "user", "content": text}]
        kept = self.asker.said(example, said) if self.remembers else said
        self.messages = [*question, {"role": "assistant", "content": kept}]
        ended = "stopped" if stopped else "limit" if len(tokens) == room else "cut"
        return Reply(said, len(tokens), ended)

    def reset(self) -> None:
        """Forget the turns; draws begin anew."""
        self.messages, self.replies = [], 0

    def use_adapter(self, wanted: bool) -> None:
        """Answer with the adapter, or with the bare base model.

        Raises:
            UsageError: there is no base.
        """
        if wanted == self.adapter:
            return
        if wanted:
            self._off.close()
        else:
            self._off.enter_context(self._base())
        self.adapter = wanted

    def close(self) -> None:
        """Put the adapter back."""
        self._off.close()

    def set(self, name: str, text: str) -> None:
        """Change a setting: temperature, top_p, top_k, seed or max_new_tokens.

        Raises:
            UsageError: there is no such setting, or it takes no such value.
        """
        known: Mapping[str, type] = {
            **dict.fromkeys(("temperature", "top_p"), float),
            **dict.fromkeys(("top_k", "seed", "max_new_tokens"), int),
        }
        if name not in known:
            raise UsageError(f"/set {name}: settings are {', '.join(known)}")
        try:
            value = known[name](text)
        except ValueError:
            raise UsageError(f"/set {name} {text}: give a number") from None
        if name == "max_new_tokens":
            check_new_tokens(value, f"/set {name}")
            self.max_new_tokens = value
            return
        sampling = replace(self.sampling, **{name: value})
        sampling.check()
        self.sampling = sampling

    def _room(self, length: int) -> int:
        """New tokens that the model has positions for."""
        used = self.subject.model.virtual_now + length
        positions = self.subject.positions
        if positions is not None and used >= positions:
            raise DataError(
                f"the conversation has {used} tokens and the model {positions} positions; /reset begins a new one"
            )
        return self.max_new_tokens if positions is None else positions - used


@contextmanager
def open_conversation(
    run: RunFolder | Path | str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 512,
    base: bool = False,
    trust_remote_code: bool = False,
) -> Iterator[Conversation]:
    """A conversation with a run.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; None is the latest run.
        base: begin with the bare base model.
        trust_remote_code: let code run that comes with the base model.

    Raises:
        UsageError: no such run, settings that mean nothing, or several processes were launched.
    """
    sampling = sampling or Sampling()
    sampling.check()
    check_new_tokens(max_new_tokens)
    folder = find(run)
    folder.trusted = trust_remote_code
    recipe, text, adaptation = open_run(folder)
    if adaptation.team.size > 1:
        raise UsageError("lrft chat: one process talks; start it without a launcher")
    model = adaptation.model

    @contextmanager
    def bare() -> Iterator[None]:
        check_base(recipe, model, "adapter off")
        with bare_base(recipe, folder, model):
            yield

    target = subject(recipe, text, model)
    target.check_features(None, "lrft chat")
    asker = Asker(text.renderer, sample_row(recipe, text))
    talk = Conversation(target, asker, bare, sampling, max_new_tokens)
    with decoded(model.hf):  # once, instead of for every answer
        try:
            talk.use_adapter(not base)
            yield talk
        finally:
            talk.close()
