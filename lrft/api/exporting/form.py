"""What every form of an exported adapter is asked, and the form that PEFT has of the method itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrft.build.text import Text
from lrft.core.adapted import adapted
from lrft.export.as_trained import AsTrained
from lrft.export.card import tokens_told
from lrft.export.fidelity import Comparable
from lrft.export.own_form import why_own_form
from lrft.export.peft_format import adapter_files
from lrft.export.record import Exported
from lrft.export.targets import PLAIN
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.stopping import trained_generation
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.training.folder import RESULT, RunFolder


@dataclass(frozen=True)
class Options:
    """What `lrft export` was asked beside the target; None where nothing was said.

    Attributes:
        error: largest relative error of a layer's change, in Frobenius norm.
        rank: highest rank of a layer.
        dtype: precision of the written numbers.
        merged: the whole model, and not the adapter alone.
        base: what the adapter is served on, as the server calls it.
    """

    error: float | None = None
    rank: int | None = None
    dtype: str | None = None
    merged: bool = False
    base: str | None = None


@dataclass(frozen=True)
class Source:
    """The run that is exported, opened, and what it is exported for; what training saw of the fixed conversation."""

    folder: RunFolder
    recipe: Recipe
    text: Text
    model: CausalLM
    target: str
    options: Options
    seen: AsTrained


class Form:
    """One form.

    Class attributes:
        takes: names of the options that mean something here; others are refused.
    """

    takes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: Source) -> None:
        self.source = source
        self.model, self.recipe, self.text = source.model, source.recipe, source.text
        self.rendered = source.seen["conversation"]
        self.name = f"--for {source.target}"
        unset = Options()
        for option, value in vars(source.options).items():
            if value != getattr(unset, option) and option not in self.takes:
                word = {"base": "from"}.get(option, option)
                raise UsageError(f"{self.name}: --{word} means nothing here; leave it out")

    def write(self, scratch: Path) -> Exported:
        """Write the files; returns what was done."""
        raise NotImplementedError

    def read(self, out: Path) -> Comparable | None:
        """The model that the files make, read back; None where that is the run's own."""
        raise NotImplementedError

    def remedy(self) -> str:
        """What stays closer to the run."""
        return "allow more with export.tolerance"

    def write_beside(self, scratch: Path) -> None:
        """The tokenizer with its chat template, and where to stop."""
        write_beside(scratch, self.recipe, self.text, self.model)


def write_beside(place: Path, recipe: Recipe, text: Text, model: CausalLM) -> None:
    """The tokenizer with its chat template, and where to stop if it answers, into a fresh folder."""
    text.tokenizer.save_pretrained(place)
    if recipe.model.head is not None or embeds(recipe.objective.method):
        return
    own = recipe.model.tokenizer is not None
    generation, _ = trained_generation(model.hf, text.tokenizer, text.stop_ids, text.pad_id, own)
    write_in(place / "generation_config.json", generation.to_json_string())


class PeftFolder(Form):
    """The adapter as PEFT has its method."""

    def write(self, scratch: Path) -> Exported:
        """As the run's own adapter folder.

        Raises:
            UsageError: PEFT has no form of it.
        """
        folder = self.source.folder
        result = folder.read(RESULT) if (folder.path / RESULT).is_file() else {}
        files = adapter_files(self.model, self.recipe, result)
        if "adapter_config.json" not in files:
            modules = [module.adapter for _, module in adapted(self.model.hf)]
            mergeable = bool(modules) and not any(type(a).why_not_merged(a.config, a.site) for a in modules)
            remedy = (
                f"`--for {PLAIN}` writes its change" if mergeable else "`lrft eval` scores the run itself"
            )
            raise UsageError(f"{self.name}: {why_own_form(self.model, self.recipe)}; {remedy}")
        for name, content in files.items():
            write_in(scratch / name, content)
        self.write_beside(scratch)
        return {"told": tokens_told(self.recipe, json.loads(files["adapter_config.json"]))}

    def read(self, out: Path) -> Comparable | None:
        return None
