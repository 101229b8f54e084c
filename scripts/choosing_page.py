"""Write the counted and measured blocks of docs/choosing.md, and the README's table of memory.

    python scripts/choosing_page.py [--check]

`--check` writes nothing and exits 1 when a block is out of date. Memory and parameters are counted as `lrft train
--dry-run` counts them, on packaged configurations without weights; losses are those of docs/log.md, verdicts those of
docs/replays/. No number is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from generated import plain, table, with_block, write_or_check  # noqa: E402
from lrft.api.planning.plan import memory_bytes  # noqa: E402
from lrft.lab.models import Models  # noqa: E402
from lrft.lab.tables import library  # noqa: E402
from lrft.recipe.load import load_recipe  # noqa: E402
from lrft.registry.axes import ADAPTERS, OPTIMIZERS  # noqa: E402
from lrft.registry.errors import LrftError  # noqa: E402

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "choosing.md"
LOG = ROOT / "docs" / "log.md"
REPLAYS = ROOT / "docs" / "replays"
# Packaged configuration -> what it is called.
MODELS = {
    "smollm2-135m": "SmolLM2-135M",
    "qwen2.5-1.5b": "Qwen2.5-1.5B",
    "llama-3.2-3b": "LLaMA-3.2-3B",
    "llama-3-8b": "LLaMA-3-8B",
    "llama-13b": "LLaMA-13B",
    "llama-2-70b": "LLaMA-2-70B",
}
LORA = ["adapter.rank=16", "adapter.alpha=32", "adapter.targets=all-linear"]
FULL = ["adapter=null", "trainable=full"]
ROW = ["train.batch_size=1", "train.max_length=2048", "model.activation_checkpointing=true"]
WAYS = {
    "LoRA r16 on NF4": [*LORA, "quantization=nf4"],
    "LoRA r16 on bfloat16": LORA,
    "all weights, GaLore r128": [*FULL, "optimizer={method: galore, rank: 128}"],
    "all weights, AdamW": FULL,
}
COUNTED_ON = "llama-3.2-1b"
STATE_ON = "smollm2-135m"  # small, since 8-bit optimizers are asked with storage


def memory(models: Models) -> str:
    """GiB of a training by model and way."""
    rows = []
    for config, name in MODELS.items():
        totals = [f"{_memory(models, config, way)['total_estimated'] / 2**30:.1f}" for way in WAYS.values()]
        rows.append((name, *totals))
    return table(("GiB, one row of 2,048 tokens", *WAYS), rows)


def parts(models: Models) -> str:
    """Where the bytes of one model go, by way."""
    found = {way: _memory(models, "llama-3-8b", overrides) for way, overrides in WAYS.items()}
    keys = list(next(iter(found.values())))
    rows = [(key.replace("_", " "), *(f"{found[way][key] / 2**30:.2f}" for way in WAYS)) for key in keys]
    return table(("GiB, LLaMA-3-8B", *WAYS), rows)


def adapters(models: Models) -> str:
    """Numbers that each adapter trains at its own defaults; those that cannot stand alone are left out and named."""
    rows, left = [], []
    for name in ADAPTERS.names():
        try:
            counted = models.weigh(_recipe(COUNTED_ON, ["~adapter", f"adapter={name}"]), optimizer=False)
        except LrftError:
            left.append(f"`{name}`")
            continue
        rows.append((counted["trainable"], name, counted["trainable_percent"]))
    cells = [
        (_link("adapter", name), f"{n:,}", f"{share:.3f} %", _rank(name)) for n, name, share in sorted(rows)
    ]
    note = (
        f"\n\nNot counted, since they need another setting beside their own: {', '.join(left)}."
        if left
        else ""
    )
    return table(("adapter", "numbers", "share", "its default rank"), cells) + note


def optimizers(models: Models) -> str:
    """Bytes of state per trained number, for all weights and for LoRA; empty where the optimizer refuses."""
    rows = []
    for name in OPTIMIZERS.names():
        cells = [_state(models, [f"optimizer={name}", "train.clip=null", *way]) for way in (FULL, LORA)]
        rows.append((_link("optimizer", name), *cells))
    return table(("optimizer", "all weights in bfloat16", "LoRA r16 in float32"), rows)


def losses() -> str:
    """The log's table of every method beside LoRA, lowest loss first."""
    text = LOG.read_text(encoding="utf-8")
    block = text[text.index("| method | rate | held-out loss |") :].split("\n\n")[0]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    return table(heads, sorted(rows, key=lambda row: float(row[2])))


def verdicts() -> str:
    """What replays found, with what each was asked and where."""
    rows = []
    for path in sorted(REPLAYS.glob("*.json")):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        link = f"[{record['title']}](tables/{record['name']}.md)"
        rows.append((link, f"**{record['verdict']}**", plain(record["scale"])))
    return table(("claim", "verdict", "what it does not say"), rows)


def _memory(models: Models, config: str, overrides: Sequence[str]) -> dict[str, int]:
    recipe = _recipe(config, [*ROW, *overrides])
    return memory_bytes(recipe, models.get(recipe.model), models.weigh(recipe))


def _state(models: Models, overrides: Sequence[str]) -> str:
    try:
        counted = models.weigh(_recipe(STATE_ON, overrides))
    except LrftError:
        return ""
    return f"{counted['optimizer_bytes'] / counted['trainable']:.2f}"


def _recipe(config: str, overrides: Sequence[str]) -> Any:
    folder = library.folder()
    return load_recipe(
        folder / "_base.yaml", [f"model.name={folder / 'configs' / config}", *overrides]
    ).recipe


def _rank(name: str) -> str:
    field = ADAPTERS.declared(name).config.model_fields.get("rank")
    return "" if field is None or field.is_required() else str(field.default)


def _link(axis: str, name: str) -> str:
    return f"[`{name}`](methods/{axis}.md#{name})"


def fresh() -> dict[Path, str]:
    """Every file that this script writes."""
    models = Models()
    totals = memory(models)
    text = PAGE.read_text(encoding="utf-8")
    blocks = {"memory": totals, "parts": parts(models), "adapters": adapters(models)}
    blocks |= {"optimizers": optimizers(models), "losses": losses(), "verdicts": verdicts()}
    for name, block in blocks.items():
        text = with_block(text, name, block)
    return {README: with_block(README.read_text(encoding="utf-8"), "memory", totals), PAGE: text}


if __name__ == "__main__":
    raise SystemExit(write_or_check(fresh(), sys.argv[1:]))
