"""A score head over whole texts: what it learns, that it goes on unbroken, and that PEFT computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lrft.api.asking.doctor import diagnose
from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.core.batch import Batch
from lrft.data.steps import TrainData
from lrft.model.trained import parameter_infos
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import NotMergeable, RecipeError, UsageError
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "classify.yaml"
STEPS = [
    "train.max_steps=4",
    "train.save_every=2",
    "train.keep_last=9",
    "train.device=cpu",
    "train.eval_every=2",
]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The recipe of four steps on the tiny model, and its folder, which no test writes to."""
    folder = tmp_path_factory.mktemp("classify") / "run"
    loaded = load_recipe(SMOKE, [f"model.name={tiny()}", *STEPS, "optimizer.lr=0.02"])
    train(loaded, folder, resume=False)
    return loaded, folder


@pytest.fixture(scope="module")
def numbers(tiny, tmp_path_factory):
    """The folder of a run that learns one number of every text, in chat and bfloat16."""
    here = tmp_path_factory.mktemp("numbers")
    rows = [{"messages": [{"role": "user", "content": "word " * n}], "stars": n / 2} for n in range(1, 9)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [f"model.name={tiny()}", *STEPS, "model.head=[stars]", f"data.train={here}/rows.jsonl"]
    told += [f"data.eval={here}/rows.jsonl", "data.format={method: classify, text: messages, label: stars}"]
    folder = here / "run"
    train(load_recipe(SMOKE, [*told, "model.dtype=bfloat16", "train.max_length=128"]), folder, resume=False)
    return folder


def one_by_one(folder):
    """The run's model, its held-out rows as token ids, what it gives each alone, and the labels."""
    recipe, text, adaptation = open_run(RunFolder(folder), scores=True)
    rows, model = text.held_out_encoded(), adaptation.model
    scores = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        last, none = torch.tensor([ids.shape[1] - 1]), torch.zeros(1, dtype=torch.int64)
        batch = Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), last, none)
        with torch.no_grad():
            scores.append(model.scores(batch))
    return (
        recipe,
        model,
        [row.input_ids for row in rows],
        torch.cat(scores),
        torch.tensor([r.label for r in rows]),
    )


def test_the_loss_is_the_mean_over_texts_of_their_last_tokens_however_they_are_laid_out(run):
    recipe, text, _ = open_run(RunFolder(run[1]), scores=True)
    _, model, _, scores, labels = one_by_one(run[1])
    objective = OBJECTIVES.get("classify")(recipe.objective)
    assert len({float(label) for label in labels}) == 2
    for packing, size, join in ((False, 12, False), (True, 3, False), (True, 6, True)):
        data = TrainData(
            text.held_out_encoded(), batch_size=size, accumulation=12, max_length=64, packing=packing, seed=1,
            pad_id=text.pad_id, join=join,
        )  # fmt: skip
        step = data.at(0)
        assert objective.divisor(step) == len(labels) == 12
        with torch.no_grad():
            loss = sum(objective(model, batch) for batch in step.micro_batches) / objective.divisor(step)
        torch.testing.assert_close(loss, F.cross_entropy(scores, labels.long()))


def test_one_label_is_a_number_whose_squared_error_is_learnt(numbers):
    *_, scores, labels = one_by_one(numbers)
    found = evaluate(RunFolder(numbers), ["loss", "classification"])["adapter"]
    expected = F.mse_loss(scores[:, 0], labels)
    assert found["loss"].metrics["loss"] == pytest.approx(float(expected), rel=2e-2)  # batches in bfloat16
    assert found["classification"].metrics["mse"] == pytest.approx(found["loss"].metrics["loss"], rel=1e-5)
    assert "perplexity" not in found["loss"].metrics and set(found["classification"].metrics) >= {"pearson"}
    last = json.loads((numbers / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_loss"] == pytest.approx(found["loss"].metrics["loss"], rel=1e-5)
    assert "eval_perplexity" not in last


def test_the_head_trains_in_float32_as_a_head_and_begins_from_the_seed(run, numbers):
    for folder, labels in ((run[1], 2), (numbers, 1)):
        recipe, _, adaptation = open_run(RunFolder(folder), scores=True)
        [info] = [info for info in parameter_infos(adaptation.model) if not info.site]
        hidden = adaptation.model.hf.config.hidden_size
        assert (info.name, info.role, info.param.dtype) == ("score.weight", "head", torch.float32)
        assert tuple(info.param.shape) == (labels, hidden) and recipe.model.head is not None
        saved = load_file(folder / "checkpoints" / "step-4" / "adapter.safetensors")["base.score.weight"]
        first = torch.randn(labels, hidden, generator=torch.Generator().manual_seed(recipe.train.seed))
        assert torch.equal(saved, info.param) and (saved - 0.02 * first).abs().max() > 1e-3


def test_a_run_goes_on_unbroken(run, tmp_path):
    goes_on_unbroken(*run, 2, tmp_path / "broken")


@pytest.mark.parametrize("which", ["run", "numbers"])
def test_peft_and_transformers_compute_the_same_scores_from_the_adapter_folder(request, which):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    given = request.getfixturevalue(which)
    folder = given[1] if which == "run" else given
    recipe, _, texts, scores, _ = one_by_one(folder)
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in tensors
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    base = AutoModelForSequenceClassification.from_pretrained(
        recipe.model.name, num_labels=len(recipe.model.head.labels), dtype=torch.float32
    )
    peft = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        theirs = torch.cat([peft(input_ids=torch.tensor([ids])).logits for ids in texts])
    close = {"atol": 1e-5, "rtol": 1e-4} if which == "run" else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(theirs, scores, **close)
    assert theirs.std() > 1e-3


@pytest.mark.parametrize("which", ["run", "numbers"])
def test_a_merged_folder_is_a_classifier_with_the_names_of_the_labels(request, tmp_path, which):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given = request.getfixturevalue(which)
    folder = given[1] if which == "run" else given
    out = tmp_path / "model"
    record = merge(RunFolder(folder), out, dtype="float32")
    looked = diagnose(out)
    assert all(check["passed"] for check in looked["checks"])
    assert [line.split("(")[0] for line in looked["next"]] == [
        "transformers: AutoModelForSequenceClassification.from_pretrained"
    ]
    recipe, _, texts, scores, _ = one_by_one(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    labels = recipe.model.head.labels
    assert (model.config.num_labels, model.config.id2label) == (len(labels), dict(enumerate(labels)))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    padded = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**padded).logits
    close = {"atol": 1e-5, "rtol": 1e-4} if which == "run" else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(theirs, scores, **close)
    assert record["kl_mean"] < 1e-3 and record["positions"] == 8


@pytest.mark.parametrize("rounding", ["stochastic", "feedback"])
def test_a_classifier_in_bfloat16_stays_near_the_run(run, tmp_path, rounding):
    record = merge(RunFolder(run[1]), tmp_path / "model", rounding=rounding, dtype="bfloat16")
    assert 0 < record["kl_mean"] < 1e-3 and record["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_merge_into_their_classifiers(tiny, tmp_path, family):
    told = [f"model.name={tiny(family)}", *STEPS, "train.max_steps=2", "train.max_length=64"]
    train(load_recipe(SMOKE, told), tmp_path / "run", resume=False)
    record = merge(RunFolder(tmp_path / "run"), tmp_path / "model")
    assert record["logit_error_max"] < 1e-5 < record["relative_change"]


def test_a_model_whose_family_has_no_classifier_keeps_its_own_form_and_is_not_merged(
    run, tmp_path, monkeypatch
):
    from lrft.export import peft_format

    recipe, model, *_ = one_by_one(run[1])
    for place in ("lrft.export.peft_format", "lrft.api.merging.scored"):
        monkeypatch.setattr(f"{place}.lacks_classifier", lambda model: True)
    tensors, config = peft_format.peft_form(model, recipe)
    assert config is None and "base.score.weight" in tensors
    with pytest.raises(NotMergeable, match="no sequence classifier with the body of LlamaForCausalLM"):
        merge(RunFolder(run[1]), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_nobody_is_told_to_export_what_cannot_be(run):
    assert [line.split()[1] for line in diagnose(run[1])["next"]] == ["eval", "merge"]


def test_what_wants_text_is_refused(run, tmp_path):
    from lrft.api.exporting.export import export

    folder = RunFolder(run[1])
    for call in (
        lambda: export(folder, "gguf", tmp_path / "x"),
        lambda: open_run(folder),
    ):
        with pytest.raises(UsageError, match="scores whole texts"):
            call()
    with pytest.raises(UsageError, match="--baseline: the base has no score head"):
        evaluate(folder, baseline=True)
    with pytest.raises(UsageError, match="--task gsm8k: gsm8k asks for tokens"):
        evaluate(folder, ["gsm8k"])
    with pytest.raises(UsageError, match="--harness"):
        evaluate(folder, harness=["arc_easy"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["objective=cross_entropy"], "model.head: scores whole texts, and cross_entropy learns tokens"),
        (["objective=cross_entropy"], "classify gives labels, and no text to be learnt"),
        (["model.head=null"], "write model.head"),
        (["model.head=null"], "classification asks for labels, and the model has no head"),
        (["data.format=text"], "every row of the data is a whole text with its label"),
        (["eval.tasks=[gsm8k]"], "gsm8k asks for tokens"),
        (["trainable=['*norm.weight']"], "trainable.weights: weights of the base model cannot train"),
        (["init=eva"], "init.tokens: a text that is given a label has no answer; write all"),
        (["model.head=[a, a]"], "labels are all different"),
        (["model.head=[false, true]"], 'labels are texts, and false is none; put quotes around it: "false"'),
        (["model.head=[]"], "model.head"),
    ],
)
def test_what_cannot_work_is_refused_with_the_recipe(told, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE, ["model.name=x/y", *told])
    assert message in str(caught.value)


def test_a_recipe_without_a_head_has_the_hash_it_had():
    plain = load_recipe("smoke/lora", ["model.name=x/y"]).recipe
    told = load_recipe("smoke/lora", ["model.name=x/y", "model.head=null"]).recipe
    assert recipe_hash(plain) == recipe_hash(told)
    other = load_recipe(SMOKE, ["model.name=x/y"]).recipe
    swapped = load_recipe(SMOKE, ["model.name=x/y", "model.head=[positive, negative]"]).recipe
    assert recipe_hash(other) != recipe_hash(swapped)
