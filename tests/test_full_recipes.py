"""Recipes with published hyper-parameters: valid, of the published size, and runnable in form on a tiny model."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.lab.models import Models
from lrft.lab.tables.full.report import full_markdown
from lrft.lab.tables.full.results import size_full
from lrft.lab.tables.full.table import counted_recipe, load_full, trained_arm
from lrft.recipe import library
from lrft.recipe.load import LoadedRecipe, load_recipe, validate
from lrft.registry.axes import FORMATS
from lrft.training.folder import RunFolder

RECIPES = Path(__file__).parents[1] / "recipes"
COMMONSENSE = {
    "instruction": "Please answer with true or false: is ice cold?\n\nAnswer format: true/false",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
METAMATH = {
    "query": "Ann has 2 pens and buys 3. How many has she?",
    "response": "2 + 3 = 5. #### 5 The answer is: 5",
    "type": "GSM_Rephrased",
    "original_question": "Ann has 2 pens and buys 3. How many pens?",
}
C4 = {"text": "Ice is frozen water. " * 3, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}
MAGICODER = {"instruction": "Add two numbers in Python.", "response": "def add(a, b):\n    return a + b"}
OASST = {"text": "### Human: What is ice?### Assistant: Frozen water."}

# (hidden, intermediate, layers, heads, key-value heads, vocabulary)
LLAMA_7B = ("llama", 4096, 11008, 32, 32, 32, 32000)
LLAMA3_8B = ("llama", 4096, 14336, 32, 32, 8, 128256)
GALORE_60M = ("llama", 512, 1376, 8, 8, 8, 32000)
LLAMA32_3B = ("llama", 3072, 8192, 28, 24, 8, 128256)
MISTRAL_7B = ("mistral", 4096, 14336, 32, 32, 8, 32000)

# recipe -> a row of its data set, the real model's shape, and how many numbers train there
FULL: dict[str, tuple[dict[str, Any], tuple[Any, ...], int]] = {
    "llama-commonsense-dora": (COMMONSENSE, LLAMA_7B, 56_975_360),
    "llama2-commonsense-dora": (COMMONSENSE, LLAMA_7B, 56_975_360),
    "llama3-commonsense-dora": (COMMONSENSE, LLAMA3_8B, 57_409_536),
    "llama2-metamath-pissa": (METAMATH, LLAMA_7B, 319_815_680),
    "llama2-metamath-corda": (METAMATH, LLAMA_7B, 319_815_680),
    "llama2-metamath-lora_ga": (METAMATH, LLAMA_7B, 19_988_480),
    "llama2-metamath-lora_pro": (METAMATH, LLAMA_7B, 19_988_480),
    "llama2-oasst-qlora": (OASST, LLAMA_7B, 159_907_840),
    "mistral-metamath-lora_sb": (METAMATH, MISTRAL_7B, 2_064_384),
    "llama32-metamath-lora": (METAMATH, LLAMA32_3B, 9_175_040),
    "llama2-metamath-miss": (METAMATH, LLAMA_7B, 87_031_808),
    "llama31-magicoder-gralora": (MAGICODER, LLAMA3_8B, 167_772_160),
    "llama3-commonsense-randlora": (COMMONSENSE, LLAMA3_8B, 56_626_112),
    "galore-60m-c4-adamw": (C4, GALORE_60M, 58_073_600),
    "galore-60m-c4-galore": (C4, GALORE_60M, 58_073_600),
    "galore-60m-c4-fira": (C4, GALORE_60M, 58_073_600),
}
FROM_SCRATCH = [name for name in FULL if name.startswith("galore")]
TABLES = sorted((RECIPES / "tables" / "full").glob("[!_]*.yaml"))
# Tables whose sizes take longer than two seconds. The others have a base in few bits, one from random weights, and rows
# without a recipe.
LONG = {
    "corda_accuracy",
    "dora_commonsense",
    "fira_commonsense",
    "galore_perplexity",
    "gralora_accuracy",
    "lora_ga_accuracy",
    "miss_accuracy",
    "peft_gsm8k",
    "pissa_accuracy",
    "randlora_commonsense",
}
TINY_RANK = 8  # LoRA-GA needs twice the rank in directions, and a tiny key projection has 32


full_table = cache(load_full)
packaged = cache(library.names)


def loaded(name: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def shrunken(name: str, model: Path, rows: Path, *more: str) -> LoadedRecipe:
    """The recipe on a tiny model and local rows; its methods, storage and format as they are."""
    recipe = loaded(name).recipe
    overrides = [f"model.name={model}", f"data.train={rows}", "train.device=cpu"]
    overrides += ["train.max_steps=2", "train.batch_size=1", "train.gradient_accumulation=2"]
    overrides += ["eval.at_end=false"]  # of rows that are not here
    overrides += ["train.max_length=256", "schedule.warmup_steps=null", "schedule.warmup_ratio=0"]
    if recipe.data.eval is not None:
        overrides += [f"data.eval={rows}", "train.eval_every=2"]
    for axis in ("adapter", "optimizer"):
        if getattr(getattr(recipe, axis), "rank", 0) > TINY_RANK:
            overrides.append(f"{axis}.rank={TINY_RANK}")
    if recipe.init is not None and "batches" in type(recipe.init).model_fields:
        overrides.append("init.batches=2")
    if recipe.model.tokenizer is not None:
        overrides.append(f"model.tokenizer={model}")
    return loaded(name, *overrides, *more)


@pytest.fixture
def rows_of(tmp_path):
    """`rows_of(row)` -> a file of a few rows like it."""

    def write(row: dict[str, Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(6)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """`config_of(shape)` -> a folder with the configuration of the real model, without weights."""

    @cache
    def write(shape: tuple[Any, ...]) -> Path:
        from transformers.models.auto.configuration_auto import AutoConfig

        family, hidden, intermediate, layers, heads, kv_heads, vocabulary = shape
        AutoConfig.for_model(
            family,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
        ).save_pretrained(folder := tmp_path_factory.mktemp("config"))
        return folder

    return write


@pytest.fixture(scope="module")
def models() -> Models:
    """The real models without weights, each built once."""
    return Models()


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_validates(name):
    assert validate([str(RECIPES / f"{name}.yaml")]) == [(str(RECIPES / f"{name}.yaml"), [])]


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_trains_the_published_count_on_the_real_architecture(name, config_of, models):
    _, shape, trained = FULL[name]
    recipe = loaded(name, f"model.name={config_of(shape)}").recipe
    assert models.weigh(recipe, optimizer=False)["trainable"] == trained


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_trains_two_steps_on_a_shrunken_model(name, tiny, rows_of, tmp_path):
    row, shape, _ = FULL[name]
    small = shrunken(name, tiny(shape[0], tied=False), rows_of(row))
    result = train(small, tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["step"] == 2
    assert [math.isfinite(line["loss"]) for line in lines if "loss" in line] == [True, True]
    full = loaded(name).recipe
    for axis, method in full.parts().items():
        assert small.recipe.parts()[axis].method == method.method
    assert small.recipe.quantization == full.quantization


@pytest.mark.parametrize(
    "name", [name for name in FULL if "metamath" in name or name == "llama-commonsense-dora"]
)
def test_a_full_recipe_is_scored_on_rows_of_its_benchmark(name, tiny, rows_of, tmp_path):
    row, shape, _ = FULL[name]
    full = loaded(name).recipe
    if row is METAMATH:
        tasks = [
            {**task.model_dump(), "format": task.format.model_dump(), "max_new_tokens": 4}
            for task in full.eval.tasks
        ]
        bench = {"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = 5\n#### 5"}
    else:  # as the recipe's last comment says
        prompt = full.data.format.completion.removesuffix("{output}")
        form = {"method": "columns", "prompt": prompt, "completion": "{output}"}
        tasks, bench = [{"method": "multiple_choice", "format": form}], COMMONSENSE
    (tmp_path / "bench").mkdir()
    scored = tmp_path / "bench" / "test.jsonl"
    scored.write_text(json.dumps(bench) + "\n", encoding="utf-8")
    chosen = json.dumps([{**task, "data": str(scored)} for task in tasks])
    small = shrunken(name, tiny(shape[0], tied=False), rows_of(row), f"eval.tasks={chosen}")
    train(small, tmp_path / "run", resume=False)
    results = evaluate(RunFolder(tmp_path / "run"), [], None, False, None)["adapter"]
    assert set(results) == {task["method"] for task in tasks}


@pytest.mark.parametrize(
    ("name", "prompt_ends", "completion_ends"),
    [
        ("llama-commonsense-dora", "", "### Response:\n                the correct answer is true"),
        ("llama2-metamath-pissa", "How many has she?\n\n### Response:", "The answer is: 5\n"),
        ("llama2-metamath-corda", "How many has she?\n\n### Response:", "The answer is: 5"),
        ("llama2-metamath-lora_ga", "How many has she?\nA:", " 2 + 3 = 5. #### 5 The answer is: 5"),
        ("llama2-metamath-lora_pro", "How many has she?\n\n### Response:\n", "The answer is: 5"),
        ("mistral-metamath-lora_sb", "How many has she?\n\n### Response:", "The answer is: 5"),
        ("llama2-metamath-miss", "How many has she?\n\n### Response:", "The answer is: 5\n"),
        ("llama31-magicoder-gralora", "Python.\n\n### Response:\n", "return a + b "),
        ("llama3-commonsense-randlora", "", "### Response:\n                the correct answer is true"),
        ("llama2-oasst-qlora", "", OASST["text"]),
        ("llama32-metamath-lora", "", "step by step.\nAnswer:2 + 3 = 5. #### 5 The answer is: 5"),
        ("galore-60m-c4-adamw", "", C4["text"]),
    ],
)
def test_a_full_recipe_learns_what_the_authors_learn(name, prompt_ends, completion_ends):
    config = loaded(name).recipe.data.format
    example = FORMATS.get(config.method)(config).example(FULL[name][0])
    assert example.prompt.endswith(prompt_ends)
    assert bool(example.prompt) == bool(prompt_ends)
    assert example.completion.endswith(completion_ends)


@pytest.mark.parametrize(
    ("name", "rows_a_step"),
    [
        ("llama-commonsense-dora", 16),
        ("llama2-commonsense-dora", 16),
        ("llama3-commonsense-dora", 16),
        ("llama2-metamath-pissa", 128),
        ("llama2-metamath-corda", 128),
        ("llama2-metamath-lora_ga", 32),
        ("llama2-metamath-lora_pro", 32),
        ("llama2-metamath-miss", 64),
        ("llama31-magicoder-gralora", 192),
        ("llama3-commonsense-randlora", 16),
        ("llama2-oasst-qlora", 16),
        ("mistral-metamath-lora_sb", 32),
        ("llama32-metamath-lora", 4),
        ("galore-60m-c4-adamw", 512),
        ("galore-60m-c4-galore", 512),
        ("galore-60m-c4-fira", 512),
    ],
)
def test_a_step_of_a_full_recipe_has_the_published_rows(name, rows_a_step):
    train = loaded(name).recipe.train
    assert train.batch_size * train.gradient_accumulation == rows_a_step
    assert not train.packing


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_pre_training_starts_from_the_packaged_configuration_and_has_a_document_for_each_row(name):
    recipe = loaded(name).recipe
    assert recipe.model.weights == "random"
    assert Path(recipe.model.name) == RECIPES / "tables" / "configs" / "galore-60m"
    rows = recipe.train.batch_size * recipe.train.gradient_accumulation * recipe.train.max_steps
    assert recipe.data.train.stream == rows


def test_a_copied_pre_training_recipe_still_finds_its_configuration(tmp_path):
    copy = library.copy("galore-60m-c4-adamw", tmp_path)
    assert load_recipe(copy).recipe.model == loaded("galore-60m-c4-adamw").recipe.model


def test_there_are_full_tables_and_none_shares_a_name_with_another_tier():
    others = {path.stem for tier in ("", "scaled") for path in (RECIPES / "tables" / tier).glob("*.yaml")}
    assert len(TABLES) >= 10
    assert not {path.stem for path in TABLES} & others


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_full_table_names_recipes_that_exist_and_no_unverified_number(path):
    table = full_table(path)
    for row in table.rows:
        assert row.recipe is None or row.recipe in packaged()
        loaded_row = counted_recipe(table, row, path)
        if row.config is not None and loaded_row is not None:
            assert Path(loaded_row.recipe.model.name).parent == RECIPES / "tables" / "configs"
        for name, cell in row.cells.items():
            assert (cell.provenance or table.columns[name].provenance) in {"T", "R", "J", "A", "2"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in TABLES],
)
def test_a_full_table_is_sized_without_network(path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("sizing asked for the network")

    monkeypatch.setattr("socket.create_connection", refused)
    record = size_full(path)
    assert {number["verdict"] for number in record["numbers"]} <= {
        "not run",
        "no recipe",
        "method not in lrft yet",
        "no such benchmark in lrft",
    }
    for row, published in zip(record["rows"], full_table(path).rows, strict=True):
        if row["state"] == "sized":
            assert row["trainable"] > 0
            assert row["memory_bytes"] > 0
        else:
            assert published.config is None or row["state"] == "method not in lrft yet"
    assert full_markdown(record).startswith(f"# {record['title']}")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_of_a_full_table_that_has_a_recipe_can_be_planned(path, monkeypatch, tmp_path):
    """With the benchmark's files in place, every recipe is valid as it would be run."""
    for variable in ("LLM_ADAPTERS", "NQ_OPEN"):
        monkeypatch.setenv(variable, str(tmp_path))
    for file in _named_files(path.read_text(), tmp_path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("[]")
    table = full_table(path)
    for row in table.rows:
        arm = trained_arm(table, row, path)
        assert (arm is None) == (counted_recipe(table, row, path) is None)
        if arm is not None and arm.recipe.model.weights == "random":
            assert Path(arm.recipe.model.name).name == row.config


def _named_files(text: str, folder: Path) -> list[Path]:
    return [folder / found for found in re.findall(r"\$(?:LLM_ADAPTERS|NQ_OPEN)/([\w/.-]+)", text)]


@pytest.mark.parametrize(
    "name", ["dora_commonsense", "fira_commonsense", "gralora_accuracy", "randlora_commonsense"]
)
def test_commonsense_is_scored_in_the_prompt_that_it_is_trained_in(name):
    trained = loaded("llama-commonsense-dora").recipe.data.format
    tasks = full_table(RECIPES / "tables" / "full" / f"{name}.yaml").tasks
    assert len({task.data.source for task in tasks}) == 8
    assert {task.format.prompt + task.format.completion for task in tasks} == {trained.completion}


def test_known_conflicts_of_accuracies_are_on_their_cells():
    def conflicts(name: str) -> str:
        rows = full_table(RECIPES / "tables" / "full" / f"{name}.yaml").rows
        return " ".join(cell.conflict for row in rows for cell in row.cells.values() if cell.conflict)

    assert "74.7" in conflicts("dora_commonsense") and "76.3" in conflicts("dora_commonsense")
    for number in ("52.99", "39.0", "38.8", "47.5", "47.8", "50.7", "51.4"):
        assert number in conflicts("qlora_mmlu")
    assert "+1.78" in conflicts("roste_accuracy") and "2.98" in conflicts("roste_accuracy")
