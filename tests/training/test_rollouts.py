"""Steps whose answers the model draws: what a step holds, on what it depends, and that learning from them helps."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.api.planning.ahead import plan_ahead
from lrft.api.planning.find_lr import find_lr
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.job import assemble
from lrft.build.steps import documents_of_a_row, shapes_of, train_data
from lrft.core.adapted import adapters_off
from lrft.data.collate import collate
from lrft.data.prompts import Asker
from lrft.methods.objectives._answers import token_logprobs
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import DataError, RecipeError
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from tests.each import each
from tests.launched import launched
from tests.training.unbroken import goes_on_unbroken, losses

SMALL = ["train.device=cpu", "data.train.limit=12", "data.eval.limit=2", "objective.max_new_tokens=6"]
FIRST = "{method: format, pattern: '[a-m].*'}"


def recipe_of(tiny, *overrides):
    return load_recipe("smoke/grpo", [f"model.name={tiny()}", *SMALL, *overrides])


@pytest.fixture
def job_of(tiny, tmp_path):
    """`job_of("train.batch_size=1")` -> a job on the tiny model; `rank` of two processes that send nothing."""

    def get(*overrides, rank=None):
        recipe = recipe_of(tiny, *overrides).recipe
        accelerator = (
            make_accelerator("cpu", "float32")
            if rank is None
            else SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
        )
        text = read_text(recipe)
        adaptation = adapt(recipe, text=text)
        return assemble(
            recipe, RunFolder(tmp_path / "run"), text, adaptation, accelerator, recipe_hash(recipe)
        )

    return get


def texts(batch):
    """The tokens of every document."""
    return [batch.input_ids[row, start:end].tolist() for row, start, end in batch.documents]


def drawn(job, step=0):
    """The documents of a step of a job, micro-batch by micro-batch."""
    job.run.step = step
    return [texts(batch) for batch in next(iter(job.steps())).micro_batches]


def test_a_step_holds_the_answers_to_each_of_its_rows_and_all_of_their_tokens_are_learnt(job_of):
    job = job_of()
    step = next(iter(job.steps()))
    (batch,) = step.micro_batches
    prompts = [job.text.renderer.question(job.text.rows[i]).prompt for i in batch.examples for _ in range(4)]
    stops, answers = job.text.stop_ids, []
    for prompt, text in zip(prompts, texts(batch), strict=True):
        assert text[: len(prompt)] == prompt
        answers.append(text[len(prompt) :])
    assert [len(one) for one in answers] == batch.document_sums(torch.ones(len(batch.targets))).tolist()
    assert batch.targets.tolist() == [token for one in answers for token in one]
    assert all(not set(one[:-1]) & stops and (len(one) == 6 or one[-1] in stops) for one in answers)
    assert (step.examples, step.targets) == (2, len(batch.targets))
    assert step.metrics["answer_tokens"] == step.targets / 8
    assert batch.sampled.advantages.view(2, 4).sum(1).abs().max() < 1e-5
    again = token_logprobs(job.run.model.eval(), batch)
    torch.testing.assert_close(batch.sampled.logprobs, again.detach())


def test_an_answer_ends_with_the_token_that_stopped_it(job_of):
    job = job_of()
    job.text.stop_ids |= set(range(3, 300))  # so that most tokens stop
    step = next(iter(job.steps()))
    assert step.metrics["answers_stopped"] > 0 and step.metrics["answer_tokens"] < 6
    for text in texts(step.micro_batches[0]):
        assert text[-1] in job.text.stop_ids or len(text) > 6


def test_what_is_drawn_follows_from_its_place_in_the_run_alone(job_of):
    """However the rows of a step are cut into micro-batches or given to processes; a new round draws anew."""
    one = drawn(job_of("train.batch_size=1", "train.gradient_accumulation=4"))
    two = drawn(job_of("train.batch_size=2", "train.gradient_accumulation=2"))
    assert [text for part in one for text in part] == [text for part in two for text in part]
    shared = ["train.batch_size=1", "train.gradient_accumulation=2", "objective.updates=1"]
    parts = [drawn(job_of(*shared, rank=rank)) for rank in (0, 1)]
    assert [parts[0][0], parts[1][0], parts[0][1], parts[1][1]] == one
    assert drawn(job_of("train.seed=1", "train.batch_size=1", "train.gradient_accumulation=4")) != one


def test_the_same_answers_are_learnt_from_in_as_many_steps_as_are_asked_for(job_of):
    job = job_of("objective.updates=2", "train.max_steps=6")
    steps = iter(job.steps())
    first, second, third = (next(steps) for _ in range(3))
    assert first.micro_batches is second.micro_batches
    assert (first.epoch, second.epoch) == (1 / 12, 2 / 12)  # six rounds of two of twelve rows
    assert texts(third.micro_batches[0]) != texts(first.micro_batches[0])
    assert third.micro_batches[0].examples != first.micro_batches[0].examples
    assert train_data(job.run.recipe, job.text).total_steps(None, 1) == 12


def test_a_checkpoint_holds_answers_only_between_two_steps_that_learn_from_them(job_of):
    job = job_of()
    rollouts = next(one for one in job.run.callbacks if type(one).__name__ == "Rollouts")
    step = next(iter(job.steps()))
    assert rollouts.state_dict() == {"differed": True}
    job.run.step = 1
    state = rollouts.state_dict()
    rollouts.held = None
    rollouts.load_state_dict(state)
    (held,), (batch,) = rollouts.held.micro_batches, step.micro_batches
    assert torch.equal(held.sampled.logprobs, batch.sampled.logprobs)
    assert (texts(held), held.examples, rollouts.held.metrics) == (texts(batch), batch.examples, step.metrics)
    rollouts.held = None
    with pytest.raises(AssertionError, match="holds them"):
        rollouts.at(1)


def groups_of(batch):
    return list(batch.sampled.advantages.view(-1, 4))


REDRAWN = ["objective.updates=1", f"objective.rewards=[{FIRST}]", "train.batch_size=4"]


def test_prompts_whose_answers_are_alike_are_replaced_by_others_which_are_counted_and_told(job_of, capsys):
    before = next(iter(job_of(*REDRAWN).steps()))
    assert any(not group.any() for group in groups_of(before.micro_batches[0]))
    job = job_of(*REDRAWN, "objective.redraws=20")
    step = next(iter(job.steps()))
    (batch,), (plain,) = step.micro_batches, before.micro_batches
    assert all(group.any() for group in groups_of(batch))
    for index, group in enumerate(groups_of(plain)):
        assert (batch.examples[index] == plain.examples[index] and group.any()) or not group.any()
    prompts = [job.text.renderer.question(job.text.rows[i]).prompt for i in batch.examples for _ in range(4)]
    for prompt, text in zip(prompts, texts(batch), strict=True):
        assert text[: len(prompt)] == prompt
    # What is told of rewards is of the rows as they are laid, and so not raised by leaving some out.
    assert step.metrics["redrawn"] > 0 and step.metrics["alike_left"] == 0
    assert {k: step.metrics[k] for k in before.metrics} == dict(before.metrics)
    assert step.targets == len(batch.targets)
    rollouts = next(one for one in job.run.callbacks if type(one).__name__ == "Rollouts")
    rollouts.finish(job.run)
    assert f"were replaced, {int(4 * step.metrics['redrawn'])} times; 0 were such" in capsys.readouterr().err


def test_where_no_other_prompt_differs_redrawing_comes_to_an_end(job_of):
    job = job_of("objective.updates=1", "objective.rewards=[exact_match]", "objective.redraws=3")
    step = next(iter(job.steps()))
    assert (step.metrics["redrawn"], step.metrics["alike_left"], step.metrics["rewards_alike"]) == (3, 1, 1)
    assert not step.micro_batches[0].sampled.advantages.any()


def test_what_replaces_a_prompt_follows_from_its_place_in_the_run_alone(job_of):
    shared = [f"objective.rewards=[{FIRST}]", "objective.updates=1", "objective.redraws=5"]
    one = drawn(job_of(*shared, "train.batch_size=1", "train.gradient_accumulation=4"))
    two = drawn(job_of(*shared, "train.batch_size=4"))
    assert [text for part in one for text in part] == two[0]


def test_memory_is_planned_for_the_longest_answers_to_every_prompt(job_of, tiny):
    job = job_of()
    recipe = job.run.recipe
    assert documents_of_a_row(recipe) == 4
    largest = max(len(row.input_ids) for row in job.text.train)
    shapes = list(shapes_of(recipe, train_data(recipe, job.text)))
    assert {shape.rows for shape in shapes} == {8} and max(s.length for s in shapes) == largest + 6
    for batch in next(iter(job.steps())).micro_batches:
        assert max(map(len, texts(batch))) <= largest + 6
    assert "8 of 256 tokens in a micro-batch" in plan_ahead(recipe_of(tiny))["assumes"][0]


@each(
    ("overrides", "message"),
    [
        (
            ["train.max_length=100", "objective.max_new_tokens=90"],
            r"jsonl:\d+: its prompt of \d+ tokens and an",
        ),
        (
            ["objective.rewards=[numeric]", "data.format={method: prompt_completion, completion: prompt}"],
            "number",
        ),
        (["data.format={method: text, column: prompt}"], "no prompt in the text format"),
        (
            ["objective.rewards=[{method: length, margin: 7}]"],
            "a margin of 7 tokens, more than an answer's 6",
        ),
        (["objective.rewards=[{method: entry_point, function: mine}]"], "no installed package has 'mine'"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused_before_weights_are_read(tiny, overrides, message):
    with pytest.raises((DataError, RecipeError), match=message):
        read_text(recipe_of(tiny, *overrides).recipe)


def test_a_rate_is_not_looked_for_by_a_loss_that_says_nothing_of_it(tiny):
    with pytest.raises(RecipeError, match="does not say how good answers are"):
        find_lr(recipe_of(tiny, "train.max_steps=100"))


def test_several_processes_learn_once_from_what_they_drew(job_of):
    with pytest.raises(RecipeError, match="holds those of one process; write 1"):
        job_of("objective.updates=2", rank=0)


@pytest.fixture
def decided(tiny, tmp_path):
    """The tiny model with an embedding, and so a head, whose logits are apart: any other is all but a uniform draw."""
    return with_clear_logits(tiny(), tmp_path / "decided", 5)


def test_an_answer_of_riff_takes_the_place_of_the_text_it_rephrases(job_of):
    """Asked as lrft data augment asks a run, and worth what the base gives to the row's answer beside it."""
    job = job_of("objective={method: riff, group: 4, updates: 1, max_new_tokens: 6}")
    rows, renderer, model = job.text.rows, job.text.renderer, job.run.model
    rollouts = next(one for one in job.run.callbacks if type(one).__name__ == "Rollouts")
    reworded, row = rollouts.answers.reworded, rows[0]
    ask = f"Write this in other words and keep what it means:\n{row['prompt']}"
    asker = Asker(renderer, row)
    assert rollouts.answers.question(row).prompt == asker.ids(asker.text(ask))
    texts_of = ["Other words.", str(row["prompt"]), "  "]
    attempts = [SimpleNamespace(output=text) for text in texts_of]
    found = reworded.worth(row, attempts)
    with torch.no_grad(), adapters_off(model.eval()):
        for text, worth in zip(texts_of[:2], found, strict=False):
            batch = collate([[renderer.encode({**row, "prompt": text})]], job.text.pad_id, None, [[0]])
            assert worth == pytest.approx(float(token_logprobs(model, batch).sum()), rel=1e-4)
    answer = renderer.encode(row).targets
    assert found[2] == pytest.approx(-answer * math.log(model.hf.config.vocab_size))
    model.train()
    step = next(iter(job.steps()))
    assert step.metrics["reward"] < 0 < step.metrics["reward_spread"]


def test_what_riff_asks_for_is_in_every_row(tiny):
    with pytest.raises(DataError, match=r"jsonl:1: column 'tone' holds no text"):
        read_text(
            recipe_of(
                tiny, "objective={method: riff, ask: '{prompt} {tone}', updates: 1, max_new_tokens: 6}"
            ).recipe
        )
    with pytest.raises(RecipeError, match="is no template"):
        read_text(
            recipe_of(
                tiny, "objective={method: riff, ask: '{prompt} {', updates: 1, max_new_tokens: 6}"
            ).recipe
        )


def with_clear_logits(model, folder, times):
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = times * tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_exact_match_rises_from_an_adapter_that_learnt_the_task_halfway(tiny, tmp_path):
    """As quickstart-grpo goes on from a run cut short: nothing but the right answer is rewarded."""
    prompts = "one two three four five six seven eight nine ten eleven twelve".split()
    lines = [json.dumps({"prompt": f"say {one}", "completion": "b"}) for one in prompts]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    model = with_clear_logits(tiny(), tmp_path / "model", 12)
    rows = [f"data.train={tmp_path / 'rows.jsonl'}", "~data.eval", "eval.tasks=[]", "train.batch_size=4"]
    given = [f"model.name={model}", *rows, "train.device=cpu", "schedule={method: constant}"]
    half, rewarded = tmp_path / "half", tmp_path / "rewarded"
    train(
        load_recipe("smoke/lora", [*given, "adapter.rank=8", "optimizer.lr=0.01", "train.max_steps=7"]), half
    )
    drawing = ["objective.group=8", "objective.max_new_tokens=4", "objective.beta=0.0", "objective.updates=1"]
    more = ["objective.rewards=[exact_match]", "optimizer.lr=0.002", "train.max_steps=30", "adapter.rank=8"]
    train(load_recipe("smoke/grpo", [*given, f"model.adapter={half}", *drawing, *more]), rewarded)
    shares = [json.loads(one)["reward"] for one in (rewarded / "metrics.jsonl").read_text().splitlines()]
    before, after = sum(shares[:3]) / 3, sum(shares[-5:]) / 5
    assert 0 < before < 0.7  # right now and then, as an adapter is that was cut short
    assert after > before + 0.25


@pytest.mark.slow
def test_a_reward_rises_and_a_resumed_run_is_the_same_to_the_bit(decided, tmp_path):
    """The first letter of an answer is learnt on 4-bit weights; stopped between two steps on the same answers."""
    shown = ["objective.group=16", "objective.max_new_tokens=3", "objective.beta=0.01", "optimizer.lr=0.005"]
    more = ["train.max_steps=80", "train.save_every=7", "train.keep_last=20", "quantization=nf4"]
    loaded = recipe_of(lambda: decided, f"objective.rewards=[{FIRST}]", *shown, *more)
    train(loaded, tmp_path / "whole")
    lines = [json.loads(one) for one in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    before, after = (sum(line["reward"] for line in part) / 16 for part in (lines[:16], lines[-16:]))
    assert after > before + 0.15
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 0.01
    goes_on_unbroken(loaded, tmp_path / "whole", 63, tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny, tmp_path):
    """Each draws its own micro-batches; what is told of the rewards is of all."""
    given = [f"model.name={tiny()}", *SMALL, "objective.updates=1", "train.batch_size=1", "train.max_steps=3"]
    for processes, accumulation in ((1, 4), (2, 2)):
        words = [*given, f"train.gradient_accumulation={accumulation}", "--out", tmp_path / str(processes)]
        done = launched("-m", "lrft", "train", "smoke/grpo", *words, processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in "12"
    )
    for alone, shared in zip(one, two, strict=True):
        assert {
            k: v for k, v in alone.items() if "reward" in k or k in ("targets", "tokens")
        }.items() <= shared.items()
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert shared["drawn_tokens"] < alone["drawn_tokens"] == alone["targets"]
