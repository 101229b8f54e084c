"""A merged model whose layers differ in size, or are two factors: stock settings, and the code that loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lrft.core.units import WHOLE, Pruned
from lrft.files.json import read_object
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import HF
from lrft.model.units import even, sized_by_config
from lrft.registry.errors import NotMergeable

FILE, CLASS, SHAPES, RANKS, UNITS = (
    "uneven.py",
    "UnevenForCausalLM",
    "layer_shapes",
    "layer_ranks",
    "units.json",
)
CODE = '''"""{base} whose linear layers have the shapes and ranks that config.json gives."""

from torch import nn
from transformers import {base}


class {name}({base}):
    """`{base}` with some layers cut to other sizes, or in two factors."""

    def __init__(self, config):
        super().__init__(config)
        for path, (rows, columns) in getattr(config, "{shapes}", {{}}).items():
            block, leaf, old = self._place(path)
            setattr(block, leaf, nn.Linear(columns, rows, bias=old.bias is not None))
        for path, rank in getattr(config, "{ranks}", {{}}).items():
            block, leaf, old = self._place(path)
            first = nn.Linear(old.in_features, rank, bias=False)
            second = nn.Linear(rank, old.out_features, bias=old.bias is not None)
            setattr(block, leaf, nn.Sequential(first, second))

    def _place(self, path):
        parent, _, leaf = path.rpartition(".")
        block = self.get_submodule(parent)
        return block, leaf, getattr(block, leaf)
'''


def smaller(model: CausalLM) -> Pruned | None:
    """The units of a run's model that is merged without some of them."""
    return None if model.pruned is None or model.pruned.state == WHOLE else model.pruned


def check_architecture(hf: HF) -> None:
    """Refuse a model whose code cannot be taken from transformers by name.

    Raises:
        NotMergeable: names its architecture.
    """
    if not type(hf).__module__.startswith("transformers.") or not type(hf).__name__.endswith("ForCausalLM"):
        raise NotMergeable(
            f"{type(hf).__name__} is no architecture of transformers, whose layers could be written in other sizes or "
            "in factors; prune all layers alike, or leave --factors out"
        )


def brings_code(model: CausalLM) -> bool:
    """Whether what a run's model is merged into brings code of its own: its layers differ, or no setting sizes them.

    Raises:
        NotMergeable: its architecture is not one that such code could take from transformers.
    """
    pruned = smaller(model)
    if pruned is None or (even(pruned) and sized_by_config(model.hf, pruned)):
        return False
    check_architecture(model.hf)
    return True


def write_units(hf: HF, model: CausalLM, folder: Path) -> None:
    """Say in the folder of a merged `hf` which units are left; and where layers differ, bring the code that loads them.

    Args:
        model: the run's.

    Raises:
        WriteError: it cannot be written.
    """
    if (pruned := smaller(model)) is None:
        return
    kept = {name: stays.nonzero().flatten().tolist() for name, stays in pruned.stays.items()}
    write_in(folder / UNITS, json.dumps(kept) + "\n")
    if brings_code(model):
        layers = [layer for units in pruned.units.values() for layer in units.layers]
        shapes = {layer: list(hf.get_submodule(layer).get_parameter("weight").shape) for layer in layers}
        write_code(hf, folder, shapes, {})


def write_code(hf: HF, folder: Path, shapes: Mapping[str, list[int]], ranks: Mapping[str, int]) -> None:
    """Bring the code that loads layers of these shapes (out, in), and of these ranks, into the folder of a model.

    Raises:
        WriteError: it cannot be written.
    """
    code = CODE.format(base=type(hf).__name__, name=CLASS, shapes=SHAPES, ranks=RANKS)
    write_in(folder / FILE, code)
    config = read_object(folder / "config.json")
    config["architectures"] = [CLASS]
    config["auto_map"] = {"AutoModelForCausalLM": f"{FILE.removesuffix('.py')}.{CLASS}"}
    config |= {key: dict(said) for key, said in ((SHAPES, shapes), (RANKS, ranks)) if said}
    write_in(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
