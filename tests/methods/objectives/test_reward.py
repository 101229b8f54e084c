"""The reward of pairs: the loss by hand and by TRL's lines, on a run, however rows lie, and in the merged model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.api.asking.evaluate import evaluate
from lrft.api.data.show import show_rows
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.core.batch import Batch
from lrft.data.steps import TrainData
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import DataError, RecipeError
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "reward.yaml"
STEPS = [
    "train.max_steps=4",
    "train.save_every=2",
    "train.keep_last=9",
    "train.device=cpu",
    "train.eval_every=2",
]
ROWS = [
    ("1 + 1 =", " 2", " a much longer wrong answer", 0.5),
    ("word " * 9, "yes", "no", 0),
    ("b", "c d e", "f", 2),
]


def objective(**settings):
    return OBJECTIVES.get("reward")(OBJECTIVES.settings("reward", **settings))


def loss_of(scores, margins, **settings):
    """The objective's loss of these scores, of each pair the chosen one first, divided by the pairs."""
    count = len(scores)
    documents = tuple((row, 0, 1) for row in range(count))
    none = torch.zeros(count, dtype=torch.int64)
    labels = torch.tensor([value for margin in margins for value in (margin, 0.0)])
    batch = Batch(none[:, None], none[:, None], documents, none, none, tuple(range(count // 2)), labels)
    model = SimpleNamespace(scores=lambda batch: torch.tensor(scores)[:, None])
    made = objective(**settings)
    return float(made(model, batch)) / made.divisor(SimpleNamespace(targets=count, examples=count // 2))


def trl_loss(chosen, rejected, margin=None, center=None):
    """The lines of `RewardTrainer.compute_loss`."""
    if margin is not None:
        loss = -F.logsigmoid(chosen - rejected - margin).mean()
    else:
        loss = -F.logsigmoid(chosen - rejected).mean()
    if center is not None:
        loss += center * torch.mean((chosen + rejected) ** 2)
    return float(loss)


def test_the_loss_of_numbers_by_hand():
    assert loss_of([1.0, 0.0], [0.0]) == pytest.approx(math.log(1 + math.exp(-1)))
    assert loss_of([3.0, 1.0], [1.5]) == pytest.approx(math.log(1 + math.exp(-0.5)))
    with_center = math.log(1 + math.exp(1)) + 0.01 * 9
    assert loss_of([1.0, 2.0], [0.0], center=0.01) == pytest.approx(with_center)


def test_the_loss_is_that_of_trl_with_margins_and_centring():
    draw = torch.Generator().manual_seed(4)
    chosen, rejected, margin = torch.randn(3, 6, generator=draw)
    scores = torch.stack([chosen, rejected], 1).flatten().tolist()
    margins = margin.abs().tolist()
    assert loss_of(scores, [0.0] * 6) == pytest.approx(trl_loss(chosen, rejected))
    assert loss_of(scores, margins) == pytest.approx(trl_loss(chosen, rejected, margin.abs()))
    expected = trl_loss(chosen, rejected, margin.abs(), 0.3)
    assert loss_of(scores, margins, center=0.3) == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The recipe of four steps on pairs with margins, and its folder, which no test writes to."""
    here = tmp_path_factory.mktemp("reward")
    names = ("prompt", "chosen", "rejected", "by")
    rows = [dict(zip(names, row, strict=True)) for row in ROWS]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [f"model.name={tiny()}", *STEPS, "optimizer.lr=0.02", f"data.train={here}/rows.jsonl"]
    told += [f"data.eval={here}/rows.jsonl", "data.format={method: preference, margin: by}"]
    loaded = load_recipe(SMOKE, told)
    train(loaded, here / "run", resume=False)
    return loaded, here / "run"


@pytest.fixture(scope="module")
def opened(run):
    """The run's recipe, its rows and model, and what the model gives every text alone, (pairs, 2)."""
    recipe, text, adaptation = open_run(RunFolder(run[1]), scores=True)
    model, scores = adaptation.model, []
    for document in [document for row in text.held_out_encoded() for document in row.documents()]:
        ids = torch.tensor([document.input_ids])
        last, none = torch.tensor([ids.shape[1] - 1]), torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            scores.append(
                model.scores(
                    Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), last, none)
                )
            )
    return recipe, text, model, torch.cat(scores).view(-1, 2)


def expected_loss(scores):
    margins = torch.tensor([row[3] for row in ROWS])
    return trl_loss(scores[:, 0], scores[:, 1], margins)


def test_texts_are_whole_prompts_with_answers_and_no_end_of_text_token(opened):
    _, text, _, _ = opened
    for row, (prompt, chosen, rejected, by) in zip(text.held_out_encoded(), ROWS, strict=True):
        read = [text.tokenizer.decode(document.input_ids) for document in row.documents()]
        assert read == [prompt + chosen, prompt + rejected]
        assert (row.label, row.targets, any(row.supervised)) == (by, 2, False)


@pytest.mark.parametrize(("packing", "size", "join"), [(False, 3, False), (True, 2, False), (True, 3, True)])
def test_the_loss_is_of_the_last_token_of_every_text_however_rows_lie(opened, packing, size, join):
    recipe, text, model, scores = opened
    data = TrainData(
        text.held_out_encoded(), batch_size=size, accumulation=3, max_length=128, packing=packing, seed=1,
        pad_id=text.pad_id, join=join,
    )  # fmt: skip
    step, made = data.at(0), OBJECTIVES.get("reward")(recipe.objective)
    assert made.divisor(step) == 3
    with torch.no_grad():
        loss = sum(made(model, batch) for batch in step.micro_batches) / 3
    assert float(loss) == pytest.approx(expected_loss(scores), rel=1e-5)


def test_held_out_pairs_are_scored_by_their_loss_and_by_which_is_preferred(run, opened):
    scores = opened[3]
    found = evaluate(RunFolder(run[1]), ["loss", "pairwise"])["adapter"]
    assert found["loss"].metrics["loss"] == pytest.approx(expected_loss(scores), rel=1e-5)
    assert (found["loss"].metrics["tokens"], found["loss"].n) == (3, 3)
    assert "perplexity" not in found["loss"].metrics
    pairwise, margin = found["pairwise"], scores[:, 0] - scores[:, 1]
    assert pairwise.metrics["accuracy"] == float((margin > 0).float().mean())
    assert pairwise.metrics["margin"] == pytest.approx(float(margin.mean()), rel=1e-4, abs=1e-6)
    assert [sample["correct"] for sample in pairwise.samples] == (margin > 0).tolist()
    last = json.loads((run[1] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_loss"] == pytest.approx(expected_loss(scores), rel=1e-5)
    assert {"reward_accuracy", "reward_margin", "reward_chosen", "pairs"} <= last.keys()


def test_it_is_learnt(run, opened):
    lines = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval_loss"] < lines[1]["eval_loss"]


def test_a_run_goes_on_unbroken(run, tmp_path):
    goes_on_unbroken(*run, 2, tmp_path / "broken")


def test_a_merged_folder_gives_the_same_rewards_by_transformers_alone(run, opened, tmp_path):
    from transformers import AutoModelForSequenceClassification

    record = merge(RunFolder(run[1]), tmp_path / "model", dtype="float32")
    scores, text = opened[3], opened[1]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert model.config.id2label == {0: "reward"}
    texts = [document.input_ids for row in text.held_out_encoded() for document in row.documents()]
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in texts])
    torch.testing.assert_close(theirs.view(-1, 2), scores, atol=1e-5, rtol=1e-4)
    assert record["positions"] == 6 and record["loss_adapter"] == pytest.approx(
        expected_loss(scores), rel=1e-5
    )
    assert record["kl_mean"] < 1e-8


def test_a_shown_row_says_which_text_is_preferred_and_by_how_much(run):
    shown = show_rows(run[0])
    assert [row.label for row in shown] == [
        "chosen, by a margin of 0.5",
        "chosen",
        "chosen, by a margin of 2",
    ]
    assert [segment["learnt"] for segment in shown[0].record()["segments"]] == [False, False]


@pytest.mark.parametrize("margin", ["much", None, -1, True, 1e9])
def test_a_margin_that_is_no_number_is_refused_with_its_line(run, tmp_path, margin):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "by": margin}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    told = [f"model.name={run[0].recipe.model.name}", f"data.train={tmp_path}/rows.jsonl"]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: column 'by'"):
        show_rows(SMOKE, overrides=[*told, "data.format={method: preference, margin: by}"])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["model.head=[good, bad]"], "model.head: has 2 labels, and a reward is one number"),
        (["model.head=null"], "write model.head"),
        (["objective=dpo"], "model.head: scores whole texts, and dpo learns tokens"),
        (["objective=classify"], "every row of the data is a whole text with its label"),
        (["data.format=classify"], "every row of the data is a pair"),
        (["eval.tasks=[classification]"], "classification does not score pairs, which reward learns; choose pairwise"),
        (["objective.center=-1"], "objective.center"),
        (["model.head=null", "objective=dpo", "data.format={method: preference, margin: by}"], "data.format.margin"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_recipe(told, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE, ["model.name=x/y", "eval.tasks=[loss]", *told])
    assert message in str(caught.value)


def test_labels_are_not_asked_of_pairs_nor_preferences_of_texts(run, tiny):
    with pytest.raises(DataError, match=r"the rows are pairs.*pairwise"):
        evaluate(RunFolder(run[1]), ["classification"])
    with pytest.raises(RecipeError, match="pairwise does not score single texts, which classify learns"):
        load_recipe("smoke/classify", ["model.name=x/y", "eval.tasks=[pairwise]"])


def test_a_recipe_of_pairs_without_a_margin_has_the_hash_it_had():
    plain = load_recipe("smoke/dpo", ["model.name=x/y"]).recipe
    told = load_recipe("smoke/dpo", ["model.name=x/y", "data.format.margin=null"]).recipe
    assert recipe_hash(plain) == recipe_hash(told)
    pair = load_recipe(SMOKE, ["model.name=x/y", "data.format={method: preference, margin: by}"]).recipe
    assert recipe_hash(pair) != recipe_hash(load_recipe(SMOKE, ["model.name=x/y"]).recipe)
