"""Calibration tuning beside the authors' arithmetic, over whole logits, and the rows that it learns from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.core.adapted import adapters_off
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.formats.unpaired import Unpaired
from lrft.data.replies import reply_tokens
from lrft.data.show import masked_text
from lrft.data.tokenize import Renderer
from lrft.methods.objectives.calibration import Calibration
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import DataError, RecipeError
from tests.each import each
from tests.methods.objectives.test_dpo import llama, move, pair, policy_of, run_of, trained

NO, YES = 7, 9
GRADES = [True, False, True]
SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "calibration.yaml"


def rows():
    """Answers, and each of them again with a reply after it."""
    found = []
    for seed, grade in enumerate(GRADES):
        row = pair(4 + seed, 3 + seed, 2, seed)
        ids = list(row.input_ids)
        ids[row.parts[0] + 4 + seed] = YES if grade else NO
        found.append(Encoded(ids, row.supervised, length=row.length, parts=row.parts, wanted=grade))
    return found


def batch(layout=((0, 1), (2,))):
    return collate([[rows()[k] for k in line] for line in layout], 0, None, layout)


def objective(**settings):
    made = Calibration(Calibration.Config(method="calibration", **settings))
    made.replies = (NO, YES)
    return made


def moved():
    model = policy_of(llama())
    move(model)
    return model


def authors(model, kind, weight, smoothing):
    """The code's three lines, of one row at a time: sums over tokens, added up over rows."""
    total = 0.0
    for row, grade in zip(rows(), GRADES, strict=True):
        answer, reply = row.documents()
        ids = torch.tensor([reply.input_ids])
        at = next(k for k, learnt in enumerate(reply.supervised) if learnt) - 1
        z = logits(model, ids)[:, at, [NO, YES]]
        total = total + F.cross_entropy(z, torch.tensor([int(grade)]), label_smoothing=smoothing)
        ids = torch.tensor([answer.input_ids])
        probs = logits(model, ids)[:, :-1].softmax(-1)
        with torch.no_grad(), adapters_off(model):
            before = logits(model, ids)[:, :-1].softmax(-1)
        p, q, m = Categorical(probs), Categorical(before), Categorical((probs + before) / 2)
        each_token = {
            "reverse": lambda p=p, q=q: kl_divergence(p, q),
            "forward": lambda p=p, q=q: kl_divergence(q, p),
            "jsd": lambda p=p, q=q, m=m: (kl_divergence(p, m) + kl_divergence(q, m)) / 2,
        }[kind]()
        total = total + weight * (each_token * torch.tensor([answer.supervised[1:]])).sum()
    return total


def logits(model, ids):
    positions = torch.arange(ids.shape[1])[None]
    whole = model.body(
        input_ids=ids, position_ids=positions, documents=((0, 0, ids.shape[1]),), use_cache=False
    )
    return model.head.logits(whole.last_hidden_state).float()


@each(("kind", "smoothing"), [("jsd", 0.0), ("forward", 0.2), ("reverse", 0.0)])
def test_loss_and_gradients_are_those_of_the_authors(kind, smoothing):
    model = moved()
    loss = objective(divergence=kind, consistency=0.7, label_smoothing=smoothing)(model, batch())
    expected = authors(model, kind, 0.7, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(one, list(trained(model).values())) for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_at_step_0_nothing_drifts_and_without_consistency_only_the_reply_is_learnt():
    model = policy_of(llama())
    torch.testing.assert_close(
        objective(consistency=50.0)(model, batch()), objective(consistency=0.0)(model, batch())
    )
    move(model)
    plain, other = batch(), batch()
    first = next(iter(plain.targets.tolist()))
    other = copy.copy(plain)
    object.__setattr__(other, "targets", torch.where(plain.targets == first, 0, plain.targets))
    assert torch.equal(
        objective()(model, other), objective()(model, plain)
    )  # an answer's tokens are no targets


def test_records_are_means_over_the_rows_and_the_loop_divides_by_rows():
    model = moved()
    whole, parts = run_of(model), run_of(model)
    objective()(model, batch(), whole)
    for layout in (((0,),), ((1, 2),)):
        objective()(model, batch(layout), parts)
    assert whole.metrics["graded"] == parts.metrics["graded"] == 3
    for name in ("grade_loss", "grade_accuracy"):
        torch.testing.assert_close(parts.metrics[name], whole.metrics[name])
    assert whole.metrics["grade_loss"] > 0 and whole.metrics["grade_accuracy"] in torch.arange(4) / 3
    totals = type("Totals", (), {"targets": 99, "examples": 3})
    assert objective().divisor(totals) == 3


@pytest.fixture(scope="module")
def renderer(tiny):
    section = ModelSection(name=str(tiny()), dtype="float32")
    tokenizer, stops = load_tokenizer(section)

    def of(**settings):
        form = Unpaired(Unpaired.Config(method="unpaired", **settings))
        return Renderer(tokenizer, form, stops, 256)

    return of


QUERY = "Is it right? (a): no (b): yes. Answer:"


@each("render", ["plain", "chat"])
def test_a_row_is_its_answer_and_the_reply_to_the_question_after_it(render, renderer):
    made = renderer(query=QUERY, replies=["a", "b"], render=render)
    row = {"prompt": "2 + 2 =", "completion": " 4", "label": True}
    encoded = made.encode(row)
    answer, reply = encoded.documents()
    assert encoded.wanted and answer.input_ids == renderer(render=render).encode(row).input_ids
    shown = masked_text(encoded, made.tokenizer, colour=False).plain
    assert shown.startswith("answer: ") and "\nreply: " in shown
    said = made.tokenizer.decode(reply.input_ids)
    learnt = made.tokenizer.decode([i for i, m in zip(reply.input_ids, reply.supervised, strict=True) if m])
    assert QUERY in said and said.index(" 4") < said.index(QUERY) and learnt.split("<")[0].strip() == "b"
    no, yes = reply_tokens(made, {**row, "label": False})
    first = next(i for i, m in zip(reply.input_ids, reply.supervised, strict=True) if m)
    assert first == yes != no


def test_replies_that_begin_alike_and_rows_that_ask_nothing_are_refused(renderer):
    row = {"prompt": "2 + 2 =", "completion": " 4", "label": True}
    with pytest.raises(DataError, match=r"data\.format\.replies: both begin with the token"):
        reply_tokens(renderer(query=QUERY, replies=["a a", "a b"]), row)
    single = collate([[rows()[0].documents()[0]]], 0, None, [[0]])
    with pytest.raises(DataError, match="1 rows hold 1 texts; write the query in the format of every source"):
        objective()(moved(), single)
    with pytest.raises(DataError, match=r"data\.format\.query: the rows do not ask"):
        reply_tokens(renderer(), row)
    given = ["model.name=x/y", "~data.format.query"]
    with pytest.raises(RecipeError, match=r"data\.format\.query: is null, and calibration learns the reply"):
        load_recipe(SMOKE, given)
    with pytest.raises(
        RecipeError, match=r"data\.format\.query: kto learns no replies to it; write objective: calib"
    ):
        load_recipe(SMOKE, ["model.name=x/y", "objective=kto", "train.batch_size=2"])


@pytest.mark.slow
def test_a_tuned_model_says_whether_the_answers_that_it_learnt_are_right(tiny, tmp_path):
    data = [
        "data.train.limit=24",
        f"data.eval.source={SMOKE.parents[1] / 'data' / 'unpaired' / 'train.jsonl'}",
    ]
    small = [
        f"model.name={tiny()}",
        "train.max_steps=60",
        "train.batch_size=8",
        "optimizer.lr=0.01",
        "eval.limit=24",
    ]
    small += ["train.device=cpu", *data, "data.eval.limit=24", "eval.tasks=[confidence]"]
    train(load_recipe(SMOKE, [*small, "objective.consistency=0.01"]), tmp_path / "run")
    found = {k: v["confidence"].metrics for k, v in evaluate(tmp_path / "run", baseline=True).items()}
    assert found["adapter"]["nll"] < min(0.3, found["baseline"]["nll"])
    assert found["adapter"]["auroc"] > 0.9 > found["baseline"]["auroc"]
    assert found["adapter"]["brier"] < found["baseline"]["brier"]
