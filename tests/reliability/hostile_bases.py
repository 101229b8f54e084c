"""R11: base models whose files say what no file says: every key, header, tensor and count of them, one at a time.

Of a model folder, dense or in few bits, the JSON files, the header and the tensors of its weights; of a GGUF file each
length, type, count, dimension and offset that it holds. A command then trains, plans or looks at the rows: it ends, in
a sentence where it does not end well, in bounded memory, and leaves nothing.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.reliability.damage import _limit
from tests.reliability.full_disk import ROOT, Called, call
from tests.reliability.outcome import Outcome, tiny_model
from tests.tiny_gguf import write_gguf

SECONDS = 120
RECIPE = """
model: {{name: {model}, dtype: float32}}
{quantization}
adapter: {{method: lora, rank: 2, targets: [q_proj]}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: {data}/train.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 1, batch_size: 2, max_length: 160, device: cpu}}
"""
GROUPS = "quantization: {method: int_groups, bits: 4, group_size: 32}"
STORED = {"dense": "", "gptq": GROUPS, "awq": GROUPS, **({"gguf": ""} if find_spec("gguf") else {})}
WORDS = (
    ("train", "r.yaml", "--out", "new"),
    ("train", "r.yaml", "--out", "new"),
    ("train", "r.yaml", "--dry-run"),
    ("data", "check", "r.yaml"),
    ("plan", "r.yaml"),
)
ODD = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -(2**40), 3.5),
    *("", "x", "\x00", "a" * 5000, [], [1], [[1]], [None], {}, {"a": 1}),
)
NUMBERS = (0, 1, 2, 3, 8, 9, 12, 13, 255, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Bases:
    """Whole models, each made once in a folder, in every form of `STORED`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dense = tiny_model(folder)

    def of(self, form: str) -> Path:
        """The folder of a model."""
        path = self.folder / form
        if form == "dense" or path.exists():
            return self.dense if form == "dense" else path
        path.mkdir()
        if form == "gguf":
            write_gguf(path / "model.gguf", self.dense)
            return path
        for file in self.dense.iterdir():
            if file.suffix in (".json", ".jinja"):
                shutil.copy(file, path)
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": form, "bits": 4, "group_size": 32}
        (path / "config.json").write_text(json.dumps(config))
        save_file(_in_groups(form, self.dense), path / "model.safetensors", metadata={"format": "pt"})
        return path


def _in_groups(form: str, dense: Path) -> dict[str, torch.Tensor]:
    from tests.methods.quant.test_int_groups import as_awq, as_gptq, known

    tensors = load_file(dense / "model.safetensors")
    for seed, key in enumerate(sorted(k for k in tensors if k.endswith("_proj.weight"))):
        out, width = tensors.pop(key).shape
        n, z, s = known(out, width, 32, seed=seed)
        parts = (as_gptq if form == "gptq" else as_awq)(n, z, (s * 0.02).half())
        tensors.update({f"{key.removesuffix('.weight')}.{leaf}": part for leaf, part in parts.items()})
    return tensors


# ---------------------------------------------------------------- what is changed


def odd_value(document: Any, draw: random.Random) -> str:
    """Put something else where a value of a JSON document is, or take it out; says which."""
    at = draw.choice([path for path in _paths(document) if path])
    inside = document
    for key in at[:-1]:
        inside = inside[key]
    if draw.random() < 0.2:
        del inside[at[-1]]
        return f"without {'.'.join(map(str, at))}"
    value = draw.choice(ODD)
    inside[at[-1]] = value
    return f"{'.'.join(map(str, at))} = {str(value)[:30]!r}"


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _paths(inside, (*at, key))
    elif isinstance(value, list):
        for index, inside in enumerate(value[:6]):
            yield from _paths(inside, (*at, index))


def _json(folder: Path, draw: random.Random) -> str:
    file = draw.choice([*sorted(folder.glob("*.json")), folder / "config.json"])
    document = json.loads(file.read_text())
    said = odd_value(document, draw)
    file.write_text(json.dumps(document))
    return f"{file.name}: {said}"


def _header(folder: Path, draw: random.Random) -> str:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    document = json.loads(content[8 : 8 + length])
    said = odd_value(document, draw)
    header = json.dumps(document).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return f"header: {said}"


def _tensor(folder: Path, draw: random.Random) -> str:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    key = draw.choice(sorted(tensors))
    value = tensors[key]
    kinds: dict[str, Callable[[], torch.Tensor]] = {
        "half": lambda: value.flatten()[: max(1, value.numel() // 2)].clone(),
        "int64": lambda: value.to(torch.int64),
        "float64": lambda: value.to(torch.float64),
        "no number": lambda: torch.full_like(value, torch.nan if value.is_floating_point() else -1),
        "nothing": lambda: value.flatten()[:0].clone(),
        "twice": lambda: torch.cat([value, value]) if value.ndim else value.reshape(1),
        "turned": lambda: value.mT.contiguous() if value.ndim == 2 else value.reshape(-1, 1),
        "one number": lambda: value.flatten()[:1].reshape(()).clone(),
    }
    kind = draw.choice([*kinds, "missing", "renamed"])
    if kind in kinds:
        tensors[key] = kinds[kind]()
    else:
        taken = tensors.pop(key)
        tensors |= {f"{key}x": taken} if kind == "renamed" else {}
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{key}: {kind}"


def _bytes(folder: Path, draw: random.Random) -> str:
    file = draw.choice(
        [*sorted(folder.glob("*.json")), *folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    )
    content = bytearray(file.read_bytes())
    most = min(len(content), 4096) if file.suffix == ".safetensors" else len(content)
    at, kind = draw.randrange(most), draw.choice(("flip", "cut", "number", "zeros"))
    if kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "flip":
        content[at] ^= 1 << draw.randrange(8)
    else:
        new = draw.choice(NUMBERS).to_bytes(8, "little") if kind == "number" else bytes(16)
        content[at : at + len(new)] = new[: len(content) - at]
    file.write_bytes(content)
    return f"{file.name}: {kind} at {at}"


def gguf_places(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, place and bytes of every number that the head of a GGUF file holds."""
    yield from (("magic", 0, 4), ("version", 4, 4), ("tensors", 8, 8), ("keys", 16, 8))
    tensors, keys = struct.unpack("<QQ", content[8:24])
    at = 24

    def text(at: int) -> tuple[str, int]:
        (length,) = struct.unpack("<Q", content[at : at + 8])
        return content[at + 8 : at + 8 + length].decode(), at + 8 + length

    for _ in range(keys):
        yield "length of a key", at, 8
        key, at = text(at)
        (kind,) = struct.unpack("<I", content[at : at + 4])
        yield f"type of {key}", at, 4
        at += 4
        if kind == 8:
            yield f"length of {key}", at, 8
            at = text(at)[1]
        elif kind == 9:
            inner, count = struct.unpack("<IQ", content[at : at + 12])
            yield f"inner type of {key}", at, 4
            yield f"count of {key}", at + 4, 8
            at += 12
            if inner == 8:
                yield f"length of the first of {key}", at, 8
            for _ in range(count):
                at = text(at)[1] if inner == 8 else at + WIDTHS[inner]
        else:
            yield key, at, WIDTHS[kind]
            at += WIDTHS[kind]
    for _ in range(tensors):
        yield "length of a tensor's name", at, 8
        name, at = text(at)
        (dimensions,) = struct.unpack("<I", content[at : at + 4])
        yield f"dimensions of {name}", at, 4
        at += 4
        for number in range(dimensions):
            yield f"dimension {number} of {name}", at + 8 * number, 8
        at += 8 * dimensions
        yield f"type of {name}", at, 4
        yield f"offset of {name}", at + 4, 8
        at += 12


def _gguf(folder: Path, draw: random.Random) -> str:
    file = folder / "model.gguf"
    content = bytearray(file.read_bytes())
    name, at, size = draw.choice(list(gguf_places(bytes(content))))
    number = draw.choice(NUMBERS)
    content[at : at + size] = number.to_bytes(8, "little")[:size]
    file.write_bytes(content)
    return f"{name} = {number}"


CHANGES = {
    "gguf": (_gguf, _gguf, _gguf, _bytes),
    **dict.fromkeys(("dense", "gptq", "awq"), (_json, _json, _header, _tensor, _bytes)),
}


def try_base(bases: Bases, form: str, seed: str, place: Path) -> tuple[str, str]:
    """Change a copy of a model and give a command; what was changed, and what did not hold, or an empty string."""
    draw = random.Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shutil.copytree(bases.of(form), place / "base")
    changed = draw.choice(CHANGES[form])(place / "base", draw)
    name = place / "base" / "model.gguf" if form == "gguf" else place / "base"
    data = ROOT / "recipes" / "data" / "quickstart"
    (place / "r.yaml").write_text(RECIPE.format(model=name, quantization=STORED[form], data=data))
    words = draw.choice(WORDS)
    try:
        with _limit(SECONDS):
            return changed, wrong(call(place, words), place)
    except TimeoutError as error:
        return changed, f"{words[0]}: {error}"


def wrong(ended: Called, place: Path) -> str:
    """What is wrong with how a command ended, whatever it was given: no sentence, or something left."""
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.raised or "Traceback" in ended.err:
        return (ended.raised or ended.err)[-400:]
    if ended.code and not 1 <= len(errors) <= 4:
        return f"no sentence: {ended.err[-300:]}"
    left = [path.name for path in place.rglob("*") if path.name.endswith((".tmp", ".old"))]
    return f"left {', '.join(left)}" if left else ""


def check(n: int, seed: int) -> Outcome:
    """`n` models, of each form in turn."""
    from unittest.mock import patch

    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, patch.dict("os.environ", LRFT_CACHE=f"{name}/cache"):
        bases = Bases(Path(name))
        for index in range(n):
            form = list(STORED)[index % len(STORED)]
            changed, fault = try_base(bases, form, f"{seed}-{index}", Path(name) / "case")
            outcome.add(not fault, f"{form}, turn {index} of seed {seed}, {changed}: {fault}")
    return outcome
