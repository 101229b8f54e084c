"""The tables of parameter counts: their numbers agree with arithmetic done here, and no misprint is smoothed over.

That lrft counts them is seen in test_reproduce.py, once for all tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from math import ceil

import pytest
import yaml

from lrft.build.measure import measure
from lrft.lab.models import Models
from lrft.lab.tables.exact import load
from lrft.lab.tables.exact.schema import Row, TableFile
from lrft.lab.tables.file import PROVENANCE
from lrft.registry.axes import ADAPTERS

COUNT_TABLES = [
    "adalora",
    "dora",
    "fed_sb",
    "lora_2021",
    "lora_xs",
    "miss",
    "model_sizes",
    "other_counts",
    "peft_metamathqa",
    "randlora_nola",
    "vera",
]
MODELS = Models()
CONFIGS = load.folder() / "configs"
LLAMA_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QKVUD = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
QV = ["q_proj", "v_proj"]

# Table, row and column of every known misprint of a count, and of every memory that print counts in another way.
CONFLICTS = [
    ("model_sizes", "GPT-2 medium", "printed"),
    ("model_sizes", "GaLore LLaMA 60M", "width"),
    ("model_sizes", "GaLore LLaMA 1B", "layers"),
    ("model_sizes", "GaLore LLaMA 1B", "heads"),
    ("lora_2021", "GPT-2 medium, all weights", "million"),
    ("lora_2021", "GPT-3 175B q, v r4", "checkpoint"),
    ("lora_2021", "GPT-2 medium q, v r4", "million"),
    ("lora_2021", "GPT-2 large q, v r4", "million"),
    ("lora_2021", "GPT-3 175B q, k, v, o r2", "million"),
    ("lora_2021", "DeBERTa-XXL q, v r8", "million"),
    ("vera", "GPT-2 medium LoRA q, v r4", "million"),
    ("vera", "GPT-2 large LoRA q, v r4", "million"),
    ("vera", "Table 1: RoBERTa-large VeRA r16", "thousand"),
    ("vera", "Table 1: GPT-3 VeRA r16", "million"),
    ("vera", "Table 1: GPT-3 VeRA r256", "million"),
    ("randlora_nola", "NOLA: GPT-2 large q, v LoRA r4", "million"),
    ("randlora_nola", "RandLoRA Table 15: LLaMA-3-8B VeRA r1024", "percent"),
    ("dora", "Table 1: LLaMA-3-8B DoRA r16", "percent"),
    ("dora", "Table 15: LLaMA-7B LoRA r16", "percent"),
    ("dora", "Table 15: LLaMA-7B DoRA r4", "percent"),
    ("miss", "Mistral-7B MiSS r64", "million"),
    ("miss", "Qwen3-4B MiSS r64", "million"),
    ("miss", "LLaMA-2-13B MiSS r128", "million"),
    ("fed_sb", "FFA-LoRA: B alone, r32", "million"),
    ("adalora", "DeBERTaV3-base AdaLoRA, the authors' RTE script", "b(1350) as printed"),
    ("galore_memory", "GaLore r 128, 60M", "optimizer"),
    ("galore_memory", "GaLore r 256, 130M", "optimizer"),
    ("galore_memory", "GaLore r 256, 350M", "optimizer"),
    ("galore_memory", "GaLore r 512, 1B", "optimizer"),
    ("galore_memory", "LoRA and ReLoRA r 128, 60M", "weights"),
    ("galore_memory", "LoRA and ReLoRA r 256, 130M", "weights"),
    ("galore_memory", "LoRA and ReLoRA r 256, 350M", "weights"),
    ("galore_memory", "LoRA and ReLoRA r 512, 1B", "weights"),
    ("glue_memory", "all weights", "memory"),
    ("glue_memory", "GaLore r 4", "memory"),
    ("glue_memory", "LoRA r 8", "memory"),
]


@cache
def table(name: str) -> load.LoadedTable:
    return load.load_table(name)


def row(name: str, label: str) -> Row:
    """The one row whose label is, or begins with, `label`."""
    rows = table(name).table.rows
    found = [r for r in rows if r.label == label] or [r for r in rows if r.label.startswith(label)]
    assert len(found) == 1, f"{name}: {label!r} names {[r.label for r in found]}"
    return found[0]


def config_of(name: str, of: Row) -> dict:
    overrides = [*table(name).table.overrides, *of.overrides]
    model = [text.partition("=")[2] for text in overrides if text.startswith("model.name=")][-1]
    return json.loads((load.folder() / model / "config.json").read_text())


def widths(config: dict, names: list[str]) -> Iterator[tuple[int, int]]:
    """(in, out) of the layers called `names` in every block of a LLaMA-shaped model, from its configuration."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    for _ in range(config["num_hidden_layers"]):
        yield from (shapes[name] for name in names)


@pytest.mark.parametrize("name", load.names())
def test_every_table_file_is_valid(name):
    TableFile.model_validate(yaml.safe_load((load.folder() / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", load.names())
def test_every_number_says_where_it_was_read(name):
    """Numbers from memory that nothing confirms have no code here, and so no place."""
    columns = table(name).table.columns
    cells = [(column, cell) for r in table(name).table.rows for column, cell in r.cells.items()]
    assert {cell.provenance or columns[column].provenance for column, cell in cells} <= PROVENANCE.keys()


@pytest.mark.parametrize("name", COUNT_TABLES)
def test_every_row_is_a_recipe_unless_its_method_is_missing(name):
    for one in table(name).table.rows:
        overrides = [*table(name).table.overrides, *one.overrides]
        methods = [text.partition("=")[2] for text in overrides if text.startswith("adapter.method=")]
        known = all(method in ADAPTERS.names() for method in methods)
        assert (load.row_recipe(table(name), one) is not None) == known, one.label


@pytest.mark.parametrize(
    ("name", "label", "names", "count"),
    [
        ("dora", "Table 1: LLaMA-7B LoRA r32", QKVUD, lambda i, o: 32 * (i + o)),
        ("dora", "Table 1: LLaMA-3-8B DoRA r16", QKVUD, lambda i, o: 16 * (i + o) + o),
        ("dora", "Table 5: LLaMA-7B DoRA r64", LLAMA_NAMES, lambda i, o: 64 * (i + o) + o),
        ("lora_xs", "Gemma-2 9B LoRA-XS r64", LLAMA_NAMES, lambda i, o: 64 * 64),
        ("lora_xs", "Mistral-7B LoRA-SB r96", LLAMA_NAMES, lambda i, o: 96 * 96),
        ("fed_sb", "FFA-LoRA: B alone, r32", LLAMA_NAMES, lambda i, o: 32 * o),
        ("fed_sb", "FLoRA: the stacked A and B", LLAMA_NAMES, lambda i, o: 5 * 32 * (i + o)),
        ("miss", "Qwen3-4B DoRA r36", LLAMA_NAMES, lambda i, o: 36 * (i + o) + o),
        ("lora_2021", "GPT-3 175B q, v r8", QV, lambda i, o: 8 * (i + o)),
        ("peft_metamathqa", "adalora/rank32", QV, lambda i, o: 64 * (i + o) + 64),
    ],
)
def test_modules_count_what_the_formula_gives(name, label, names, count):
    one = row(name, label)
    expected = sum(count(i, o) for i, o in widths(config_of(name, one), names))
    recipe = load.row_recipe(table(name), one)
    assert measure(recipe.recipe, MODELS.get(recipe.recipe.model), optimizer=False)["trainable"] == expected
    exact = one.cells.get("count") or one.cells["trainable"]
    assert exact.published == expected


@pytest.mark.parametrize(
    ("name", "label", "names", "count"),
    [
        ("vera", "LLaMA-13B, LLaMA-2-13B VeRA r1024", LLAMA_NAMES, lambda i, o: 1024 + o),
        ("vera", "GPT-2 large VeRA q, v r1024", QV, lambda i, o: 1024 + o),
        ("vera", "Table 1: GPT-3 VeRA r256", QV, lambda i, o: 256 + o),
        ("dora", "Table 5: LLaMA-7B DVoRA r1024", LLAMA_NAMES, lambda i, o: 1024 + 2 * o),
        ("miss", "LLaMA-2-13B MiSS r128", LLAMA_NAMES, lambda i, o: 128 * o),
        ("miss", "Mistral-7B MiSS r64", LLAMA_NAMES, lambda i, o: 64 * o),
        (
            "randlora_nola",
            "RandLoRA Table 15: LLaMA-3-8B RandLoRA r15",
            QKVUD,
            lambda i, o: ceil(min(i, o) / 15) * (15 + min(i, o)),
        ),
        (
            "randlora_nola",
            "RandLoRA Table 15: Qwen2-0.5B RandLoRA r10",
            QKVUD,
            lambda i, o: ceil(min(i, o) / 10) * (10 + min(i, o)),
        ),
        ("randlora_nola", "NOLA: LLaMA-2-70B NOLA 512 bases", LLAMA_NAMES, lambda i, o: 2 * 512),
        ("other_counts", "DiaBlo LLaMA-2-13B, 64 blocks", QKVUD, lambda i, o: i * o // 64),
        ("peft_metamathqa", "miss/default", QV, lambda i, o: 64 * o),
        ("peft_metamathqa", "vera/default", QV, lambda i, o: 256 + o),
        ("peft_metamathqa", "loha/rank32", QV, lambda i, o: 2 * 32 * (i + o)),
    ],
)
def test_numbers_of_methods_to_come_follow_from_their_formula(name, label, names, count):
    one = row(name, label)
    exact = one.cells.get("count") or one.cells["trainable"]
    assert exact.published == sum(count(i, o) for i, o in widths(config_of(name, one), names))


@pytest.mark.parametrize(
    ("table_of", "lora", "other", "times"),
    [
        ("lora_xs", "LLaMA-3.2-3B LoRA r32", "LLaMA-3.2-3B LoRA-SB r96", 26.9),
        ("lora_xs", "Gemma-2 9B LoRA r32", "Gemma-2 9B LoRA-SB r96", 39.9),
        ("lora_xs", "Mistral-7B LoRA r32", "Mistral-7B LoRA-SB r96", 40.6),
        ("lora_xs", "Gemma-2 9B LoRA r32", "Gemma-2 9B LoRA-SB r64", 89.7),
        ("lora_xs", "Mistral-7B LoRA r32", "Mistral-7B LoRA-SB r64", 91.4),
        ("randlora_nola", "NOLA: LLaMA-2-70B LoRA r1", "NOLA: LLaMA-2-70B NOLA 512 bases", 22.6),
    ],
)
def test_how_many_times_fewer_than_lora(table_of, lora, other, times):
    """Abstracts say 27 to 90 times of LoRA-SB, almost 20 of NOLA; that modules count these is seen elsewhere."""
    few, many = (row(table_of, label).cells["count"].published for label in (other, lora))
    assert round(many / few, 1) == times


def test_the_count_that_miss_prints_for_13b_is_of_rank_120():
    one = row("miss", "LLaMA-2-13B MiSS r128")
    outputs = sum(o for _, o in widths(config_of("miss", one), LLAMA_NAMES))
    assert (one.cells["count"].published, 120 * outputs) == (128 * outputs, 255_590_400)
    assert int(120 * outputs / 1e6) == one.cells["million"].published


def test_what_nola_prints_of_gpt2_large_is_1000_bases_and_not_1024():
    one = row("randlora_nola", "NOLA: GPT-2 large q, v NOLA r8, 1000 bases")
    more = [text.replace("=1000", "=1024") for text in one.overrides]
    assert more != one.overrides
    at_1024 = load.row_recipe(table("randlora_nola"), one.model_copy(update={"overrides": more}))
    assert measure(at_1024.recipe, MODELS.get(at_1024.recipe.model), optimizer=False)["trainable"] == 147_456
    assert one.cells["count"].published == 144_000


def test_the_partial_dora_row_is_lora_on_three_layers_and_a_magnitude_on_seven():
    one = row("dora", "Table 6: LLaMA-13B DoRA r32")
    config = config_of("dora", one)
    direction = sum(32 * (i + o) for i, o in widths(config, LLAMA_NAMES[:3]))
    magnitudes = sum(o for _, o in widths(config, LLAMA_NAMES))
    assert one.cells["count"].published == direction + magnitudes


@pytest.mark.parametrize(("name", "label", "column"), CONFLICTS)
def test_every_known_misprint_of_a_count_is_told(name, label, column):
    assert row(name, label).cells[column].conflict


def test_a_percentage_is_of_base_and_trainable_together():
    one = row("dora", "Table 15: LLaMA-7B LoRA r64")
    recipe = load.row_recipe(table("dora"), one)
    found = measure(recipe.recipe, MODELS.get(recipe.recipe.model), optimizer=False)
    assert found["trainable_percent"] == pytest.approx(100 * 112_197_632 / (6_738_415_616 + 112_197_632))


def test_a_fused_lora_of_gpt2_counts_as_q_and_v_apart():
    """Rank r on c_attn (h, 3h) is r (h + 3h) = 2 r (h + h)."""
    for label, hidden, layers in (("GPT-2 medium q, v r4", 1024, 24), ("GPT-2 large q, v r4", 1280, 36)):
        one = row("lora_2021", label)
        recipe = load.row_recipe(table("lora_2021"), one)
        found = measure(recipe.recipe, MODELS.get(recipe.recipe.model), optimizer=False)
        assert found["trainable"] == layers * 2 * 4 * (hidden + hidden)


def test_the_split_stand_ins_have_the_depth_and_width_of_gpt2():
    for size in ("medium", "large"):
        fused = json.loads((CONFIGS / f"gpt2-{size}" / "config.json").read_text())
        split = json.loads((CONFIGS / f"gpt2-{size}-split" / "config.json").read_text())
        assert (fused["n_embd"], fused["n_layer"]) == (split["hidden_size"], split["num_hidden_layers"])
        assert split["num_attention_heads"] == split["num_key_value_heads"]


def test_configurations_come_without_weights():
    assert {path.name for path in CONFIGS.rglob("*") if path.is_file()} == {"config.json"}
