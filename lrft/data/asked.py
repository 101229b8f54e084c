"""Whether what a model is asked at generation is what its answers followed in training.

The prompt is encoded here as a server does it, alone and in one piece: a conversation up to an answer by the chat
template, any other prompt as the tokenizer encodes texts. It must be the beginning of the row as trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lrft.core import stop
from lrft.data.alike import SHOWN, Split
from lrft.data.encoded import Encoded
from lrft.data.example import Row
from lrft.data.seam import token_ids
from lrft.data.tokenize import Renderer
from lrft.registry.json import Json

MOST = 2_000  # rows that are looked at, spread evenly: what differs does so by the template, in many rows


@dataclass(frozen=True)
class Asked:
    """How many rows were looked at, and in which of them a prompt as generated is not how the row as trained begins.

    Attributes:
        compared: rows with a prompt that were looked at, of `rows` in all.
        differs: where they stand, and around which tokens they part, as (as trained, as generated).
    """

    compared: int
    rows: int
    differs: tuple[tuple[str, str, str], ...]

    def record(self) -> dict[str, Json]:
        """Plain values."""
        return {
            "rows_compared": self.compared,
            "prompt_differs": [
                {"row": row, "trained": trained, "generated": generated}
                for row, trained, generated in self.differs
            ],
        }

    def facts(self) -> list[tuple[str, str]]:
        """One line: how many agree, or where they do not."""
        if not self.compared:
            return []
        of = f"{self.compared:,} of {self.rows:,} rows"
        if not self.differs:
            return [("prompts as generated", f"the beginning of the row as trained, in {of}")]
        first = ", ".join(f"{row}: {a!r} in training, {b!r} asked" for row, a, b in self.differs[:SHOWN])
        return [("prompts as generated", f"differ from training in {len(self.differs):,} of {of} ({first})")]


def compare(renderer: Renderer, split: Split, progress: Callable[[int, int], None]) -> Asked:
    """Look at rows that are whole; `progress` hears (rows done, rows in all)."""
    whole = [index for index in split.usable() if not split.encoded[index].truncated]
    count = min(len(whole), MOST)
    chosen = [whole[k * len(whole) // count] for k in range(count)]
    differs, compared = [], 0
    for number, index in enumerate(chosen):
        stop.poll()
        prompts = list(_prompts(renderer, split.rows[index]))
        compared += any(prompts)
        found = _parting(renderer, split.encoded[index], prompts)
        if found is not None:
            differs.append((split.rows.where(index), *found))
        progress(number + 1, count)
    return Asked(compared, len(split.rows), tuple(differs))


def _parting(renderer: Renderer, encoded: Encoded, prompts: list[list[list[int]]]) -> tuple[str, str] | None:
    """The tokens where a prompt and the row part, as text; None where none does."""
    for document, asked in zip(encoded.documents(), prompts, strict=True):
        for prompt in asked:
            ids = document.input_ids
            if ids[: len(prompt)] == prompt:
                continue
            at = next(
                (k for k, pair in enumerate(zip(ids, prompt, strict=False)) if pair[0] != pair[1]), len(ids)
            )
            near = slice(max(at - 1, 0), at + 2)
            return renderer.tokenizer.decode(ids[near]), renderer.tokenizer.decode(prompt[near])
    return None


def _prompts(renderer: Renderer, row: Row) -> Iterator[list[list[int]]]:
    """For every document of the row, what each of its answers is asked with."""
    tokenizer, template = renderer.tokenizer, renderer.template
    for example in renderer.format.completed(row).answers():
        if example.messages:
            turns = [turn for turn in example.learnt if turn]  # transformers asks nothing without a message
            asked = [template.render(example.messages[:turn], example.tools, prompt=True) for turn in turns]
            yield [token_ids(tokenizer, text) for text in asked]
        else:
            texts = [example.prompt] if example.prompt else []
            yield [
                list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]) for text in texts
            ]
