"""The contrastive loss of texts: by hand, beside cross-entropy written out, on runs, and in the merged model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.api.asking.evaluate import evaluate
from lrft.api.data.select import select_rows
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.trial import try_loss
from lrft.core.batch import Batch
from lrft.core.team import ALONE
from lrft.data.steps import TrainData
from lrft.methods.objectives._info_nce import info_nce
from lrft.model.described import build_skeleton
from lrft.ops.loss import CHUNK
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import RecipeError, UsageError
from lrft.training.folder import RunFolder
from lrft.training.step import step_loss
from tests.launched import launched
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "contrastive.yaml"
STEPS = ["train.max_steps=4", "train.save_every=2", "train.keep_last=9", "train.device=cpu"]
TEXTS = ((1, 2, 3), (4, 5), (6, 7, 8, 9))  # of three rows: a query, its passage, hard negatives


def objective(**settings):
    return OBJECTIVES.get("contrastive")(OBJECTIVES.settings("contrastive", **settings))


def vectors(count, width=5, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain_loss(embedded, texts, temperature):
    """Row by row, by cross-entropy over a list of candidates, the positive first."""
    rows, place = [], 0
    for row in texts:
        rows.append((place, place + 1, range(place + 2, place + len(row))))
        place += len(row)
    keys = [key for row in texts for key in row]
    losses = []
    for query, positive, _ in rows:
        meant = {keys[p] for q, p, _ in rows if keys[q] == keys[query]}
        others = [k for _, p, hard in rows for k in (p, *hard) if keys[k] not in meant]
        similar = torch.stack([embedded[query] @ embedded[k] for k in (positive, *others)])
        losses.append(F.cross_entropy((similar / temperature)[None], torch.tensor([0])))
    return torch.stack(losses)


def test_the_loss_of_two_queries_by_hand():
    embedded = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    told = info_nce(embedded, ((1, 2), (3, 4)), 0.5)
    assert told.losses.tolist() == pytest.approx([math.log(1 + math.exp(-2))] * 2)
    assert told.found.tolist() == [True, True] and told.negatives.tolist() == [1, 1]


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ((1, 2), (3, 2), (4, 5)),  # two queries of one passage
        ((1, 2, 5), (1, 3), (4, 5)),  # a query asked twice, with another passage each time
        ((1, 2, 2), (3, 1)),
    ],
)
def test_it_is_cross_entropy_over_the_passages_that_are_no_positive(texts):
    embedded = vectors(sum(map(len, texts))).requires_grad_()
    told, expected = info_nce(embedded, texts, 0.1), plain_loss(embedded, texts, 0.1)
    torch.testing.assert_close(told.losses, expected)
    ours, theirs = (torch.autograd.grad(one.sum(), embedded)[0] for one in (told.losses, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_query_alone_costs_nothing_and_is_counted():
    told = info_nce(vectors(2), ((1, 2),), 0.02)
    assert told.losses.tolist() == [0.0] and told.negatives.tolist() == [0]


def rows_of(tmp_path, count=6, negatives=1):
    """Made-up rows whose texts are all different."""
    rows = []
    for k in range(count):
        hard = [f"no {k} {j}" for j in range(negatives)]
        rows.append({"query": f"where is {k}", "positive": f"{k} is at {k * 7}", "negatives": hard})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The smoke recipe of four steps of two micro-batches, and its folder, which no test writes to."""
    folder = tmp_path_factory.mktemp("contrastive") / "run"
    told = [f"model.name={tiny()}", *STEPS, "train.batch_size=4", "train.gradient_accumulation=2"]
    loaded = load_recipe(SMOKE, [*told, "optimizer.lr=0.01"])
    train(loaded, folder, resume=False)
    return loaded, folder


@pytest.fixture(scope="module")
def opened(run):
    return open_run(RunFolder(run[1]), scores=True)


def step_of(opened, size, accumulation, **more):
    _, text, _ = opened
    settings = {"max_length": 256, "packing": False, "seed": 1, "pad_id": text.pad_id, **more}
    return TrainData(text.held_out_encoded(), batch_size=size, accumulation=accumulation, **settings).at(0)


class Bare:
    """As much of a run as `step_loss` asks for."""

    def __init__(self, model, team=ALONE):
        self.model, self.team, self.metrics, self.step, self.planned_steps = model, team, {}, 0, 4
        self.rank, self.processes, self.accelerator = team.rank, team.size, None
        self.penalized, self.scaler, self.compiled, self.device = [], None, False, torch.device("cpu")
        self.kernels = None

    def seed_draws(self, index):
        torch.manual_seed(index)

    def seed_of_draws(self, index):
        return index

    def summed(self, values):
        return values

    def record(self, **metrics):
        self.metrics |= metrics


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("in_step", [True, False])
def test_a_step_of_several_micro_batches_is_that_of_one_big_batch(opened, in_step):
    """Its loss and its gradients, packed or not; with the micro-batches' own passages alone it is another one."""
    model = opened[2].model
    model.eval()
    of = objective(in_batch="step" if in_step else "micro_batch")
    found = []
    for size, accumulation, packing in ((8, 1, False), (3, 3, False), (1, 8, True)):
        model.zero_grad()
        run = Bare(model)
        loss = step_loss(run, step_of(opened, size, accumulation, packing=packing), of)
        found.append((loss, gradients(model), run.metrics))
    whole, apart, packed = found
    assert whole[1] and bool(any(g.any() for g in whole[1].values()))
    if not in_step:
        assert abs(float(apart[0] - whole[0])) > 1e-3
        return
    for loss, grads, metrics in (apart, packed):
        torch.testing.assert_close(loss, whole[0], rtol=1e-5, atol=1e-6)
        assert metrics["contrastive_negatives"] == whole[2]["contrastive_negatives"]
        assert float(metrics["contrastive_accuracy"]) == pytest.approx(
            float(whole[2]["contrastive_accuracy"])
        )
        for name, gradient in whole[1].items():
            torch.testing.assert_close(grads[name], gradient, rtol=1e-3, atol=1e-5)


def test_draws_of_a_micro_batch_are_the_same_in_both_of_its_passes(opened):
    model, seen = opened[2].model, []
    step = step_of(opened, 3, 3)
    of = objective()
    embeddings = model.embeddings
    run = Bare(SimpleNamespace(embeddings=lambda batch: seen.append(torch.rand(1)) or embeddings(batch)))
    with torch.no_grad():
        step_loss(run, step, of)
    assert len(seen) == 6 and seen[:3] == seen[3:] and len({float(one) for one in seen}) == 3


def test_processes_put_their_parts_of_a_step_together(opened):
    """Two of them, told what the other one sends: their losses and gradients add up to those of one big batch."""
    model = opened[2].model
    model.eval()
    whole = step_of(opened, 8, 1)
    model.zero_grad()
    expected = step_loss(Bare(model), whole, objective()), gradients(model)
    shares = [step_of(opened, 3, 2, world=2, rank=rank) for rank in (0, 1)]
    assert [len(share.micro_batches) for share in shares] == [2, 1]
    with torch.no_grad():
        sent = [[(model.embeddings(b), b.texts) for b in share.micro_batches] for share in shares]
    model.zero_grad()
    total = 0.0
    for rank, share in enumerate(shares):
        team = SimpleNamespace(rank=rank, size=2, in_step=False, gather=lambda mine: sent)
        run = Bare(model, team)
        of = objective()
        of.whole_step(run, share, lambda share=share: ((batch, True) for batch in share.micro_batches))
        for batch in share.micro_batches:
            loss = of(model, batch, run) / of.divisor(share)
            loss.backward()
            total += float(loss.detach())
    assert total == pytest.approx(float(expected[0]), rel=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_micro_batch_that_is_there_to_go_in_step_adds_nothing(opened):
    model = opened[2].model
    model.eval()
    step, of, run = step_of(opened, 4, 2), objective(), Bare(model)
    batches = [*step.micro_batches, step.micro_batches[0]]
    of.whole_step(run, step, lambda: ((batch, k < 2) for k, batch in enumerate(batches)))
    with torch.no_grad():
        losses = [float(of(model, batch, run)) for batch in batches]
        whole = float(of(model, step_of(opened, 8, 1).micro_batches[0], run))
    assert losses[2] == 0.0 and sum(losses) == pytest.approx(whole, rel=1e-5)


def test_a_run_goes_on_unbroken(run, tmp_path):
    goes_on_unbroken(*run, 2, tmp_path / "broken")


def test_it_records_what_queries_are_told_from(run):
    lines = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["queries"] == 8 and line["queries_alone"] == 0
        assert 13 <= line["contrastive_negatives"] <= 15 and 0 <= line["contrastive_accuracy"] <= 1
        assert math.isfinite(line["loss"]) and line["loss"] > 0


def test_queries_without_a_negative_are_said(tiny, tmp_path, capsys):
    rows = rows_of(tmp_path, count=5, negatives=0)
    told = [f"model.name={tiny()}", *STEPS, "train.max_steps=3", "train.batch_size=2", "train.packing=false"]
    told += [f"data.train={rows}", "data.eval=null", "eval.tasks=[]"]
    told += ["data.format={method: retrieval, ignore: [negatives]}"]
    train(load_recipe(SMOKE, told), tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["queries_alone"] for line in lines] == [0, 0, 1] and lines[2]["loss"] == 0
    said = capsys.readouterr().err
    assert said.count("1 of 1 queries had no passage to be told from, and learnt nothing") == 1


def test_calibration_refuses_micro_batches_of_which_nothing_could_be_learnt(opened):
    batch = step_of(opened, 1, 1).micro_batches[0]
    bare = replace(batch, texts=(batch.texts[0][:2],))
    model = SimpleNamespace(embeddings=lambda batch: vectors(2))
    with pytest.raises(RecipeError, match=r"train\.batch_size: .* had no passage to be told from"):
        objective()(model, bare)


def test_a_tiny_model_learns_to_retrieve(tiny, tmp_path):
    rows = rows_of(tmp_path, count=16)
    told = [f"model.name={tiny()}", *STEPS, "train.max_steps=50", "train.batch_size=16"]
    told += [f"data.train={rows}", f"data.eval={rows}", "train.save_every=50", "eval.limit=null"]
    told += ["optimizer.lr=0.006", "adapter.rank=16", "objective.temperature=0.05"]
    train(load_recipe(SMOKE, told), tmp_path / "run", resume=False)
    found = evaluate(RunFolder(tmp_path / "run"), baseline=True)
    before, after = (found[label]["retrieval"].metrics for label in ("baseline", "adapter"))
    assert before["passages"] == 32 and before["recall_at_1"] < 0.1  # chance is 1 / 32
    assert after["recall_at_1"] > 0.9 and after["mrr_at_10"] > before["mrr_at_10"] + 0.7


def test_the_merged_model_embeds_the_same_by_transformers_alone(run, opened, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    record = merge(RunFolder(run[1]), tmp_path / "model", dtype="float32")
    assert record["positions"] == 8 * 3 and record["kl_mean"] < 1e-8 and record["cosine_min"] > 1 - 1e-9
    _, text, adaptation = opened
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()

    def embed(said):
        ids = [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            last = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return F.normalize(last, dim=-1)

    adaptation.model.eval()
    for row, encoded in zip(text.held_out, text.held_out_encoded(), strict=True):
        texts = [
            f"Instruct: Find what answers.\nQuery: {row['query']}",
            row["positive"],
            *row["negatives"],
        ]
        for said, document in zip(texts, encoded.documents(), strict=True):
            ids = torch.tensor([document.input_ids])
            alone = Batch(
                ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), torch.tensor([ids.shape[1] - 1]),
                torch.zeros(1, dtype=torch.int64),
            )  # fmt: skip
            with torch.no_grad():
                ours = adaptation.model.embeddings(alone)[0]
            torch.testing.assert_close(embed(said), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["objective=dpo"], "data.format.method: retrieval gives texts to embed, and dpo learns none"),
        (["objective=cross_entropy", "eval.tasks=[loss]"], "write objective: contrastive"),
        (["objective=cross_entropy"], "retrieval asks for embeddings, which the objective does not teach"),
        (["data.format=preference"], "every row of the data is a query with its passage"),
        (["eval.tasks=[gsm8k]"], "gsm8k asks for tokens or labels, and the objective teaches the model to embed"),
        (["eval.tasks=[loss]"], "choose retrieval"),
        (["model.head=[a, b]"], "model.head: scores whole texts, and contrastive embeds texts"),
        (["train.eval_every=2"], "train.eval_every: a row of texts to embed has no loss by itself"),
        (["data.too_long=truncate_right"], "data.too_long: would cut each text by the room"),
        (["data.too_long=windows"], "data.too_long"),
        (["train.batch_size=1", "data.format=retrieval"], "has no passage to be told from"),
        (["objective.in_batch=micro_batch", "train.batch_size=1", "train.gradient_accumulation=4",
          "data.format=retrieval"], "train.batch_size: a query alone"),
        (["objective.temperature=0"], "objective.temperature"),
        (["privacy={noise: 1.0}", "train.packing=false"], "its loss is not of one row by itself"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_recipe(told, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE, ["model.name=x/y", *told])
    assert message in str(caught.value)


def test_rows_one_at_a_time_are_told_from_the_others_of_their_step():
    told = [
        "train.batch_size=1",
        "train.gradient_accumulation=4",
        "train.packing=false",
        "data.format=retrieval",
    ]
    assert load_recipe(SMOKE, ["model.name=x/y", *told]).recipe.train.batch_size == 1


def test_a_model_that_embeds_writes_nothing(run):
    with pytest.raises(UsageError, match="its model was trained to embed texts"):
        open_run(RunFolder(run[1]))
    with pytest.raises(UsageError, match="--task gsm8k: gsm8k asks for tokens or labels"):
        evaluate(RunFolder(run[1]), ["gsm8k"])
    with pytest.raises(UsageError, match="--harness: its tasks ask for tokens"):
        evaluate(RunFolder(run[1]), harness=["hellaswag"])


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(tiny, tmp_path):
    """Queries are told from those of the other process, too; the last of three micro-batches is one process's alone."""
    words = [f"model.name={tiny()}", *STEPS, "train.batch_size=3", "data.train.limit=9", "eval.tasks=[]"]
    losses = []
    for processes, accumulation in ((1, 2), (2, 1)):
        folder = tmp_path / f"run{processes}"
        told = [*words, f"train.gradient_accumulation={accumulation}"]
        done = launched("-m", "lrft", "train", SMOKE, *told, "--out", folder, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_it_is_no_teacher_of_tokens_and_its_rows_are_not_measured_by_them(run, tmp_path):
    name = run[0].recipe.model.name
    taught = load_recipe("smoke/distillation", [f"model.name={name}", f"objective.teacher={run[1]}", *STEPS])
    with pytest.raises(RecipeError, match="embeds texts and predicts no token"):
        train(taught, tmp_path / "taught", resume=False)
    with pytest.raises(
        RecipeError, match="measures rows that are learnt token by token, and these are passages"
    ):
        select_rows(run[0], "perplexity", tmp_path / "chosen.jsonl", 1)


def test_a_plan_counts_no_logits_of_texts_to_embed(tiny):
    """What a step takes after the layers: the state of every token, where tokens to learn have logits beside."""
    hf = build_skeleton(ModelSection(name=str(tiny()), dtype="float32"))[0].hf
    states = 600 * hf.config.hidden_size * 4
    embedding, tokens = (try_loss(hf, 600, device="cpu", texts=texts) for texts in (24, 0))
    logits = min(CHUNK, 600) * hf.config.vocab_size * 4
    assert tokens.forward > logits > 2 * states
    assert embedding.kept < states <= embedding.forward < 2 * states


def test_a_start_that_measures_gradients_sees_a_micro_batch(tiny, tmp_path):
    told = [f"model.name={tiny()}", *STEPS, "init={method: lora_ga, batches: 1}", "train.max_steps=2"]
    assert train(load_recipe(SMOKE, told), tmp_path / "run", resume=False)["step"] == 2
    told += ["train.batch_size=1", "train.gradient_accumulation=4", "data.format=retrieval"]
    with pytest.raises(RecipeError, match=r"train\.batch_size"):
        train(load_recipe(SMOKE, [*told, "data.format.ignore=[negatives]"]), tmp_path / "other", resume=False)


@pytest.mark.parametrize(
    "adapter", ["prefix_tuning", "{method: prompt_tuning, targets: embed_tokens}", "loramoe"]
)
def test_other_adapters_embed_too(tiny, tmp_path, adapter):
    """Virtual tokens before every text, and experts; over two micro-batches, whose first passes count nothing."""
    told = [f"model.name={tiny()}", *STEPS, f"adapter={adapter}", "train.gradient_accumulation=2"]
    result = train(load_recipe(SMOKE, [*told, "train.batch_size=4"]), tmp_path / "run", resume=False)
    assert result["step"] == 4


def test_a_zeroth_order_step_compares_losses_of_the_whole_step(tiny, tmp_path):
    told = [f"model.name={tiny()}", *STEPS, "optimizer={method: mezo, lr: 0.0001}", "train.clip=null"]
    told += ["train.gradient_accumulation=2", "train.batch_size=4"]
    train(load_recipe(SMOKE, told), tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(13 <= line["contrastive_negatives"] <= 15 and line["loss"] > 0 for line in lines)
