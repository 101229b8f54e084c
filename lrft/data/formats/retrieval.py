"""retrieval: a query, the passage that answers it, and passages that do not."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Row
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, check_template, columns_of, model_validator
from lrft.registry.errors import DataError
from lrft.registry.json import Json

QUERIES = ("query", "anchor", "question")  # what the column is called elsewhere
NEGATIVES = ("negatives", "negative", "hard_negatives")


@FORMATS.register
class Retrieval(Format):
    r"""A query with its passage, and others that are not meant, for an objective that learns embeddings of texts.

        {"query": "How long is a leave?", "positive": "A leave is 25 days."}
        {"query": "...", "positive": "...", "negatives": ["...", "..."], "task": "Find the table."}
            with `negatives: negatives`, `instruction: "Instruct: {task}\nQuery: "`

    Columns: `query` and `positive` name the two texts; `negatives` one column with a list of hard negatives, or one or
    several with a text each; and all that `instruction` and `passage_prefix` name in braces, of which one that is meant
    literally is doubled.
    Text: the filled `instruction` and the query with nothing between them, and each passage after the filled
    `passage_prefix`, every one a document by itself with an end-of-text token behind. A row of `train.max_length` holds
    all of its texts. With `max_tokens` a longer text loses its end, but for the end-of-text token.
    Learnt: no token: every text is embedded, by the state of its last token, the end-of-text token.
    """

    aliases = {
        "triplet triplets anchor_positive_negative query_passage dense_retrieval embedding": (
            "format: {method: retrieval, negatives: negatives}"
        ),
    }
    provides = {"passages"}

    class Config(FormatConfig):
        query: str = Field("query", min_length=1, description="column of the query")
        positive: str = Field("positive", min_length=1, description="column of the passage that answers it")
        negatives: str | list[str] | None = Field(
            None,
            min_length=1,
            description="column of a list of hard negatives, or columns of one each; null for none",
        )
        instruction: str = Field(
            "", description="template of what stands before the query; {task} is the column `task`"
        )
        passage_prefix: str = Field("", description="the same before every passage")
        max_tokens: int | None = Field(
            None,
            ge=3,
            description="most tokens of a text, its end-of-text token with them; null for no limit",
        )

        @model_validator(mode="after")
        def _check_templates(self) -> Retrieval.Config:
            for key, template in (("instruction", self.instruction), ("passage_prefix", self.passage_prefix)):
                check_template(key, template)
            return self

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        query = next((name for name in QUERIES if name in row), None)
        if query is None or "positive" not in row:
            return None
        given: list[Json] = [name for name in NEGATIVES if name in row]
        return {"query": query, **({"negatives": given[0] if len(given) == 1 else given} if given else {})}

    @property
    def columns(self) -> tuple[str, ...]:
        config = self.config
        named = (*columns_of(config.instruction), *columns_of(config.passage_prefix))
        return tuple(dict.fromkeys((config.query, config.positive, *self._negatives, *named)))

    @property
    def _negatives(self) -> tuple[str, ...]:
        given = self.config.negatives
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)

    def asked(self, row: Row) -> Example:
        raise DataError(
            "a row of the retrieval format asks for a passage and for no answer; lrft eval scores what is found"
        )

    def asking(self, text: str) -> Row:
        raise DataError("a text is no row of the retrieval format, which asks for no answer")

    def example(self, row: Row) -> Example:
        positive = self._text(row, self.config.positive)
        negatives = [text for column in self._negatives for text in self._listed(row, column)]
        if positive in negatives:
            raise DataError(
                f"the passage in {self.config.positive!r} is a hard negative of the row too; remove it from there"
            )
        before, prefix = (
            self._filled(row, self.config.instruction),
            self._filled(row, self.config.passage_prefix),
        )
        passages = tuple(self._embedded(prefix + text) for text in (positive, *negatives))
        return replace(self._embedded(before + self._text(row, self.config.query)), passages=passages)

    def _embedded(self, text: str) -> Example:
        return Example(prompt=text, embedded=True, most_tokens=self.config.max_tokens)

    def _filled(self, row: Row, template: str) -> str:
        return template.format_map({name: self.text(row, name) for name in columns_of(template)})

    def _text(self, row: Row, column: str) -> str:
        text = self.text(row, column)
        if not text.strip():
            raise DataError(f"the text in {column!r} is empty")
        return text

    def _listed(self, row: Row, column: str) -> list[str]:
        """The hard negatives in a column: a list of texts, or one."""
        value = self.value(row, column)
        if not isinstance(value, list):
            return [self._text(row, column)]
        for one in value:
            if not isinstance(one, str) or not one.strip():
                raise DataError(
                    f"column {column!r} holds {str(one)[:60]!r}; hard negatives are a list of texts that are not empty"
                )
        return [str(one) for one in value]
