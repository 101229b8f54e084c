"""Which parts of a model text never runs through: the encoder of images or sounds beside a language model.

A model that sees or hears holds its language model as one part of a larger one, and is trained here on text alone.
What stands beside that part is never called, so whatever trained there would keep its start.
"""

from __future__ import annotations

from collections.abc import Iterable

from lrft.model.hf import HF


def parts_aside(hf: HF) -> tuple[str, ...]:
    """Beginnings of the paths of what text never runs through, such as `model.vision_tower.`.

    They are what stands beside the language model in the parts that hold it; a model of text alone has none.
    """
    if hf.config.get_text_config() is hf.config:
        return ()
    names = text_model(hf).split(".")
    found: list[str] = []
    for depth in range(1, len(names)):
        holder = ".".join(names[:depth])
        beside = (name for name, _ in hf.get_submodule(holder).named_children() if name != names[depth])
        found += [f"{holder}.{name}." for name in beside]
    return tuple(found)


def text_model(hf: HF) -> str:
    """The path of the module that holds the input embedding, and so the language model's layers."""
    embedding = hf.get_input_embeddings()
    path: str = next(name for name, module in hf.named_modules() if module is embedding)
    return path.rpartition(".")[0]


def on_text(hf: HF, paths: Iterable[str]) -> list[str]:
    """Those of some paths that text runs through."""
    aside = parts_aside(hf)
    return [path for path in paths if not f"{path}.".startswith(aside)] if aside else list(paths)
