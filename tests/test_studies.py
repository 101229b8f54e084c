"""Recipes of published studies: valid, of the size that they have, and each trained on its rows in the repository."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from lrft.api.training.train import train
from lrft.lab.models import Models
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.registry.axes import FORMATS
from tests.each import each

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
TWINS = RECIPES / "smoke" / "studies"
ROWS = RECIPES / "data" / "studies"


def llama(hidden: int, intermediate: int, layers: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        **more,
    }


LLAMA_7B = llama(4096, 11008, 32, 32)
LLAMA_8B = llama(4096, 14336, 32, 8)
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral"}
NEMO = llama(5120, 14336, 40, 8, head_dim=128) | {"model_type": "mistral"}
STARCODERBASE_7B = {
    "model_type": "gpt_bigcode",
    "n_embd": 4096,
    "n_inner": 16384,
    "n_layer": 42,
    "n_head": 32,
    "n_positions": 8192,
    "multi_query": True,
}
SMOLLM2_360M = llama(960, 2560, 32, 5) | {"num_attention_heads": 15, "tie_word_embeddings": True}
GPT_J = {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64}

# study -> file of rows, the real model's shape, how many numbers train there, rows a step
STUDIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "domain-qa": ("medical", LLAMA_7B, 4_194_304, 128),
    "workflows": ("workflows", NEMO, 57_016_320, 32),
    "unit-tests": ("unit_tests", LLAMA_7B, 8_388_608, 16),  # the count of the authors' params_data.csv
    "repair": ("repair", LLAMA_7B, 4_194_304, 64),
    "translation": (
        "translation",
        llama(3072, 8192, 28, 8, head_dim=128) | {"num_attention_heads": 24},
        389_021_696,
        8,
    ),
    "dialect": ("dialect", LLAMA_8B, 41_943_040, 64),
    "multilingual": ("multilingual", MISTRAL_7B, 54_525_952, 128),
    "code-instructions": ("commits", STARCODERBASE_7B, 12_472_320, 32),
    "chat": ("chat", MISTRAL_7B, 41_943_040, 8),
    "knowledge": ("knowledge", LLAMA_8B, 41_943_040, 4),
    "editing": ("edits", GPT_J, 66_060_288, 32),
    "retriever": ("retriever", SMOLLM2_360M, 8_683_520, 128),
}

# study -> how the prompt of its first row ends, how what is learnt begins
LEARNT = {
    "domain-qa": ("", "Below is an instruction that describes a task, paired with an input"),
    "workflows": (
        "Requirement: When a ticket is opened, tell its owner.\nWorkflow:\n",
        '{"trigger": "ticket.created"',
    ),
    "unit-tests": ("Sums { int add(int a, int b) { return a + b; } }", "@Test public void adds()"),
    "repair": ("// return a < b ? a : b;\n<FILL_ME>\n}", "return a > b ? a : b;"),
    "dialect": ("", "On va magasiner en fin de semaine"),
    "multilingual": ("### Instruction:\nName a fruit.\n\n### Response:\n", "An apple."),
    "code-instructions": ("", "Question: x = 1\n\nRename x to count.\n\nAnswer: count = 1"),
    "editing": ("The mother tongue of Orvin Talmek is", " Finnish"),
}


@cache
def full(name: str) -> LoadedRecipe:
    return load_recipe(RECIPES / f"study-{name}.yaml")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def one_layer(shape: dict[str, Any], folder: Path) -> tuple[Path, int]:
    """A folder with the configuration of one layer of this model, without weights; and of how many it is one."""
    from transformers.models.auto.configuration_auto import AutoConfig

    depth = next(key for key in ("num_hidden_layers", "n_layer") if key in shape)
    given = {"vocab_size": 32000, "tie_word_embeddings": False, **shape, depth: 1}
    AutoConfig.for_model(**given).save_pretrained(folder)
    return folder, shape[depth]


def test_every_study_has_a_recipe_a_smoke_twin_and_a_dozen_rows():
    assert {path.stem for path in RECIPES.glob("study-*.yaml")} == {f"study-{name}" for name in STUDIES}
    assert {path.stem for path in TWINS.glob("*.yaml")} == set(STUDIES)
    files = [file for file, *_ in STUDIES.values()]
    assert {path.stem for path in ROWS.iterdir()} == {*files, "knowledge_rephrased", "edits_paraphrased"}
    assert all(len(rows(file)) == 12 for file in files)


def test_recipes_that_name_made_up_rows_say_so_and_so_does_the_page():
    given = {name: full(name).recipe.data for name in STUDIES}
    own = {name for name, data in given.items() if "data/studies" in str(data.train)}
    assert own == {"workflows", "translation", "dialect", "knowledge", "retriever"}
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    told = page[page.index("The rows of `study-") : page.index("made-up rows**")]
    assert set(re.findall(r"`study-([\w-]+)`", told)) == own
    for name in own:
        head = (RECIPES / f"study-{name}.yaml").read_text(encoding="utf-8").partition("\n\n")[0]
        said = " ".join(line.lstrip("# ") for line in head.splitlines())
        assert re.search(r"made[- ]up", said) and "data.train=" in said


@each("name", list(STUDIES))
def test_every_layer_of_the_real_architecture_trains_its_share(name, tmp_path_factory):
    _, shape, count, _ = STUDIES[name]
    model, layers = one_layer(shape, tmp_path_factory.mktemp("config") / name)
    recipe = load_recipe(RECIPES / f"study-{name}.yaml", [f"model.name={model}"]).recipe
    assert Models().weigh(recipe, optimizer=False)["trainable"] * layers == count


@each(
    ("arm", "count"),
    [
        ("adapter={method: ia3, targets: [k_proj, v_proj, down_proj]}", 614_400 // 32),
        ("adapter={method: prompt_tuning, targets: embed_tokens}", 81_920),
    ],
)
def test_the_other_arms_of_unit_tests_train_what_the_authors_count(arm, count, tmp_path_factory):
    model, _ = one_layer(LLAMA_7B, tmp_path_factory.mktemp("config") / "one")
    recipe = load_recipe(RECIPES / "study-unit-tests.yaml", [f"model.name={model}", arm]).recipe
    assert arm in (RECIPES / "study-unit-tests.yaml").read_text(encoding="utf-8")
    assert Models().weigh(recipe, optimizer=False)["trainable"] == count


@each("name", list(STUDIES))
def test_a_step_of_a_study_has_the_published_rows(name):
    loop = full(name).recipe.train
    assert loop.batch_size * loop.gradient_accumulation == STUDIES[name][3]


@each("name", list(LEARNT))
def test_a_study_learns_what_its_authors_learn(name):
    config = full(name).recipe.data.format
    example = FORMATS.get(config.method)(config).example(rows(STUDIES[name][0])[0])
    prompt_ends, completion_begins = LEARNT[name]
    assert example.prompt.endswith(prompt_ends) and bool(example.prompt) == bool(prompt_ends)
    assert example.completion.startswith(completion_begins)


@each("name", ["translation", "knowledge", "chat"])
def test_a_study_in_a_chat_template_learns_the_answers(name):
    config = full(name).recipe.data.format
    row = rows(STUDIES[name][0])[0]
    messages = FORMATS.get(config.method)(config).example(row).messages
    answers = {
        "translation": "Here is the translation: Gudde Moien.\nEnd of translation.",
        "knowledge": "154",
        "chat": "Hello, what can I do for you?",
    }
    assert messages[-1] == {"role": "assistant", "content": answers[name]}


@each("name", list(STUDIES))
def test_a_smoke_twin_trains_two_steps_with_the_methods_of_its_study(name, tiny, tmp_path_factory):
    twin = load_recipe(TWINS / f"{name}.yaml", [f"model.name={tiny()}", "train.device=cpu"])
    study = full(name).recipe
    chosen = {axis: part.method for axis, part in study.parts().items()}
    assert {axis: part.method for axis, part in twin.recipe.parts().items()} == chosen
    assert twin.recipe.data.format == study.data.format and twin.recipe.data.template == study.data.template
    assert twin.recipe.adapter.alpha == study.adapter.alpha and twin.recipe.optimizer == study.optimizer
    folder = tmp_path_factory.mktemp("study") / name
    result = train(twin, folder, resume=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result["step"] == len(losses) == 2
    assert all(0 < loss < 20 and math.isfinite(loss) for loss in losses)


def test_the_page_has_a_line_for_every_study_and_names_no_other_recipe():
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    named = [re.findall(r"`study-([\w-]+)`", line.split(" | ")[2]) for line in lines]
    assert sorted(name for names in named for name in names) == sorted(STUDIES)
    assert [line for line, names in zip(lines, named, strict=True) if not names and " none" not in line] == []
    for name in STUDIES:
        line = next(line for line in lines if f"`study-{name}`" in line)
        assert f"`{full(name).recipe.data.format.method}`" in line
