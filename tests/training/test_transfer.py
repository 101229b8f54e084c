"""`lrft transfer`: an adapter on another base, by inputs that this writes, another model judges and the run answers."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.api.transferring.folder import Phases
from lrft.api.transferring.record import Asked
from lrft.api.transferring.transfer import transfer
from lrft.cli import app
from lrft.data.few_shot import FewShot, folded
from lrft.evaluation.answering import Given
from lrft.evaluation.answers_file import AnswersFile
from lrft.evaluation.sampling import Sampling
from lrft.files.failure import WriteError
from lrft.recipe.load import load_recipe
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, Interrupted, RecipeError, UsageError
from lrft.training.folder import RunFolder
from lrft.training.keepers import Saver
from lrft.training.relied import own_recipe
from tests.each import each
from tests.training.transfer_struck import PRELOADED, all_stopped, moments, struck

ROWS = [{"prompt": f"what is {k} plus {k * k}?", "completion": f" {k + k * k}"} for k in range(48)]
FEW = Asked(
    shots=3,
    contrast=24,
    candidates=40,
    threshold=0.0,
    judge=["train.max_steps=2", "train.save_every=1", "adapter.rank=2", "data.split=4"],
    max_new_tokens=6,
)


def form_of(config):
    found = parse_choice(FORMATS, config)
    return FORMATS.get(found.method)(found)


PLAIN = form_of("prompt_completion")


@pytest.fixture
def stopped(monkeypatch):
    monkeypatch.setattr(Given, "__init__", all_stopped)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """`made(family, *lines)` -> a recipe over rows written here; and a run of the first, trained once."""
    folder = tmp_path_factory.mktemp("moved")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def recipe(family="llama", steps=2, more="", tokens=128):
        path = folder / f"{family}-{steps}-{len(more)}.yaml"
        path.write_text(
            f"model: {{name: {tiny(family)}, dtype: float32}}\n"
            f"data: {{train: {folder}/rows.jsonl, eval: {folder}/rows.jsonl, format: prompt_completion}}\n"
            f"train: {{max_steps: {steps}, batch_size: 8, max_length: 64, save_every: 1, device: cpu}}\n"
            "adapter: {method: lora, rank: 8}\n"
            "optimizer: {lr: 0.02}\n"
            f"eval: {{batch_tokens: {tokens}, tasks: [loss]}}\n{more}"
        )
        return path

    return recipe


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    train(made(), folder)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_seeds_are_shown_in_the_order_that_a_candidate_draws():
    task = FewShot(PLAIN, ROWS[:3])
    orders = [task.order(0, number) for number in range(20)]
    assert all(sorted(order) == [0, 1, 2] for order in orders) and len({*map(tuple, orders)}) == 6
    assert orders == [task.order(0, number) for number in range(20)] != [task.order(1, k) for k in range(20)]
    assert task.question([1, 0], asks=False) == (
        "Input: what is 1 plus 1?\nOutput: 2\n\nInput: what is 0 plus 0?\nOutput: 0\n\nInput:"
    )
    assert "Write one more input" in task.question([1, 0], asks=True)
    assert replace(task, template="Like {examples}: ").question([2], asks=True) == (
        "Like Input: what is 2 plus 4?\nOutput: 6: "
    )


@each(
    ("answer", "ended", "found"),
    [
        (" what is 9 plus 9?", True, ("what is 9 plus 9?", "")),
        ("Input: what?\nOutput: 18\n\nInput: more", False, ("what?", "")),
        ("what?\n\nInput: more", False, ("what?", "")),
        (" what is 9 pl", False, ("what is 9 pl", "cut off")),
        ("\n Output: 3", False, ("", "empty")),
    ],
)
def test_an_answer_is_an_input_up_to_where_it_goes_on(answer, ended, found):
    assert FewShot(PLAIN, ROWS[:3]).written(answer, ended) == found


def test_inputs_of_several_columns_are_json_and_conversations_one_message():
    columns = {"method": "columns", "prompt": "{context}\n{question}", "completion": "{answer}"}
    several = FewShot(form_of(columns), [{"context": "a", "question": "b?", "answer": "c"}])
    several.check()
    assert several.text(several.seeds[0]) == '{"context": "a", "question": "b?"}'
    assert several.written('{"question": "d?",  "context": "e"}', True) == (
        '{"context": "e", "question": "d?"}',
        "",
    )
    for wrong in ('{"question": "d?"}', "d?", '{"context": 1, "question": "b"}'):
        assert several.written(wrong, True)[1] == "no row of the format"
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    talk = FewShot(form_of("chat"), [{"messages": [*said, {"role": "assistant", "content": "Hello."}]}])
    talk.check()
    assert talk.text(talk.seeds[0]) == "Hi" and talk.output(talk.seeds[0]) == "Hello."
    assert [turn["content"] for turn in talk.form.asked(talk.row("Ho")).messages] == ["Be brief.", "Ho"]
    given = FewShot(form_of("instruction"), [{"instruction": "Add.", "input": "1 2", "output": "3"}])
    assert given.columns == ("instruction", "input")
    assert FewShot(form_of("instruction"), [{"instruction": "Sing.", "output": "La"}]).columns == (
        "instruction",
    )


@each(
    ("form", "seeds", "said"),
    [
        ("chat", [{"messages": [{"role": "user", "content": "Hi"}]}], "no output"),
        (
            "chat",
            [{"messages": [{"role": r, "content": "a"} for r in ("user", "assistant", "user", "assistant")]}],
            "one message of a user",
        ),
        ("prompt_completion", [{**ROWS[0], "system": "a"}, {**ROWS[1], "system": "b"}], "different system"),
        ("prompt_completion", [], "no seed"),
    ],
)
def test_seeds_that_show_no_inputs_with_outputs_are_refused(form, seeds, said):
    with pytest.raises(DataError, match=said):
        FewShot(form_of(form), seeds).check()


def test_marks_are_some_that_no_seed_holds():
    held = [{"prompt": "Input: 1", "completion": "2"}, {"prompt": "a", "completion": "Answer: b"}]
    assert FewShot(PLAIN, held[:1]).marks[0] == "Question:" and FewShot(PLAIN, held).marks[0] == "### Input"


def test_an_adapter_is_moved_to_another_base_and_is_an_ordinary_run(
    made, run, tmp_path, stopped, short_answers
):
    out = tmp_path / "out"
    found = transfer(run, made("qwen3", 3), out, replace(FEW, threshold=0.5))
    seeds, pool = lines(out / "seeds.jsonl"), lines(out / "candidates.jsonl")
    assert len(seeds) == found["seeds"] == 3 and all(row in ROWS for row in seeds)
    asked = [one["input"] for one in pool if one["accepted"]]
    assert len(pool) == found["target"]["asked"] == 40 and len(asked) == found["accepted"] > 0
    assert found["acceptance"] == found["accepted"] / found["target"]["inputs"] < 1
    assert all(one["accepted"] == (one.get("score", 0) >= 0.5) for one in pool)
    assert {folded(row["prompt"]) for row in seeds}.isdisjoint(map(folded, asked)) and len({*asked}) == len(
        asked
    )
    texts = lines(out / "discriminator.jsonl")
    real = {row["text"] for row in texts if row["label"] == "real"}
    assert real <= {row["prompt"] for row in ROWS} - {row["prompt"] for row in seeds}
    judge = found["discriminator"]
    assert judge["real"] == judge["written"] == len(real) <= 24 and 0 <= judge["held_out"]["accuracy"] <= 1
    assert {one["text"] for one in texts if one["label"] == "written"}.isdisjoint(asked)
    rows = lines(out / "rows.jsonl")
    assert {row["prompt"] for row in rows} <= {*asked} and len(rows) == found["rows"] > 0
    assert found["imitated"] == "tokens" and json.loads((out / "result.json").read_text()) == found
    recipe = own_recipe(out / "run").recipe
    assert recipe.objective.method == "distillation" and recipe.objective.weight == 1
    assert recipe.objective.teacher == str(run.resolve()) and recipe.data.format.method == "prompt_completion"
    assert evaluate(out / "run")["adapter"]["loss"].metrics["loss"] > 0
    merge(out / "run", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
    again = transfer(run, made("qwen3", 3), out, replace(FEW, threshold=0.5))
    assert again == found


def test_on_its_own_base_the_student_comes_near_the_teacher(made, tmp_path, stopped):
    """Of what the adapter took off the loss of real rows, the student, which saw none but three, takes most."""
    train(made(steps=60, tokens=2048), tmp_path / "run")
    asked = replace(FEW, candidates=150, max_new_tokens=12)
    transfer(tmp_path / "run", made(steps=61, tokens=2048), tmp_path / "out", asked)
    scores = evaluate(tmp_path / "run", baseline=True)
    base, teacher = (scores[name]["loss"].metrics["loss"] for name in ("baseline", "adapter"))
    student = evaluate(tmp_path / "out" / "run")["adapter"]["loss"].metrics["loss"]
    assert base - teacher > 0.3 and (base - student) / (base - teacher) > 0.6


def test_killed_in_every_phase_it_goes_on_to_the_same_bytes(made, run, tmp_path):
    to, context = str(made("qwen3", 3)), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def ended(out, moment):
        process = context.Process(target=struck, args=(str(run), to, str(out), FEW, moment))
        process.start()
        process.join(300)
        return process.exitcode

    broken, whole = tmp_path / "broken" / "out", tmp_path / "whole" / "out"
    assert [ended(broken, moment) for moment in moments()] == [-signal.SIGKILL] * len(moments())
    assert ended(broken, "") == 0 == ended(whole, "")
    kept = [path.name for path in whole.iterdir() if path.is_file()]
    assert len(kept) > 12
    for name in kept:
        if name.startswith("discriminator.yaml"):
            continue
        mine, other = ((place / name).read_text().replace(str(place), "") for place in (broken, whole))
        if name == "done.json" or name == "scores.jsonl.about.json":
            continue  # sums of what holds its own path
        assert mine == other, name
    for name in ("run", "discriminator"):
        mine, other = (
            load_file(place / name / "adapter" / "adapter_model.safetensors") for place in (broken, whole)
        )
        assert mine.keys() == other.keys() and all((mine[key] == other[key]).all() for key in mine)


def test_texts_are_imitated_where_vocabularies_differ(made, run, tmp_path, stopped):
    to = made("qwen2")  # whose tokenizer has a token of its own
    with pytest.raises(RecipeError, match="another vocabulary"):
        transfer(run, to, tmp_path / "never", replace(FEW, match="tokens"))
    found = transfer(run, to, tmp_path / "out", FEW)
    assert found["imitated"] == "text" and "another vocabulary" in found["because"]
    assert any("the text of the outputs is imitated" in note for note in found["notes"])
    assert own_recipe(tmp_path / "out" / "run").recipe.objective.method == "cross_entropy"


def test_a_discriminator_and_seeds_serve_another_transfer_without_the_rows(made, run, tmp_path, stopped):
    first = transfer(run, made(), tmp_path / "first", FEW)
    gone = RunFolder(run).path  # whose rows a later transfer does not read
    given = replace(
        FEW,
        judge=(),
        seeds=tmp_path / "first" / "seeds.jsonl",
        discriminator=tmp_path / "first" / "discriminator",
        match="text",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrft.api.transferring.transfer.own_rows", None)
        found = transfer(gone, made("qwen3"), tmp_path / "second", given)
    assert "source" not in found and found["discriminator"] == {"run": str(given.discriminator)}
    assert found["seeds"] == first["seeds"] and found["imitated"] == "text" and found["because"] == ""
    with pytest.raises(UsageError, match="tells no real texts"):
        transfer(run, made(), tmp_path / "third", replace(given, discriminator=run))


def test_where_nothing_is_accepted_a_lower_threshold_goes_on(made, run, tmp_path, stopped):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"accepted none of \d+ inputs at --threshold 1 .*lower --threshold"):
        transfer(run, made(), out, replace(FEW, threshold=1.0))
    assert not any(one["accepted"] for one in lines(out / "candidates.jsonl")) and not (out / "run").exists()
    before = (out / "target.jsonl").read_bytes()
    found = transfer(run, made(), out, FEW)
    assert found["acceptance"] == 1 and any("every input was accepted" in note for note in found["notes"])
    assert (out / "target.jsonl").read_bytes() == before
    with pytest.raises(UsageError, match=r"begun with threshold 0\.0, not 0\.5"):
        transfer(run, made(), out, replace(FEW, threshold=0.5))


def test_what_is_cut_off_is_counted_and_alone_is_refused(made, run, tmp_path):
    with pytest.raises(DataError, match=r"wrote no input .*cut off.*raise --max-new-tokens"):
        transfer(run, made(), tmp_path / "out", replace(FEW, max_new_tokens=2))


@each(
    ("change", "said"),
    [
        ({"sampling": Sampling()}, "--temperature 0"),
        ({"threshold": 1.5}, "is a probability"),
        ({"match": "logits"}, "choose tokens|choose auto, tokens or text"),
        ({"candidates": 0}, "--candidates 0"),
        ({"discriminator": "somewhere"}, "--judge train.max_steps=2"),
    ],
)
def test_words_that_mean_nothing_are_refused(change, said, run, made, tmp_path):
    with pytest.raises(UsageError, match=said):
        transfer(run, made(), tmp_path / "out", replace(FEW, **change))
    assert not (tmp_path / "out").exists()


@each(
    ("words", "said"),
    [
        (["--seeds", "seeds.jsonl", "--shots", "3"], "--shots 3: no seeds are drawn"),
        (
            ["--discriminator", "moved/discriminator", "--contrast", "9"],
            "--contrast 9: is of a discriminator",
        ),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(words, said, run, made, tmp_path):
    shown = CliRunner().invoke(
        app, ["transfer", str(run), "--to", str(made()), "--out", str(tmp_path), *words]
    )
    assert isinstance(shown.exception, UsageError) and said in str(shown.exception)


def test_candidates_that_are_gone_are_missed(made, run, tmp_path, stopped):
    """They are not asked for again once they are scored."""
    out = tmp_path / "out"
    transfer(run, made(), out, FEW)
    held = (out / "target.jsonl").read_bytes().splitlines(keepends=True)
    (out / "target.jsonl").write_bytes(b"".join(held[:-1]))
    with pytest.raises(UsageError, match="holds 39 answers where 40 were written"):
        transfer(run, made(), out, FEW)


def test_what_does_not_go_together_is_refused_before_anything_is_written(made, run, tmp_path):
    for more, said in (
        ("objective: orpo\n", "learns texts|pairs"),
        ("objective: {method: distillation, teacher: x/y}\n", "the run is the teacher"),
    ):
        with pytest.raises(RecipeError, match=said):
            transfer(run, made(more=more), tmp_path / "out", FEW)
    with pytest.raises(RecipeError, match="is chat, and the run reads prompt_completion"):
        transfer(run, made(), tmp_path / "out", FEW, overrides=["data.format=chat"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no transfer"):
        transfer(run, made(), tmp_path / "full", FEW)


def test_a_run_of_labels_has_no_outputs_to_move(tiny, made, tmp_path):
    recipe = load_recipe("smoke/classify", [f"model.name={tiny()}", "train.device=cpu", "train.max_steps=1"])
    train(recipe, tmp_path / "labels")
    with pytest.raises(UsageError, match="learnt no outputs to inputs"):
        transfer(tmp_path / "labels", made(), tmp_path / "out", FEW)


def test_the_command_tells_what_was_accepted(made, run, tmp_path, stopped):
    words = ["transfer", str(run), "--to", str(made()), "--out", str(tmp_path / "out"), "--shots", "3"]
    words += ["--contrast", "12", "--candidates", "12", "--threshold", "0", "--max-new-tokens", "6"]
    words += [word for one in FEW.judge for word in ("--judge", one)]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "candidates: 12, " in shown.stdout and "(100.0%) at threshold 0" in shown.stdout
    assert "written ones, right about" in shown.stdout and "by tokens" in shown.stdout


@each("where", [(AnswersFile, "append"), (Saver, "save")])
def test_a_signal_is_answered_with_what_goes_on(where, made, run, tmp_path, monkeypatch, stopped):
    kind, name = where
    before, out = getattr(kind, name), tmp_path / kind.__name__

    def struck_after(*arguments, **named):
        found = before(*arguments, **named)
        signal.raise_signal(signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, struck_after)
        with pytest.raises(Interrupted, match=rf"what is done is in {out}; the same command goes on"):
            transfer(run, made(), out, FEW)
    assert transfer(run, made(), out, FEW)["rows"] > 0


def test_a_disk_that_takes_no_folder_is_told_in_one_sentence(monkeypatch, tmp_path):
    def full(path, mode=0o777):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(WriteError, match=f"--out {tmp_path}/out: could not be written"):
        Phases(tmp_path / "out").claim({}, "2026-01-01")
