"""A merged model whose layers differ in size: stock weights and settings, and a file of code that says the sizes."""

from __future__ import annotations

import json
from pathlib import Path

from lrft.core.units import WHOLE, Pruned
from lrft.files.json import read_object
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import HF
from lrft.model.units import even
from lrft.registry.errors import NotMergeable

FILE, CLASS, KEY, UNITS = "uneven.py", "UnevenForCausalLM", "layer_shapes", "units.json"
CODE = '''"""{base} whose linear layers have the shapes that config.json gives as `{key}`."""

from torch import nn
from transformers import {base}


class {name}({base}):
    """`{base}` with some layers cut to other sizes."""

    def __init__(self, config):
        super().__init__(config)
        for path, (rows, columns) in config.{key}.items():
            parent, _, leaf = path.rpartition(".")
            block = self.get_submodule(parent)
            bias = getattr(block, leaf).bias is not None
            setattr(block, leaf, nn.Linear(columns, rows, bias=bias))
'''


def smaller(model: CausalLM) -> Pruned | None:
    """The units of a run's model that is merged without some of them."""
    return None if model.pruned is None or model.pruned.state == WHOLE else model.pruned


def brings_code(model: CausalLM) -> bool:
    """Whether what a run's model is merged into brings code of its own, because its layers differ in size.

    Raises:
        NotMergeable: its architecture is not one that such code could take from transformers.
    """
    pruned, hf = smaller(model), model.hf
    if pruned is None or even(pruned):
        return False
    if not type(hf).__module__.startswith("transformers.") or not type(hf).__name__.endswith("ForCausalLM"):
        raise NotMergeable(
            f"{type(hf).__name__} is no architecture of transformers, whose layers could be given different sizes; "
            "prune all layers alike"
        )
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
    if not brings_code(model):
        return
    base = type(hf).__name__
    write_in(folder / FILE, CODE.format(base=base, name=CLASS, key=KEY))
    config = read_object(folder / "config.json")
    config["architectures"] = [CLASS]
    config["auto_map"] = {"AutoModelForCausalLM": f"{FILE.removesuffix('.py')}.{CLASS}"}
    layers = [layer for units in pruned.units.values() for layer in units.layers]
    config[KEY] = {layer: list(hf.get_submodule(layer).get_parameter("weight").shape) for layer in layers}
    write_in(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
