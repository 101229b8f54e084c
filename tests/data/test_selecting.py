"""`lrft data select`: what is measured of rows, the file that is written, and going on after a kill."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lrft.api.data.measure import Measuring
from lrft.api.data.select import select_rows
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.commands.data import app
from lrft.evaluation.row_features import cut, measure_rows
from lrft.model.load import load_model
from lrft.model.trained import parameter_infos
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError, UsageError
from tests.data.in_bfloat16 import in_bfloat16
from tests.each import each

ROWS = [
    {"prompt": f"what is {k} plus {k * k}?", "completion": f" {k + k * k}" * (1 + k % 3)} for k in range(14)
]
GOAL = [{"prompt": f"what is {k} plus 1?", "completion": f" {k + 1}"} for k in range(3)]
TAROT = "{method: tarot, dimensions: 4, ridge: 1e-9}"


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides)` -> a loaded recipe over rows written here, with goal.jsonl beside them."""
    for name, rows in (("rows", ROWS), ("goal", GOAL)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 2, batch_size: 4, max_length: 64, device: cpu, save_every: 1}\n"
        "adapter: {method: lora, rank: 2, dropout: 0.5}\n"
        "eval: {batch_tokens: 128}\n"
    )
    return lambda *overrides: load_recipe(path, list(overrides))


def measured(model, text, need, **more):
    settings = {"batch_tokens": 128, "pad_id": text.pad_id, **more}
    return torch.cat(list(measure_rows(model, text.train, need, **settings)))


def test_losses_and_embeddings_are_those_of_each_row_by_itself(recipe):
    chosen = recipe().recipe
    text, model = read_text(chosen), load_model(chosen.model)
    losses, states = measured(model, text, "losses"), measured(model, text, "embeddings")
    plain = AutoModelForCausalLM.from_pretrained(chosen.model.name, dtype=torch.float32)
    for index, row in enumerate(text.train):
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.supervised]), ids, -100)
        with torch.no_grad():
            found = plain(input_ids=ids, labels=labels, output_hidden_states=True)
        assert abs(float(found.loss) - float(losses[index])) < 1e-4
        assert torch.allclose(found.hidden_states[-1][0].mean(0), states[index], atol=1e-4)


def test_a_gradient_is_that_of_the_row_s_mean_loss_without_dropout(recipe):
    chosen = recipe("adapter.method=dora").recipe
    text = read_text(chosen)
    model = adapt(chosen, text=text).model
    parameters = [info.param for info in parameter_infos(model)]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1
            )
    total = sum(parameter.numel() for parameter in parameters)
    whole = measured(model, text, "gradients", dimensions=total)
    small = measured(model, text, "gradients", dimensions=total // 3, seed=2)
    model.set_attention("eager")
    for index in (0, 5):
        row = text.train[index]
        ids = torch.tensor([row.input_ids])
        logits = model.head.logits(model.body(input_ids=ids).last_hidden_state)[0, :-1]
        learnt = torch.tensor(row.supervised[1:])
        loss = torch.nn.functional.cross_entropy(logits[learnt], ids[0, 1:][learnt])
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        assert torch.allclose(whole[index] * total**0.5, expected, atol=1e-5)
    assert small.shape == (14, total // 3) and all(parameter.grad is None for parameter in parameters)
    products = (small @ small.T) / (total // 3), whole @ whole.T
    assert torch.corrcoef(torch.stack([part.flatten() for part in products]))[0, 1] > 0.99


def test_batches_are_of_consecutive_rows_and_keep_to_the_tokens(recipe):
    rows = read_text(recipe().recipe).train
    parts = list(cut(rows, 128, None))
    assert [k for part in parts for k in part] == list(range(len(rows))) and len(parts) > 2
    assert all(len(part) * max(len(rows[k].input_ids) for k in part) <= 128 for part in parts)
    assert max(map(len, cut(rows, 10**6, 3))) == 3 and len(list(cut(rows, 1, None))) == len(rows)


@each("method", ["length", "perplexity", "betr", "got_d", TAROT])
def test_a_killed_selection_goes_on_to_the_same_bytes(method, recipe, tmp_path):
    target = tmp_path / "goal.jsonl" if method in ("betr", "got_d", TAROT) else None
    whole = tmp_path / "whole.jsonl"
    found = select_rows(recipe(), method, whole, 5, target)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("whole*")}
    for path in tmp_path.glob("whole.*s.jsonl"):  # of pool and target
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    whole.unlink()
    again = select_rows(recipe(), method, whole, 5, target)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("whole*")}
    assert again == found and after == before
    for path in after:
        (tmp_path / path).unlink()


@each(
    ("change", "said"),
    [
        ("model.dtype=bfloat16", "generated with dtype"),
        ("model.rope_scaling={type: linear, factor: 2.0}", "generated with config"),
    ],
)
def test_what_a_base_measured_otherwise_is_not_taken(change, said, recipe, tiny, tmp_path):
    """Neither changes the fingerprint of the base, and both what it makes of a row."""
    model = tmp_path / "model"
    if not model.exists():
        in_bfloat16(tiny(), model)
    select_rows(recipe(f"model.name={model}"), "perplexity", tmp_path / "few.jsonl", 5)
    with pytest.raises(UsageError, match=said):
        select_rows(recipe(f"model.name={model}", change), "perplexity", tmp_path / "few.jsonl", 5)


def test_gradients_of_other_weights_under_the_same_name_are_not_taken(recipe, tiny, tmp_path):
    model = shutil.copytree(tiny(), tmp_path / "model")
    words = (TAROT, tmp_path / "few.jsonl", 4, tmp_path / "goal.jsonl")
    select_rows(recipe(f"model.name={model}"), *words)
    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    other.save_pretrained(model)
    with pytest.raises(UsageError, match="generated with base"):
        select_rows(recipe(f"model.name={model}"), *words)


def test_rows_with_other_features_are_measured_anew(recipe, tmp_path):
    """An adapter that goes by a column gives the same tokens another loss."""
    rows = [{**row, "task": ("a", "b")[k % 2]} for k, row in enumerate(ROWS)]
    words = ("adapter={method: flix, features: {task: [a, b]}, rank: 2}", "data.features=[task]")
    recipe()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "marked.jsonl").write_text(text)
    chosen = load_recipe(tmp_path / "recipe.yaml", [f"data.train={tmp_path}/marked.jsonl", *words])
    train(chosen, tmp_path / "run", resume=False)
    select_rows(chosen, "perplexity", tmp_path / "few.jsonl", 5, None, [tmp_path / "run"])
    (tmp_path / "few.jsonl").unlink()
    (tmp_path / "other.jsonl").write_text(text.replace('"task": "a"', '"task": "b"'))
    other = load_recipe(tmp_path / "recipe.yaml", [f"data.train={tmp_path}/other.jsonl", *words])
    with pytest.raises(UsageError, match="generated with features_sha256"):
        select_rows(other, "perplexity", tmp_path / "few.jsonl", 5, None, [tmp_path / "run"])


def test_the_recipe_reads_back_what_was_chosen_best_first(recipe, tmp_path):
    out = tmp_path / "chosen.jsonl"
    found = select_rows(recipe(), "length", out, 5)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["selected"]["place"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["selected"]["from"] for row in rows] == [one["row"] for one in found["chosen"]]
    assert {**rows[0], "selected": None} == {**ROWS[11], "selected": None}
    again = read_text(recipe(f"data.train={out}").recipe)
    assert len(again.train) == 5 and again.report.unread == {"selected": 5}
    assert select_rows(recipe(), "length", out, 5) == found
    with pytest.raises(UsageError, match="holds other rows"):
        select_rows(recipe(), "length", out, 6)


def test_gradients_of_several_checkpoints_are_averaged(recipe, tmp_path):
    train(recipe(), tmp_path / "run", resume=False)
    runs = [tmp_path / "run" / "checkpoints" / f"step-{step}" for step in (1, 2)]
    goal, out = tmp_path / "goal.jsonl", tmp_path / "c.jsonl"
    found = select_rows(recipe(), TAROT, out, 4, goal, runs)
    assert len(found["chosen"]) == 4 and (tmp_path / "c.gradients-2.jsonl").exists()
    said = (tmp_path / "c.gradients.jsonl.about.json").read_text()
    assert said != (tmp_path / "c.gradients-2.jsonl.about.json").read_text() and '"run"' in said
    with pytest.raises(UsageError, match="takes one model"):
        select_rows(recipe(), "betr", out, 4, goal, runs)
    for words in (f"model.tokenizer={recipe().recipe.model.name}", "model.add_tokens=[plus]"):
        with pytest.raises(UsageError, match="its model is"):
            select_rows(recipe(words), TAROT, tmp_path / "d.jsonl", 4, goal, runs[:1])


def test_features_of_runs_are_their_mean(monkeypatch, recipe, tmp_path):
    from contextlib import contextmanager

    from lrft.registry.axes import DATA_SELECTIONS

    made = DATA_SELECTIONS.get("tarot")(DATA_SELECTIONS.settings("tarot"))
    measuring = Measuring(recipe().recipe, None, made, ["a", "b"])

    @contextmanager
    def opened(self, need, run):
        yield run, {}

    monkeypatch.setattr(Measuring, "_opened", opened)
    monkeypatch.setattr(
        Measuring,
        "measured",
        lambda self, model, part, *rest: torch.tensor([[1.0 if model == "a" else 4.0]]),
    )
    assert [float(one) for one in measuring.features([None, None])] == [2.5, 2.5]


@each(
    ("method", "more", "kind", "said"),
    [
        ("length", {}, UsageError, "has to be told how many"),
        ("length", {"budget": 99}, UsageError, "there are 14 rows to choose from"),
        ("length", {"budget": 2, "target": "goal.jsonl"}, UsageError, "compares rows with no others"),
        ("length", {"budget": 2, "runs": ["run"]}, UsageError, "runs no model"),
        ("betr", {"budget": 2}, UsageError, "name a file of rows of the task"),
        ("betr", {"budget": 2, "target": "gone.jsonl"}, DataError, "gone.jsonl"),
        ("lenght", {"budget": 2}, UsageError, "unknown data selection 'lenght'"),
        ("{method: length, order: up}", {"budget": 2}, UsageError, "order must be"),
        (
            "{method: tarot, size: transport}",
            {"budget": 2, "target": "goal.jsonl"},
            UsageError,
            "says itself",
        ),
        ("{method: tarot}", {"budget": 2, "target": "goal.jsonl"}, DataError, "set dimensions to at most 8"),
    ],
)
def test_words_that_do_not_fit_the_method_are_refused(method, more, kind, said, recipe, tmp_path):
    if "target" in more:
        more = {**more, "target": tmp_path / more["target"]}
    with pytest.raises(kind, match=said):
        select_rows(recipe("eval.batch_tokens=512"), method, tmp_path / "no.jsonl", **more)
    assert not (tmp_path / "no.jsonl").exists()


def test_rows_that_are_no_text_to_learn_are_refused_where_a_model_would_measure_them(recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n' * 2)
    pairs = recipe("data.format=preference", "objective=dpo")
    with pytest.raises(RecipeError, match="measures rows that are learnt token by token"):
        select_rows(pairs, "perplexity", tmp_path / "no.jsonl", 1)
    assert len(select_rows(pairs, "random", tmp_path / "yes.jsonl", 1)["chosen"]) == 1
    with pytest.raises(UsageError, match=r"ends in \.jsonl"):
        select_rows(pairs, "random", tmp_path / "rows.csv", 1)


def test_the_command_prints_a_table_and_where_the_target_is_scored_too(recipe, tmp_path):
    recipe()
    words = ["select", str(tmp_path / "recipe.yaml"), "--method", "betr", "--budget", "12"]
    words += ["--target", str(tmp_path / "goal.jsonl"), "--out", str(tmp_path / "c.jsonl")]
    held_out = f"data.eval={tmp_path / 'goal.jsonl'}"
    shown = CliRunner().invoke(app, [*words, held_out], catch_exceptions=False)
    assert shown.stdout.splitlines()[0].split() == ["place", "score", "row", "reason"]
    assert "12 of 14 rows by betr, the first 10 above" in shown.stdout
    assert "the target is the held-out rows" in shown.stderr


@each("method", ["betr", "perplexity"])
def test_rows_longer_than_the_models_positions_are_not_measured(method, recipe, tmp_path):
    chosen = recipe("train.max_length=8192")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "what is " * 1200, "completion": " 5"}) + "\n")
    goal = None if method == "perplexity" else tmp_path / "goal.jsonl"
    with pytest.raises(DataError, match=r"rows.jsonl:15: needs \d+ tokens, but the model has 1024 positions"):
        select_rows(chosen, method, tmp_path / f"{method}.jsonl", 4, goal)
