"""GGUF for llama.cpp: the adapter, or with `--merged` the whole model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from lrft.api.exporting.plain import Plain
from lrft.api.merging.merge import Merge
from lrft.api.merging.options import with_options
from lrft.api.opening.compared import stops_of
from lrft.export.fidelity import Comparable
from lrft.export.gguf_form import read_adapter, read_model, refuse_early, write_adapter, write_model
from lrft.export.gguf_names import Names
from lrft.export.gguf_tensors import Q8_0
from lrft.export.gguf_tokenizer import Spoken, spoken_of
from lrft.export.merge import check_mergeable
from lrft.export.modelfile import MODELFILE, RAW, modelfile, translate
from lrft.export.record import Exported
from lrft.export.served import Served
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError

MODEL, ADAPTER = "model.gguf", "adapter.gguf"


class GgufFile(Plain):
    """One file, and nothing that its reader does not read."""

    takes: ClassVar[tuple[str, ...]] = ("error", "rank", "dtype", "merged")

    @cached_property
    def names(self) -> Names:
        """Of the family's tensors; a family that is not known is refused."""
        found = Names(self.model.hf.config.get_text_config(), self.name)
        refuse_early(found, self.model)
        return found

    @property
    def merged(self) -> bool:
        """Whether the whole model is written."""
        return self.source.options.merged

    @property
    def dtype(self) -> str:
        return self.source.options.dtype or ("float16" if self.merged else "float32")

    @property
    def file(self) -> str:
        """Name of the file."""
        return MODEL if self.merged else ADAPTER

    def write(self, scratch: Path) -> Exported:
        path, title = scratch / self.file, self.source.folder.path.name
        options = self.source.options
        if self.merged:
            if options.error is not None or options.rank is not None:
                raise UsageError(
                    f"{self.name}: --merged leaves nothing out; leave --error and --rank out too"
                )
            return self._write_model(path, title)
        if self.dtype == Q8_0:
            raise UsageError(
                f"{self.name}: an adapter in {Q8_0} would lose what was trained; give it with --merged"
            )
        self.no_base_weights("llama.cpp")
        names, rank = self.names, max(pair.rank for pair in self.pairs.values())
        count = write_adapter(
            path, names, {name: pair.padded(rank) for name, pair in self.pairs.items()}, self.dtype, title
        )
        return {**self.about(read_adapter(path, names, self.pairs)), "tensors": count}

    def read(self, out: Path) -> Comparable | None:
        if not self.merged:
            return Served(self.model, read_adapter(out / self.file, self.names, self.pairs))
        read_model(out / self.file, self.names, self.dense)
        self.dense.hf.to(self.model.device)
        return self.dense

    def remedy(self) -> str:
        return "--dtype float32 stays closer" if self.merged else super().remedy()

    @cached_property
    def dense(self) -> CausalLM:
        """The merged model in float32."""
        names = self.names
        check_mergeable(self.model)
        recipe = with_options(self.recipe, None, self._rounding, "float32")
        merging = Merge(self.source.folder, recipe, self.text, self.model, Path())
        dense = merging.merged()
        assert names.config.num_hidden_layers == dense.hf.config.get_text_config().num_hidden_layers
        return dense

    @property
    def _rounding(self) -> str:
        return self.recipe.export.rounding or "stochastic"

    @property
    def stops(self) -> list[str]:
        """Texts of what ends an answer, the tokenizer's own eos first."""
        return stops_of(self.text)

    def spoken(self) -> Spoken:
        """What the file says of the tokens."""
        text, chat = self.text, bool(self.rendered["messages"])
        return spoken_of(text.renderer, text.stop_ids, text.pad_id, chat, self.name)

    def _write_model(self, path: Path, title: str) -> Exported:
        if self._rounding == "feedback":
            raise UsageError(
                f"{self.name}: export.rounding: feedback is not made here; write stochastic or nearest"
            )
        stochastic = self._rounding == "stochastic"
        count, told = write_model(path, self.names, self.dense, self.spoken(), self.dtype, title, stochastic)
        return {"dtype": self.dtype, "merged": True, "tensors": count, "told": told}


class OllamaFolder(GgufFile):
    """A GGUF file and the Modelfile around it."""

    takes = (*GgufFile.takes, "base")

    def write(self, scratch: Path) -> Exported:
        base = self.source.options.base
        if self.merged == (base is not None):
            raise UsageError(
                f"{self.name}: give --merged for the whole model, or --from NAME, what ollama calls the base, for the "
                "adapter on it"
            )
        template, told = RAW, list[str]()
        if self.rendered["messages"]:
            template, told = translate(self.text.renderer.template, self.name)
        record = super().write(scratch)
        files = (
            [("FROM", f"./{self.file}")] if base is None else [("FROM", base), ("ADAPTER", f"./{self.file}")]
        )
        write_in(scratch / MODELFILE, modelfile(files, template, self.stops))
        return {**record, "told": [*record["told"], *told]}
