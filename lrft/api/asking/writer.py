"""Who writes rows: a base model, or a run as it was taught to be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lrft.api.asking.generate import Generated, write_answers
from lrft.api.opening.open_run import open_run, sample_row
from lrft.build.dataset import read_renderer
from lrft.build.identify import identify_base
from lrft.build.scoring import subject
from lrft.data.example import Example, Message
from lrft.data.prompts import Asker
from lrft.data.rows import Rows
from lrft.evaluation.answers_file import AnswersFile
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Progress, Subject
from lrft.model.load import load_model
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json
from lrft.training.device import make_accelerator
from lrft.training.folder import find


@dataclass(frozen=True)
class Writer:
    """Who is asked.

    Attributes:
        asker: None for a base model, which is asked as its chat template asks, or in plain text.
        name: what it is called in the rows.
        about: what decides its answers.
    """

    subject: Subject
    asker: Asker | None
    name: str
    about: Mapping[str, Json]

    def turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation whose last message is a question."""
        example = Example(messages=tuple(messages))
        return self.subject.renderer.asked(example) if self.asker is None else self.asker.ids(example)

    @property
    def converses(self) -> bool:
        """Whether a conversation can be put to it as it was taught to hold one."""
        if self.asker is not None:
            return bool(self.asker.text("").messages)
        return bool(self.subject.renderer.tokenizer.chat_template)

    def ids(self, question: str) -> list[int]:
        """The tokens of a question."""
        if self.asker is not None:
            return self.asker.ids(self.asker.text(question))
        renderer = self.subject.renderer
        if self.takes_messages:
            return renderer.asked(Example(messages=({"role": "user", "content": question},)))
        return renderer.asked(Example(prompt=question))

    @property
    def takes_messages(self) -> bool:
        """Whether a base model is asked by a chat template."""
        return bool(self.subject.renderer.tokenizer.chat_template)

    def answers(
        self, rows: Rows, ids: list[list[int]], file: AnswersFile, max_new_tokens: int, sampling: Sampling
    ) -> Generated:
        """Answer every question into a file, from where that ends."""
        about: dict[str, Json] = {
            **self.about,
            "prompts_sha256": hashlib.sha256(repr(ids).encode()).hexdigest(),
            "stop_ids": sorted(self.subject.stop_ids),
            "max_new_tokens": max_new_tokens,
            "sampling": asdict(sampling),
            "batch_tokens": self.subject.batch_tokens,
        }
        return write_answers(self.subject, rows, ids, file, about, max_new_tokens, sampling, None)


def find_writer(recipe: Recipe, run: Path | str | None, trusted: bool, progress: Progress) -> Writer:
    """The base of the recipe, or a run."""
    if run is not None:
        folder = find(run)
        folder.trusted = trusted
        its, text, adaptation = open_run(folder)
        assert folder.opened is not None, "open_run opens one"
        target = subject(its, text, adaptation.model, progress)
        about: dict[str, Json] = {"checkpoint_sha256": folder.opened.manifest_sha256}
        return Writer(target, Asker(text.renderer, sample_row(its, text)), folder.path.name, about)
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    model = load_model(recipe.model, device=device, trust_remote_code=trusted, seed=recipe.train.seed)
    model.hf.to(device)
    model.eval()
    target = subject(recipe, read_renderer(recipe, trusted), model, progress)
    return Writer(target, None, recipe.model.name, identify_base(recipe.model, model))
