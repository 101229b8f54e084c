"""What stands inside the sections of a recipe as a section of its own."""

from __future__ import annotations

import json

from lrft.registry.config import Field, Literal, Section, model_validator


class RopeScaling(Section):
    """How rotary positions are scaled to reach further than the model was pretrained for."""

    type: Literal["linear", "dynamic", "yarn"] = Field(
        description="linear: every position divided by factor; yarn: slow rotations divided, fast ones kept; dynamic: "
        "none in training, and by transformers for longer texts alone"
    )
    factor: float = Field(ge=1, description="how many times as far")


class NewTokens(Section):
    """Tokens that the tokenizer does not have. A list is short for `{plain: [...]}`."""

    plain: list[str] = Field(
        [], description="tokens that stay in what is generated, such as the marks of a tool call"
    )
    special: list[str] = Field(
        [], description="tokens left out of what is generated, such as the mark that ends an answer"
    )

    @property
    def texts(self) -> list[str]:
        """All of them, in the order of their ids."""
        return [*self.plain, *self.special]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return {"plain": value} if isinstance(value, list) else value


class StackedAdapter(Section):
    """An adapter that stays as it is, beneath the one that trains. A plain string is short for `{adapter: ...}`."""

    adapter: str = Field(
        min_length=1, description="run, one of its checkpoints, folder of a PEFT adapter, or hub id of one"
    )
    weight: float = Field(1.0, description="of its change; negative takes it away")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"adapter": value} if isinstance(value, str) else value


class Extension(Section):
    """Steps that were added to a run, and what the rate does in them."""

    steps: int = Field(gt=0, description="how many")
    rate: Literal["stretched", "again", "held"] = Field(
        "stretched",
        description="stretched: that of the schedule over the longer run; again: the schedule anew over the added "
        "steps; held: the last one",
    )


class ScoreHead(Section):
    """A linear map from a text's last hidden state to its labels. A plain list is short for `{labels: ...}`."""

    labels: list[str] = Field(
        min_length=1,
        description="names of the classes, in the order of their numbers; one name alone is a number that is learnt",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        for one in value:
            if isinstance(one, bool | int | float):  # as YAML reads what somebody meant as a name
                written = json.dumps(one)
                raise ValueError(
                    f'labels are texts, and {written} is none; put quotes around it: "{written}"'
                )
        return {"labels": value}

    @model_validator(mode="after")
    def _check_labels(self) -> ScoreHead:
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ValueError("labels are all different, and none is empty")
        return self
