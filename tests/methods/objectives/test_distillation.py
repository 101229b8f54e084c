"""Distillation beside its formula formed densely by two models, and what is asked of a teacher before it teaches."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.build.taught import load_teacher
from lrft.build.teacher import find_teacher
from lrft.core.adapted import adapted, adapters_off
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.methods.objectives.distillation import Distillation
from lrft.model.sharing import share_tensors
from lrft.ops.loss import Head
from lrft.ops.summed import sum_in_chunks
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError, UsageError
from tests.each import each
from tests.methods.objectives.test_dpo import Largest, llama, move, packed, policy_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "distillation.yaml"
SETTINGS = [
    {"divergence": divergence, "temperature": T, "weight": w}
    for divergence, T, w in (("forward", 2.0, 0.7), ("reverse", 2.0, 0.7), ("reverse", 1.0, 1.0))
]


def objective(teacher=None, **settings):
    made = Distillation(Distillation.Config(method="distillation", **settings))
    made.teacher = teacher
    return made


def batch():
    draw = torch.Generator().manual_seed(2)
    rows = [torch.randint(1, 61, (n,), generator=draw).tolist() for n in (9, 6, 12)]
    return collate(
        [[Encoded(ids, [False] * 3 + [True] * (len(ids) - 3))] for ids in rows], 0, None, [[0], [1], [2]]
    )


def other(vocabulary=61):
    """A model of another shape."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(7)
    hf = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    torch.nn.init.normal_(hf.lm_head.weight, std=0.6)
    return packed(hf.requires_grad_(False))


def moved():
    model = policy_of(llama())
    move(model)
    return model


def dense(model, teacher, rows, divergence="forward", temperature=1.0, weight=0.5):
    """The docstring's loss, of whole logits."""
    q, p = (one(rows).flatten(0, 1)[rows.supervised].float() for one in (model, teacher))
    loss = (1 - weight) * F.cross_entropy(q, rows.targets, reduction="sum")
    p, q = (p / temperature).softmax(-1).detach(), (q / temperature).softmax(-1)
    first, second = (p, q) if divergence == "forward" else (q, p)
    return loss + weight * temperature**2 * (first * (first.log() - second.log())).sum()


@each("settings", SETTINGS)
def test_loss_and_gradients_are_those_of_whole_logits_of_two_models(settings):
    model, teacher, rows = moved(), other(), batch()
    loss = objective(teacher, **settings)(model, rows)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained)
    expected = dense(model, teacher, rows, **settings)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, trained), rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in teacher.parameters())


def test_without_a_weight_it_is_cross_entropy_and_a_model_learns_nothing_from_itself():
    model, rows = moved(), batch()
    plain = CrossEntropy(CrossEntropy.Config(method="cross_entropy"))(model, rows)
    torch.testing.assert_close(objective(other(), weight=0.0)(model, rows), plain)
    same = objective(copy.deepcopy(model), weight=1.0, temperature=3.0)(model, rows)
    assert abs(same.item()) < 1e-3
    gradients = torch.autograd.grad(same, [p for p in model.parameters() if p.requires_grad])
    assert max(float(g.abs().max()) for g in gradients) < 1e-3


def test_without_a_teacher_the_base_teaches_and_is_its_adapters_switched_off():
    model, rows = moved(), batch()
    base = packed(llama())
    found = objective(weight=1.0)(model, rows)
    torch.testing.assert_close(found, dense(model, base, rows, weight=1.0))
    assert found > 1e-2 and all(site.enabled for _, site in adapted(model))
    with adapters_off(model):
        assert objective(weight=1.0)(model, rows).abs() < 1e-4


def test_the_sum_in_chunks_keeps_no_logits_and_has_their_gradient():
    torch.manual_seed(0)
    hidden, beside = torch.randn(70, 8, requires_grad=True), torch.randn(70, 300)
    for trains in (False, True):
        head = Head(torch.nn.Linear(8, 300, bias=False).requires_grad_(trains))

        def part(rows, wanted, head=head):
            return (head.logits(rows) * wanted).tanh().sum()

        inputs = [hidden, *(head.module.parameters() if trains else ())]
        with Largest() as seen:
            total = sum_in_chunks(part, head, hidden, beside, chunk=16)
            if not trains:
                assert [kept.shape for kept in total.grad_fn.saved_tensors] == [hidden.shape]
            found = torch.autograd.grad(total, inputs)
        assert seen.numel < 70 * 300
        whole = part(hidden, beside)
        torch.testing.assert_close(total, whole)
        torch.testing.assert_close(found, torch.autograd.grad(whole, inputs), rtol=1e-4, atol=1e-4)


def test_a_second_model_uses_the_frozen_tensors_that_are_the_same_and_no_other():
    first, second = moved(), moved()
    frozen = sum(p.nbytes for n, p in second.named_parameters() if "adapter" not in n and p.numel() > 64)
    frozen += sum(b.nbytes for n, b in second.named_buffers() if "adapter" not in n and b.numel() > 64)
    second.hf.lm_head.weight[0, 0] += 1
    expected = second(batch())
    for tensor in first.hf.model.layers[0].input_layernorm.parameters():
        tensor.requires_grad_(True)
    freed = share_tensors(second, first)
    assert freed == frozen - second.hf.lm_head.weight.nbytes
    assert torch.equal(second(batch()), expected)
    places = {t.data_ptr() for t in (*first.parameters(), *first.buffers())}
    assert second.hf.get_input_embeddings().weight.data_ptr() in places
    assert second.hf.lm_head.weight.data_ptr() not in places
    assert all(p.data_ptr() not in places for n, p in second.named_parameters() if "adapter" in n)


def test_a_base_that_trains_or_is_given_up_is_no_teacher(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    given = ["model.name=x/y", f"data.train={rows}", "data.eval=null", "data.format=prompt_completion"]
    for more in (["adapter=null", "trainable=full"], ["adapter={method: sltrain}"]):
        with pytest.raises(RecipeError, match=r"objective\.teacher: is null, for the base model, which"):
            load_recipe(SMOKE, [*given, *more])
    with pytest.raises(
        RecipeError, match=r"objective\.teacher: .*no run, no checkpoint of one, no recipe, no folder"
    ):
        load_recipe(SMOKE, [*given, "objective.teacher=./nowhere"])
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"extends: {SMOKE}\nmodel: {{name: x/y}}\nquantization: nf4\n")
    found = find_teacher(load_recipe(SMOKE, given).recipe, str(bare))
    assert found.run is None and found.recipe.adapter is None and found.recipe.quantization.method == "nf4"
    hub = find_teacher(load_recipe(SMOKE, [*given, "objective.teacher=a/b@main"]).recipe, "a/b@main").recipe
    assert (hub.model.name, hub.model.revision, hub.model.dtype) == ("a/b", "main", "float32")
    with pytest.raises(RecipeError, match="made by training"):
        recipe = tmp_path / "theirs.yaml"
        recipe.write_text(f"extends: {SMOKE}\nmodel: {{name: x/y, adapter: {tmp_path}}}\n")
        (tmp_path / "adapter_config.json").write_text("{}")
        find_teacher(load_recipe(SMOKE, given).recipe, str(recipe))


def small(tiny, **more):
    given = {
        "model.name": tiny(),
        "data.train.limit": 30,
        "data.eval.limit": 4,
        "train.device": "cpu",
        **more,
    }
    return load_recipe(SMOKE, [f"{key}={value}" for key, value in given.items()])


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    """A run on the tiny model, trained for some steps."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(small(tiny, **{"objective": "cross_entropy", "optimizer.lr": 0.05}), folder)
    return folder


def test_a_run_teaches_as_the_base_with_its_adapter_and_a_resumed_run_knows_it_again(tiny, teacher, tmp_path):
    loaded = small(tiny, **{"objective.teacher": teacher, "objective.weight": 1.0, "train.save_every": 1})
    run = tmp_path / "run"
    train(loaded, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # At step 0 the student is the base, so its loss is what the base lacks of the teacher.
    assert lines[0]["loss"] > 1e-4 and lines[0]["grad_norm"] > 0
    record = json.loads((run / "run.json").read_text())["teacher"]
    assert record["kind"] == "run" and len(record["adapter"]) == 64
    model, _ = load_teacher(find_teacher(loaded.recipe, str(teacher)), torch.device("cpu"), True, False)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    said = json.loads((run / "run.json").read_text())
    said["teacher"]["adapter"] = "0" * 64
    (run / "run.json").write_text(json.dumps(said))
    (run / "manifest.json").unlink()
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match="the teacher that the objective names changed since this run began"):
        train(loaded, run, resume=True)


@pytest.mark.slow
def test_a_plan_counts_the_teacher_and_refuses_one_that_does_not_fit(tiny, teacher, tmp_path):
    assert "teacher" not in plan(small(tiny, **{"objective.teacher": teacher}))["memory_bytes"]
    another = tiny("llama", tied=False)
    counted = plan(small(tiny, **{"objective.teacher": another}))["memory_bytes"]
    assert counted["teacher"] > 0
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in another.iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    words = json.loads((odd / "tokenizer.json").read_text())
    first, second = list(words["model"]["vocab"])[40:42]
    held = words["model"]["vocab"]
    held[first], held[second] = held[second], held[first]
    (odd / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(RecipeError, match="has another vocabulary"):
        plan(small(tiny, **{"objective.teacher": odd}))
    config = json.loads((another / "config.json").read_text())
    (odd / "tokenizer.json").write_bytes((another / "tokenizer.json").read_bytes())
    (odd / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    with pytest.raises(RecipeError, match="has 16 positions"):
        plan(small(tiny, **{"objective.teacher": odd}))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one two three four"}\n' * 8)
    with pytest.raises(RecipeError, match="learnt answers alone"):
        plan(
            small(
                tiny,
                **{
                    "objective.teacher": teacher,
                    "data.train": texts,
                    "data.format": "text",
                    "data.eval": "null",
                },
            )
        )
