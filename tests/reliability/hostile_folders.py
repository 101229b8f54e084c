"""R11: a model or an adapter folder of a stranger: nothing in it runs, and it is refused by name in bounded memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lrft.build.earlier_peft import read_peft
from lrft.model.load import load_config, load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import LrftError
from tests.reliability.outcome import Outcome, tiny_model

MOST = 400 * 2**10  # KiB that looking at a folder may take
UNPICKLED = "unpickled"
CODE = """
import pathlib
pathlib.Path({canary!r}).write_text("ran")
"""


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: str = UNPICKLED) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


def hollow(path: Path, size: int, begin: bytes = b"") -> None:
    """A file of that size that takes no room on the disk."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a tokenizer of 1 GB": lambda folder: hollow(folder / "tokenizer.json", 10**9),
    "a config of 1 GB": lambda folder: hollow(folder / "config.json", 10**9),
    "a template of 1 GB": lambda folder: hollow(folder / "chat_template.jinja", 10**9),
    "a header of 100 MB": lambda folder: hollow(
        folder / "model.safetensors", 10**9, (10**8).to_bytes(8, "little")
    ),
    "a header of 2**63": lambda folder: hollow(
        folder / "model.safetensors", 100, (2**63).to_bytes(8, "little")
    ),
    "a pipe": lambda folder: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")),
    "a device": lambda folder: (folder / "more.json").symlink_to("/dev/zero"),
    "a link to nowhere": lambda folder: (folder / "more.json").symlink_to("/nowhere"),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "deep": lambda folder: (folder / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "no UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
    "a type that is a number": lambda folder: (folder / "config.json").write_text('{"model_type": 3}'),
    "sizes that are texts": lambda folder: (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": "x", "num_attention_heads": "y"}'
    ),
    "a tokenizer that is a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "a tokenizer that is cut": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"'),
}


def check(n: int, seed: int) -> Outcome:
    """n folders: files that are no files, bombs, damaged ones, pickles and code."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = tiny_model(root)
        load_config(ModelSection(name=str(model)))  # what is imported does not count
        for index in range(n):
            draw = random.Random(seed * 1_000_003 + index)
            folder, canary = root / f"base-{index}", root / f"canary-{index}"
            shutil.copytree(model, folder)
            kind = draw.choice((*FOLDERS, "a pickle", "code", "an adapter's pickle"))
            fault = _fault(folder, canary, kind, draw)
            outcome.add(not fault, f"{kind}, turn {index} of seed {seed}: {fault}")
            shutil.rmtree(folder)
    return outcome


def _fault(folder: Path, canary: Path, kind: str, draw: random.Random) -> str:
    """What went wrong, or nothing."""
    look = _plant(folder, canary, kind, draw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        look()
        said = ""
    except LrftError as error:
        said = str(error)
    except Exception as error:  # what the check is about
        return f"{type(error).__name__}: {str(error)[:200]}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if canary.exists():
        return "code of the folder ran"
    if grown > MOST:
        return f"took {grown} KiB"
    return "" if str(folder) in said and "\n" not in said else f"said {said[:300]!r}"


def _plant(folder: Path, canary: Path, kind: str, draw: random.Random) -> Callable[[], object]:
    """Make the folder hostile; what looks at it."""
    section = ModelSection(name=str(folder))
    if kind in FOLDERS:
        FOLDERS[kind](folder)
        return lambda: (load_config(section), load_tokenizer(section), load_model(section))
    if kind == "code":
        (folder / "stranger.py").write_text(CODE.format(canary=str(canary)))
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "stranger"}
        parts = {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"}
        config["auto_map"] = {name: parts[name] for name in draw.sample(sorted(parts), draw.randint(1, 2))}
        (folder / "config.json").write_text(json.dumps(config))
        return lambda: load_model(section)
    content = pickle.dumps({"a": Payload(str(canary))})
    if kind == "a pickle":
        (folder / "model.safetensors").unlink()
        (folder / draw.choice(("pytorch_model.bin", "model.pt", "model.safetensors"))).write_bytes(content)
        return lambda: load_model(section)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    (folder / draw.choice(("adapter_model.bin", "adapter_model.safetensors"))).write_bytes(content)
    return lambda: read_peft(folder, {}, "lora")
