"""`lrft merge --requantize` with a storage of GGUF files: one file for llama.cpp, rounded with error feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrft.api.exporting.form import write_beside
from lrft.api.merging.in_bits import MergeInBits
from lrft.api.opening.compared import chats
from lrft.core.notes import say
from lrft.export.fidelity import Fidelity
from lrft.export.gguf_config import check_config
from lrft.export.gguf_form import read_model, write_model
from lrft.export.gguf_names import Names
from lrft.export.gguf_tokenizer import spoken_of
from lrft.export.requantize import InBits
from lrft.model.causal_lm import CausalLM

MODEL = "model.gguf"


class MergeInGguf(MergeInBits):
    """The merged model in one file, which is read back for what is measured, and the tokenizer beside it."""

    def __init__(self, *given: Any) -> None:
        """As of every merge into few bits.

        Raises:
            UsageError: llama.cpp does not compute this model.
            MissingExtra: the `gguf` library is not there.
        """
        super().__init__(*given)
        self.names = Names(self.model.hf.config.get_text_config(), f"--requantize {self.storage}")
        check_config(self.names)

    def write(self, place: Path) -> Fidelity:
        return {**super().write(place), "file": MODEL}

    def _write_in_bits(self, dense: CausalLM, found: InBits, place: Path) -> None:
        text, export = self.text, self.recipe.export
        spoken = spoken_of(
            text.renderer, text.stop_ids, text.pad_id, chats(self.recipe, text), self.names.command
        )
        stochastic, title = export.rounding != "nearest", self.folder.path.name
        _, told = write_model(
            place / MODEL, self.names, dense, spoken, str(export.dtype), title, stochastic, found.layers
        )
        for line in told:
            say(line)
        write_beside(place, self.recipe, text, dense)

    def _read(self, place: Path) -> CausalLM:
        read = self._in_float32()
        read_model(place / MODEL, self.names, read)
        return read
