"""Try every model family on a tiny random model and write what works to docs/models.md.

    python scripts/models_page.py [FAMILY ...]

With families named, their rows are printed and the page is left alone. Each row is a training of two steps on a CPU
through the commands' own functions, in float32, then the same in 4 bits, an evaluation whose loss is compared with
transformers' eager forward pass, a merge that plain transformers loads, and the adapter in PEFT.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

import make_tiny_model  # noqa: E402
from lrft.api.asking.evaluate import evaluate  # noqa: E402
from lrft.api.merging.merge import merge  # noqa: E402
from lrft.api.training.train import train  # noqa: E402
from lrft.core.notes import silence  # noqa: E402
from lrft.recipe.load import load_recipe  # noqa: E402
from lrft.registry.errors import LrftError  # noqa: E402
from lrft.training.folder import RUN, RunFolder  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
RECIPE = ROOT / "recipes" / "smoke" / "lora.yaml"
SMALL = [
    *(
        "train.max_steps=2",
        "train.batch_size=4",
        "train.max_length=160",
        "train.device=cpu",
        "data.train.limit=16",
    ),
    *(
        "data.eval.limit=4",
        "eval.tasks=[loss, {method: exact_match, max_new_tokens: 4}]",
        "optimizer.lr=0.01",
    ),
]
HEAD = """# Models

What works with each family, tried on a tiny random model of it by `python scripts/models_page.py` (transformers
{version}, on a CPU, float32). A model that is not listed is asked the same questions when it is loaded: whether later
tokens reach earlier ones, whether packed documents see each other, whether its logits are those of transformers'
own eager forward pass, whether generation in batches answers as single prompts do. What fails is refused, by the
sentence that is printed here, before anything trains. A model that sees or hears (Gemma 3) trains on text: what stands
beside its language model gets no adapter and does not train, which is said.

- **attention**: the backend that `model.attention: auto` ends with on a CPU.
- **packed**: `train.packing: true`; where it is refused, `false` trains, and is what a recipe that does not say gets.
- **matrices**: the share of the numbers in matrices that `targets: all-linear` and 4 bits reach. Experts that are held
  as one tensor of three dimensions, and convolutions, get neither, and `lrft train` says so.
- **4 bits**: two steps on `quantization: nf4`.
- **eval**: the loss of the bare model is that of transformers, to 1e-4; and how prompts are batched to generate: with
  others of any length, of `equal` length, or `single`.
- **merge**: the merged folder loads in plain transformers, and its mean KL divergence from the adapter.
- **PEFT**: `PeftModel.from_pretrained` gives the merged model's logits, or the adapter has lrft's own form, where PEFT
  takes layers beside the experts of a mixture for the experts themselves.

| family | class | attention | packed | matrices | 4 bits | eval | merge | PEFT |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One line of the page: its cells, and the sentences of what was refused."""

    family: str
    cells: tuple[str, ...]
    refusals: tuple[str, ...]


def try_family(family: str, scratch: Path) -> Row:
    """Everything the page says of one family."""
    folder = make_tiny_model.make(scratch / "model", family)
    name, refusals = _class_name(folder), []
    packing = True
    try:
        run = _trained(folder, scratch / "run", "train.packing=true")
    except LrftError as error:
        refusals.append(_sentence(error, folder))
        packing = False
        try:
            run = _trained(folder, scratch / "run", "train.packing=false")
        except LrftError as again:
            refusals[-1] = _sentence(again, folder)
            return Row(family, (name, "no", "", "", "", "", "", ""), tuple(refusals))
    record = run.read(RUN)
    cells = (
        name,
        record["attention"],
        "yes" if packing else "no",
        f"{1 - record['matrices']['unreached']:.0%}",
        _tried(lambda: _four_bits(folder, scratch, packing), refusals, folder),
        _tried(lambda: _evaluation(run, folder), refusals, folder),
        _tried(lambda: _merge(run, scratch / "merged"), refusals, folder),
        _tried(lambda: _peft(run, folder, scratch / "merged"), refusals, folder),
    )
    return Row(family, cells, tuple(refusals))


def page(rows: list[Row]) -> str:
    """The whole page."""
    import transformers

    lines = ["| " + " | ".join((f"`{row.family}`", *row.cells)) + " |" for row in rows]
    told = [f"- `{row.family}`: {sentence}" for row in rows for sentence in row.refusals]
    return HEAD.format(version=transformers.__version__) + "\n".join(
        [*lines, "", "## What is refused, and with which words", "", *told, ""]
    )


def _trained(model: Path, out: Path, *overrides: str) -> RunFolder:
    train(load_recipe(RECIPE, [f"model.name={model}", *SMALL, *overrides]), out, resume=False)
    return RunFolder(out)


def _four_bits(model: Path, scratch: Path, packing: bool) -> str:
    _trained(model, scratch / "nf4", "quantization=nf4", f"train.packing={str(packing).lower()}")
    return "yes"


def _evaluation(run: RunFolder, model: Path) -> str:
    from lrft.evaluation import generate

    seen: list[str] = []
    whole = generate.batching_of

    def listened(subject: Any) -> str:
        seen.append(whole(subject))
        return seen[-1]

    generate.batching_of = listened
    try:
        scores = evaluate(run, [], None, True, None)["baseline"]
    finally:
        generate.batching_of = whole
    ours, theirs = scores["loss"].metrics["loss"], _loss_of_transformers(run, model)
    assert abs(ours - theirs) < 1e-4, f"loss {ours} where transformers has {theirs}"
    return seen[0] if seen[0] != "padded" else "yes"


@torch.no_grad()
def _loss_of_transformers(run: RunFolder, folder: Path) -> float:
    """Mean loss over the supervised tokens of the held-out rows, one row at a time, eager."""
    from transformers import AutoModelForCausalLM

    from lrft.build.dataset import read_text

    text = read_text(load_recipe(run.path / "recipe.yaml").recipe, today=run.day)
    plain = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    total, count = 0.0, 0
    for row in text.held_out_encoded():
        logits = plain(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        for place, learnt in enumerate(row.supervised):
            if learnt:
                total -= float(logits[place - 1].log_softmax(-1)[row.input_ids[place]])
                count += 1
    return total / count


def _merge(run: RunFolder, out: Path) -> str:
    from transformers import AutoModelForCausalLM

    record = merge(run, out, None)
    loaded = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    _, report = cast(tuple[object, dict[str, set[object]]], loaded)
    left = {key: sorted(map(str, found)) for key, found in report.items() if found}
    assert not left, left
    return f"{max(record['kl_mean'], 0):.0e}"


@torch.no_grad()
def _peft(run: RunFolder, folder: Path, merged: Path) -> str:
    if not (run.adapter / "adapter_config.json").is_file():
        return "own form"
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, run.adapter)(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-3), float((ours - theirs).abs().max())
    return "yes"


def _tried(what: Any, refusals: list[str], folder: Path) -> str:
    try:
        return str(what())
    except LrftError as error:
        refusals.append(_sentence(error, folder))
        return "no"


def _class_name(folder: Path) -> str:
    import json

    return str(json.loads((folder / "config.json").read_text())["architectures"][0])


def _sentence(error: LrftError, folder: Path) -> str:
    return re.sub(re.escape(str(folder)), "MODEL", str(error)).replace("\n", " ")


def main(families: list[str]) -> int:
    """Write the page, or print the rows of some families."""
    silence(True)
    rows = []
    for family in families or sorted(make_tiny_model.FAMILIES):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(try_family(family, Path(scratch)))
        print("| " + " | ".join((family, *rows[-1].cells)) + " |", *rows[-1].refusals, sep="\n  ", flush=True)
    if not families:
        PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
