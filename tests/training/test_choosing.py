"""`lrft choose`: curves that are known, heads and likelihoods computed otherwise, and the order of strategies."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lrft.api.choosing import choose as choosing
from lrft.api.choosing.choose import choose
from lrft.api.choosing.costs import parse_price, price_in_operations, training_tokens
from lrft.api.choosing.demonstrations import after, answer_of, with_answer
from lrft.api.choosing.law import fit_shots
from lrft.api.choosing.past import compare, spearman
from lrft.api.choosing.probe import Learning, learn, predict_classes
from lrft.api.training.recorded import extension
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.steps import train_data
from lrft.cli import app
from lrft.data.example import Example
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DamagedFile, DataError, RecipeError, UsageError
from tests.data.in_bfloat16 import in_bfloat16
from tests.each import each

SHOTS = [0, 1, 2, 4, 8, 16]


@each(("ceiling", "gap", "scale"), [(0.9, 0.5, 3.0), (0.7, 0.1, 10.0), (1.0, 0.75, 1.0)])
def test_a_curve_over_demonstrations_is_found_again(ceiling, gap, scale):
    truth = [ceiling - gap * math.exp(-n / scale) for n in SHOTS]
    found = fit_shots(SHOTS, truth)
    assert found.ceiling == pytest.approx(ceiling, abs=0.02) and found.scale == pytest.approx(scale, rel=0.15)
    assert found.at(64) == pytest.approx(ceiling - gap * math.exp(-64 / scale), abs=0.02)


def test_a_curve_never_falls_nor_passes_one():
    assert fit_shots(SHOTS, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3]).at(100) == pytest.approx(0.55)
    assert fit_shots(SHOTS, [0.5, 0.6, 0.7, 0.9, 1.0, 1.0]).at(1000) <= 1.0
    with pytest.raises(ValueError, match="a curve needs 4 points, not 3"):
        fit_shots([0, 1, 2], [0.1, 0.2, 0.3])


def test_a_head_is_ridge_regression_with_the_least_leave_one_out_error():
    """Against numpy: every row left out by a fit of its own."""
    draw = torch.Generator().manual_seed(0)
    x, test = torch.randn(40, 6, generator=draw), torch.randn(60, 6, generator=draw)
    w = torch.randn(6, 3, generator=draw)
    gold = (x @ w + torch.randn(40, 3, generator=draw)).argmax(1)
    mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
    a, b = ((one.double() - mean) / deviation for one in (x, test))
    y = np.eye(3)[gold.numpy()]
    square = float((torch.linalg.svdvals(a) ** 2).mean())

    def ridge(rows, targets, strength):
        """Centred by the rows it is given, as the intercept is not shrunk."""
        middle, level = rows.mean(0), targets.mean(0)
        inner = (rows - middle).T @ (rows - middle) + strength * square * np.eye(6)
        weights = np.linalg.solve(inner, (rows - middle).T @ (targets - level))
        return lambda asked: (asked - middle) @ weights + level

    def left_out(strength):
        found = [
            ridge(np.delete(a.numpy(), k, 0), np.delete(y, k, 0), strength)(a.numpy()[k]) for k in range(40)
        ]
        return ((y - np.array(found)) ** 2).mean()

    best = min((10.0**k for k in range(-6, 5)), key=left_out)
    expected = ridge(a.numpy(), y, best)(b.numpy()).argmax(1)
    assert predict_classes(x, gold, test, 3).tolist() == expected.tolist()


def test_a_head_s_curve_goes_on_to_all_rows():
    sizes = [16, 32, 64, 128, 256]
    right = torch.tensor([[1 - (0.1 + 2 * m**-0.5) for m in sizes]] * 7, dtype=torch.float64)
    known = Learning(sizes, right)
    assert known.at(256) == pytest.approx(0.9 - 2 * 256**-0.5)
    assert known.at(4096) == pytest.approx(0.9 - 2 * 4096**-0.5, abs=0.01)
    assert known.tried() == pytest.approx(float(right[0, -1]), abs=0.01)


def test_a_head_learns_what_states_tell_and_nothing_of_noise():
    draw = torch.Generator().manual_seed(1)
    states, test = torch.randn(256, 8, generator=draw), torch.randn(300, 8, generator=draw)
    told = learn(states, (states[:, 0] > 0).long(), test, (test[:, 0] > 0).long(), 2, 0)
    assert told.sizes == [16, 32, 64, 128, 256] and told.at(256) > 0.95 > told.at(16)
    coin = torch.randint(2, (256,), generator=draw), torch.randint(2, (300,), generator=draw)
    assert 0.4 < learn(states, coin[0], test, coin[1], 2, 0).at(256) < 0.6
    with pytest.raises(DataError, match="63 rows can be looked at, and a head's curve takes 64"):
        learn(states[:63], coin[0][:63], test, coin[1], 2, 0)


def test_costs_add_up_over_tokens(recipe):
    price = parse_price("3,0.5")
    assert price.of(2e6, 4e6) == pytest.approx(3 * 2 + 0.5 * 4)
    assert price.of(2e6, 4e6) + price.of(1e6, 0) == pytest.approx(price.of(3e6, 4e6))
    chosen = recipe().recipe
    operations = price_in_operations(chosen, 10**9)
    assert operations.training == pytest.approx(4e9 / 1e15) and operations.asking == pytest.approx(2e9 / 1e15)
    again = price_in_operations(recipe("model.activation_checkpointing=true").recipe, 10**9)
    whole = price_in_operations(recipe("adapter=null", "trainable=full").recipe, 10**9)
    assert again.training == pytest.approx(6e9 / 1e15) == pytest.approx(whole.training)
    for text in ("3", "a,b", "-1,2", "nan,1", "1,2,3"):
        with pytest.raises(UsageError, match="what a million tokens cost"):
            parse_price(text)


@each(
    "words",
    [
        (),
        ("train.packing=false",),
        ("train.max_steps=null", "train.epochs=3"),
        ("train.max_steps=null", "train.epochs=0.5", "train.gradient_accumulation=2"),
        ("train.packing=false", "train.max_steps=200"),
    ],
)
def test_tokens_of_a_training_are_those_that_it_passes(words, recipe):
    chosen = recipe(*words).recipe
    data = train_data(chosen, read_text(chosen))
    steps = data.total_steps(chosen.train.max_steps, chosen.train.epochs)
    passed = sum(data.at(step).tokens for step in range(steps))
    assert training_tokens(chosen, data) == pytest.approx(passed, rel=0.02)


def test_spearman_is_that_of_scipy_and_past_runs_calibrate():
    from scipy.stats import spearmanr

    a, b = [0.1, 0.5, 0.5, 0.9, 0.3], [0.2, 0.4, 0.6, 0.8, 0.35]
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1.0, 1.0], [0.1, 0.2]) is None
    runs = [{"run": str(k), "predicted": p, "seen": 0.2 + 0.7 * p} for k, p in enumerate(a)]
    found = compare(runs)
    assert (found["slope"], found["shift"]) == pytest.approx((0.7, 0.2)) and found["spearman"] == 1.0
    assert found["mae"] == pytest.approx(sum(abs(0.2 - 0.3 * p) for p in a) / 5)
    assert found["mae_left_out"] == pytest.approx(0, abs=1e-9) == found["rmse"]
    two = compare(runs[:2])
    assert two["slope"] == 1 and two["shift"] == pytest.approx((0.2 - 0.03 + 0.2 - 0.15) / 2)
    assert two["mae_left_out"] is None


def test_another_answer_takes_the_place_of_the_last():
    turns = tuple(
        {"role": role, "content": said} for role, said in (("user", "a"), ("assistant", "b"), ("user", "c"))
    )
    whole = Example(
        messages=(*turns, {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"})
    )
    assert [one["content"] for one in with_answer(whole, "x").messages] == ["a", "b", "c", "x"]
    assert with_answer(Example(prompt="p", completion="q"), "x") == Example(prompt="p", completion="x")


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides)` -> a loaded recipe whose answers are yes or no, by a word of the question."""
    draw = random.Random(0)

    def rows(count):
        for _ in range(count):
            kind, thing = draw.randrange(2), draw.choice(("cat", "dog", "owl", "bee", "ant"))
            yield {"prompt": f"is {thing} {('red', 'blue')[kind]}?", "completion": f" {('yes', 'no')[kind]}"}

    for name, count in (("rows", 80), ("held", 24)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, eval: {tmp_path}/held.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 2, batch_size: 4, max_length: 64, device: cpu, save_every: 2}\n"
        "adapter: {method: lora, rank: 2}\n"
        "eval: {batch_tokens: 512, tasks: [{method: exact_match, max_new_tokens: 4}]}\n"
    )
    return lambda *overrides: load_recipe(path, list(overrides))


def test_strategies_are_those_of_the_model_itself_and_a_killed_choice_goes_on(recipe, tmp_path):
    out = tmp_path / "choice"
    found = choose(recipe(), out, shots=(0, 1, 2, 3), further=(6,), questions=10, price="2,1")
    by_name = {one["strategy"]: one for one in found["strategies"]}
    assert set(by_name) == {"fine-tuning", *(f"{n} demonstrations" for n in (0, 2, 3, 6)), "1 demonstration"}
    assert found["classes"] == ["no", "yes"] and found["held_out_rows"] == 24
    scores = [one["score"] for one in found["strategies"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1 for one in found["strategies"])
    assert [
        by_name[name]["measured"] for name in ("2 demonstrations", "6 demonstrations", "fine-tuning")
    ] == [*(True, False, False)]
    _check_two_demonstrations(recipe(), tmp_path, by_name["2 demonstrations"])
    tuned = by_name["fine-tuning"]
    assert tuned["cost"] == pytest.approx(
        (2 * tuned["training_tokens"] + 10 * tuned["question_tokens"]) / 1e6
    )
    assert by_name["3 demonstrations"]["training_tokens"] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    (out / "choice.json").unlink()
    assert choose(recipe(), out, shots=(0, 1, 2, 3), further=(6,), questions=10, price="2,1") == found
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def _check_two_demonstrations(loaded, folder, strategy):
    """By transformers alone: nearest questions by their last state, then the likelihood of either answer."""
    name = loaded.recipe.model.name
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    pool, held = (
        [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        for part in ("rows", "held")
    )

    def run(text):
        with torch.no_grad():
            return model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)

    def state(row):
        return torch.nn.functional.normalize(run(row["prompt"]).hidden_states[-1][0, -1].double(), dim=0)

    states = torch.stack([state(row) for row in pool])
    right = []
    for row in held:
        order = (states @ state(row)).argsort(descending=True, stable=True)[:2].tolist()
        shown = (
            "".join(pool[k]["prompt"] + pool[k]["completion"] + "\n\n" for k in reversed(order))
            + row["prompt"]
        )
        begin = len(tokenizer(shown)["input_ids"])
        scores = {}
        for answer in (" no", " yes"):
            ids = tokenizer(shown + answer)["input_ids"]
            logs = run(shown + answer).logits[0].log_softmax(-1)
            scores[answer] = sum(float(logs[k - 1, ids[k]]) for k in range(begin, len(ids)))
        right.append(max(scores, key=scores.__getitem__) == row["completion"])
    assert sum(right) / len(right) == pytest.approx(strategy["accuracy"])


def test_the_tradeoff_decides_and_a_price_of_nothing_is_free(recipe, tmp_path):
    settings = {"shots": (0, 1), "questions": 1000}
    free = choose(recipe(), tmp_path / "a", price="0,0", tradeoff=5.0, **settings)
    assert all(one["cost"] == 0 and one["score"] == one["accuracy"] for one in free["strategies"])
    dear = choose(recipe(), tmp_path / "a", price="1000000,0", tradeoff=1.0, **settings)
    assert dear["strategies"][-1]["strategy"] == "fine-tuning" and dear["strategies"][-1]["score"] < -50
    assert choose(recipe(), tmp_path / "a", **settings)["unit"] == "10^15 operations"


def test_a_training_of_packed_rows_costs_what_it_passes(recipe, tmp_path):
    train(recipe(), tmp_path / "ran", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "ran" / "metrics.jsonl").read_text().splitlines()]
    found = choose(recipe(), tmp_path / "choice", shots=(0,))
    tuned = next(one for one in found["strategies"] if one["strategy"] == "fine-tuning")
    assert tuned["training_tokens"] == sum(line["tokens"] for line in lines)


def test_a_question_is_as_long_as_those_that_are_asked(recipe, tmp_path):
    """A held-out row that is left out has no tokens, and no part in the mean."""
    short = choose(recipe(), tmp_path / "short", shots=(0,))
    with (tmp_path / "held.jsonl").open("a") as file:
        for _ in range(24):
            file.write(json.dumps({"prompt": "is " + "cat " * 90 + "red?", "completion": " yes"}) + "\n")
    more = choose(recipe("data.too_long=drop"), tmp_path / "more", shots=(0,))
    assert more["held_out_rows"] == short["held_out_rows"] == 24
    lengths = [
        next(one["question_tokens"] for one in found["strategies"] if one["strategy"] == "fine-tuning")
        for found in (short, more)
    ]
    assert lengths[0] == lengths[1]


def strategy(name, accuracy, half, cost, tradeoff):
    values = {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "cost": cost}
    return {"base": "b", "strategy": name, **values, "score": accuracy - tradeoff * cost}


@each(
    ("others", "apart"),
    [
        ([(0.95, 0.01, 5.0)], True),  # more often right, and too dear by far
        ([(0.70, 0.05, 0.0)], False),  # less often right, and free: it may be as good
        ([(0.60, 0.01, 0.0), (0.58, 0.2, 0.0)], False),  # the third might be the best
        ([(0.60, 0.01, 0.0), (0.58, 0.02, 0.0)], True),
    ],
)
def test_strategies_are_told_apart_by_what_orders_them(others, apart, recipe, tmp_path, monkeypatch):
    made = [strategy("best", 0.8, 0.05, 1.0, 0.08)]
    made += [strategy(f"other {k}", *one, 0.08) for k, one in enumerate(others)]
    part = choosing._Part(["no", "yes"], 24, "as --price", made, {}, None, [])
    with monkeypatch.context() as patched:
        patched.setattr(choosing, "_of_base", lambda *words: part)
        found = choose(recipe(), tmp_path / "choice", tradeoff=0.08)
    assert found["strategies"][0]["strategy"] == "best" and found["apart"] is apart


def test_what_is_measured_in_another_precision_is_measured_anew(recipe, tiny, tmp_path):
    model = in_bfloat16(tiny(), tmp_path / "model")
    choose(recipe(f"model.name={model}"), tmp_path / "choice", shots=(0,))
    with pytest.raises(UsageError, match="generated with dtype"):
        choose(recipe(f"model.name={model}", "model.dtype=bfloat16"), tmp_path / "choice", shots=(0,))


def test_past_runs_are_believed_as_they_ended_alone(recipe, tmp_path):
    from lrft.api.asking.evaluate import evaluate

    train(recipe("train.max_steps=2", "eval.at_end=false"), tmp_path / "ran", resume=False)
    evaluate(tmp_path / "ran")

    def look(said, error=UsageError):
        with pytest.raises(error, match=said):
            choose(recipe(), tmp_path / "choice", shots=(0,), past=[tmp_path / "ran"])

    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows + rows.splitlines(keepends=True)[0])
    look(r"its data\.train changed since it was trained")
    (tmp_path / "rows.jsonl").write_text(rows)
    scores = tmp_path / "ran" / "eval" / "adapter.json"
    written = json.loads(scores.read_text())
    written["tasks"]["exact_match"]["metrics"]["exact_match"] = 0.99
    before = scores.read_bytes()
    scores.write_text(json.dumps(written))
    look("was edited, or is damaged", DamagedFile)
    scores.write_bytes(before)
    train(tmp_path / "ran", resume=True, added=extension(2))
    look("was scored at step-2 and ends with step-4")
    (tmp_path / "ran" / "result.json").unlink()
    look("is not finished")


def test_past_runs_say_how_far_fine_tuning_is_from_the_head(recipe, tmp_path):
    from lrft.api.asking.evaluate import evaluate

    train(
        recipe("train.max_steps=4", "train.save_every=4", "eval.at_end=false"), tmp_path / "ran", resume=False
    )
    with pytest.raises(UsageError, match="has no share of right rows"):
        choose(recipe(), tmp_path / "choice", shots=(0,), past=[tmp_path / "ran"])
    evaluate(tmp_path / "ran")
    written = json.loads((tmp_path / "ran" / "eval" / "adapter.json").read_text())["tasks"]["exact_match"]
    found = choose(recipe(), tmp_path / "choice", shots=(0,), past=[tmp_path / "ran"])
    (run,) = found["past"]["runs"]
    assert run["seen"] == written["metrics"]["exact_match"]
    tuned = next(one for one in found["strategies"] if one["strategy"] == "fine-tuning")
    assert tuned["accuracy"] == pytest.approx(
        min(max(run["seen"], 0), 1)
    )  # the very rows that it is calibrated by


@each(
    ("words", "error", "said"),
    [
        ({"shots": ()}, UsageError, "--shots: write different numbers"),
        ({"shots": (1, 1)}, UsageError, "--shots: write different numbers"),
        ({"shots": (0, 1), "further": (4,)}, UsageError, "--further: a curve takes 4 numbers"),
        ({"shots": (0, 1, 2, 4), "further": (4,)}, UsageError, "--further: write different numbers"),
        ({"shots": (0, 1, 2, 3), "further": (9999,)}, DataError, "--further 9999: about"),
        ({"shots": (0, 900)}, DataError, "--shots 900: 80 training rows are looked at"),
        ({"tradeoff": -1.0}, UsageError, "--tradeoff -1.0"),
        ({"bases": ["a/b"]}, UsageError, "--base: bases are put in a recipe by its file or name"),
    ],
)
def test_what_makes_no_choice_is_refused(words, error, said, recipe, tmp_path):
    with pytest.raises(error, match=said):
        choose(recipe(), tmp_path / "choice", **words)


def test_without_held_out_rows_there_is_no_choice(recipe, tmp_path):
    with pytest.raises(RecipeError, match="strategies are compared on held-out rows"):
        choose(recipe("data.eval=null", "eval.tasks=[]"), tmp_path / "choice")


def test_two_bases_of_one_recipe_are_strategies_of_their_own(recipe, tiny, tmp_path):
    import shutil

    recipe()
    other = shutil.copytree(tiny(), tmp_path / "other")
    found = choose(tmp_path / "recipe.yaml", tmp_path / "choice", [str(tiny()), str(other)], (0, 1))
    assert len(found["strategies"]) == 6 and set(found["heads"]) == {str(tiny()), str(other)}
    first, second = (
        [one for one in found["strategies"] if one["base"] == base] for base in (str(tiny()), str(other))
    )
    assert [(one["strategy"], one["accuracy"]) for one in first] == [
        (one["strategy"], one["accuracy"]) for one in second
    ]


def test_rows_with_labels_are_fine_tuned_alone(recipe, tiny, tmp_path):
    recipe()
    for name in ("rows", "held"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        labelled = [{"text": row["prompt"], "label": row["completion"].strip()} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    labels = (
        "model.head=[yes, no]",
        "objective=classify",
        "data.format=classify",
        "eval.tasks=[classification]",
    )
    found = choose(recipe(*labels), tmp_path / "choice")
    assert [one["strategy"] for one in found["strategies"]] == ["fine-tuning"] and found["shots"] == {}
    assert found["classes"] == ["no", "yes"] and "ask for no answer" in found["notes"][0]


def test_the_command_prints_strategies_and_its_document(recipe, tmp_path, monkeypatch):
    recipe()
    monkeypatch.chdir(tmp_path)
    words = ["choose", "recipe.yaml", "--shots", "0,1", "--out", "choice"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    for said in (
        "fine-tuning",
        "1 demonstration",
        "best: ",
        "24 held-out rows, 2 classes",
        "no --past run says",
    ):
        assert said in shown.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found == json.loads((tmp_path / "choice" / "choice.json").read_text())
    refused = CliRunner().invoke(app, [*words[:3], "0,x", *words[4:]])
    assert isinstance(refused.exception, UsageError) and "--shots 0,x" in str(refused.exception)


def test_demonstrations_of_a_conversation_are_its_earlier_turns(recipe):
    text = read_text(
        recipe("data.format={method: prompt_completion, render: chat, system: Be brief.}").recipe
    )
    renderer, rows = text.renderer, text.rows
    shown, own = [renderer.format.completed(rows[k]) for k in (3, 1)], renderer.format.completed(rows[0])
    plain, whole = renderer.example_question(with_answer(own, answer_of(own))), renderer.question(rows[0])
    assert (plain.prompt, plain.answer) == (whole.prompt, whole.answer)
    turns = [{"role": "system", "content": "Be brief."}]
    for k in (3, 1, 0):
        turns += [
            {"role": "user", "content": rows[k]["prompt"]},
            {"role": "assistant", "content": rows[k]["completion"]},
        ]
    asked = renderer.example_question(after(shown, with_answer(own, "no"))).prompt
    assert asked == renderer.asked(Example(messages=tuple(turns[:-1])), at_once=True)


def test_a_line_in_the_middle_of_those_that_are_scored_together_is_gone_on_with_to_the_same_bits(
    recipe, tmp_path
):
    """A batch is of the same questions whatever a kill or a full disk left of it."""
    chosen = recipe("model.dtype=bfloat16")
    choose(chosen, tmp_path, shots=(0,))
    (path,) = tmp_path.glob("*.shots-0.jsonl")
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]) + b'{"row": 5, "log')
    choose(chosen, tmp_path, shots=(0,))
    assert path.read_bytes() == whole
