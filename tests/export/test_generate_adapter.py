"""`lrft generate-adapter`: a library of runs, a fit that is killed and gone on with, what is drawn as any other run."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from typer.testing import CliRunner

import make_small_tasks
from lrft.api.asking.evaluate import evaluate
from lrft.api.combining.combine import combine
from lrft.api.exporting.export import export
from lrft.api.generating import steps
from lrft.api.generating.draw import draw
from lrft.api.generating.fit import fit
from lrft.api.generating.folder import read_generator
from lrft.api.generating.judge import compared
from lrft.api.generating.library import member_of, read_library
from lrft.api.opening.open_run import open_run
from lrft.api.training.recorded import extension
from lrft.api.training.train import train
from lrft.cli import app
from lrft.core import stop
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DamagedFile, DataError, Interrupted, UsageError
from lrft.training.folder import RunFolder
from tests.export.reloaded import logits

SMALL = ["train.max_steps=4", "train.save_every=1", "train.batch_size=2", "train.keep_last=3"]
SMALL += ["data.train.limit=12", "data.eval.limit=6", "adapter.targets=[q_proj]", "adapter.rank=2"]
ICM = "{method: icm_lora, latent: 4, channels: [4, 4, 4], epochs: 4, rows: 3}"
SG = "{method: sg_lora, latent: 3, width: 8, max_steps: 6, batch_size: 2, top: 2}"
DND = (
    "{method: drag_and_drop, prompts: 2, tokens: 6, pool: 4, chunk: 32, stages: 2, kernel: 3, max_steps: 3, "
    "batch_size: 2}"
)
TEXTS = {"name": "who ordered", "city": "where it goes", "day": "when it comes"}


@pytest.fixture(scope="module")
def tasks(tiny, tmp_path_factory):
    """Three runs of four steps that differ in their data alone, and the recipe of a fourth task."""
    place = tmp_path_factory.mktemp("tasks")
    recipes = {path.stem: path for path in make_small_tasks.write_tasks(place, str(tiny()))}
    for name in (*TEXTS, "item"):
        train(load_recipe(recipes[name], SMALL), place / "runs" / name)
    return {name: place / "runs" / name for name in (*TEXTS, "item")}


@pytest.fixture(scope="module")
def library(tasks):
    return [str(tasks[name]) for name in TEXTS]


@pytest.fixture(scope="module")
def fitted(library, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "generator"
    return out, fit(library, out, ICM)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_library_is_every_checkpoint_of_every_run_in_the_order_of_its_steps(tasks, library, fitted):
    out, found = fitted
    assert found["samples"] == {"name": 3, "city": 3, "day": 3} and found["told"] == []
    assert found["step"] == found["steps"] == 4 * 5
    record = json.loads((out / "generator.json").read_text())
    assert len({sum_ for sums in record["tasks"].values() for sum_ in sums}) == 9
    members = [member_of(word) for word in library]
    assert [path.name for path in members[0].folders] == ["step-2", "step-3", "step-4"]
    base = load_model(members[0].recipe.model, sums=True)
    layout, vectors, _ = read_library(members, base)
    _, _, adaptation = open_run(RunFolder(tasks["name"]))
    (site, *_) = [name.removesuffix(".A") for name in layout.shapes if name.endswith(".A")]
    A, B = layout.factors(vectors[0][-1])[site]
    adapter = adaptation.model.hf.get_submodule(site).adapter
    torch.testing.assert_close(B @ A, adapter.delta_weight(torch.zeros(B.shape[0], A.shape[1])).detach())


@pytest.mark.parametrize(("method", "texts"), [(ICM, {}), (SG, TEXTS), (DND, {})])
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(library, tmp_path, monkeypatch, method, texts):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(library, whole, method, texts, seed=3)
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    step = steps._step
    with monkeypatch.context() as patched:
        patched.setattr(steps, "SECONDS", 0.0)
        patched.setattr(steps, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(library, parts, method, texts, seed=3)
    assert read_generator(parts).record["step"] == 2
    with pytest.raises(UsageError, match="is fitted to step 2 of"):
        draw(parts, member_of(library[0]).folders[0].parent.parent, tmp_path / "no")
    found = fit(library, parts, method, texts, seed=3)
    assert found["step"] == found["steps"] and files(whole) == files(parts)
    assert fit(library, parts, method, texts, seed=3)["loss"] is None and files(whole) == files(parts)


def test_a_signal_saves_the_steps_that_are_done(library, tmp_path, monkeypatch):
    out, step, calls = tmp_path / "generator", steps._step, []

    def signalled(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(steps, "_step", signalled)
    with pytest.raises(
        Interrupted, match=r"terminated \(SIGTERM\): .*steps that were saved; the same command"
    ):
        fit(library, out, ICM)
    assert read_generator(out).record["step"] == 3


def test_a_signal_before_the_first_step_leaves_nothing(library, tmp_path, monkeypatch):
    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        stop.poll()

    monkeypatch.setattr("lrft.api.generating.fit.read_library", signalled)
    with pytest.raises(Interrupted, match="nothing was written; the same command begins again"):
        fit(library, tmp_path / "generator", ICM)
    assert not (tmp_path / "generator").exists()


def test_another_seed_or_library_is_another_generator(library, fitted, tmp_path):
    out, _ = fitted
    for words, seed in ((library, 1), (library[:2], 0)):
        with pytest.raises(UsageError, match="holds a generator of another library"):
            fit(words, out, ICM, seed=seed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(UsageError, match="is not an empty folder"):
        fit(library, tmp_path / "other", ICM)


def copied(tasks, name, place):
    """The recipe of a task in a file, with rows in a file beside it that may be changed."""
    recipe = load_recipe(tasks[name] / "recipe.yaml").recipe
    rows, path = place / f"{name}.jsonl", place / f"{name}.yaml"
    shutil.copy(recipe.data.train.source, rows)
    text = (tasks[name] / "recipe.yaml").read_text()
    assert recipe.data.train.source in text
    path.write_text(text.replace(recipe.data.train.source, str(rows)))
    return path, rows


def test_other_rows_or_another_order_are_another_generator(tasks, library, tmp_path, monkeypatch):
    """The conditions are of the rows, and a step draws from the tasks by their places."""
    recipe, rows = copied(tasks, "day", tmp_path)
    export(tasks["day"], "peft", tmp_path / "adapter")
    words, out, step, calls = (
        [*library[:2], f"{tmp_path}/adapter={recipe}"],
        tmp_path / "out",
        steps._step,
        [],
    )

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(steps, "SECONDS", 0.0)
        patched.setattr(steps, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(words, out, ICM)
    before = rows.read_text()
    rows.write_text("".join(reversed(before.splitlines(keepends=True))))
    for _ in range(2):
        with pytest.raises(UsageError, match="or of other rows"):
            fit(words, out, ICM)
        rows.write_text(before)
        with pytest.raises(UsageError, match="holds a generator of another library"):
            fit(words[::-1], out, ICM)
        found = fit(words, out, ICM)
        assert found["step"] == found["steps"]
        rows.write_text("".join(reversed(before.splitlines(keepends=True))))


def test_a_generator_that_was_being_replaced_is_gone_on_with(library, fitted, tmp_path):
    """Where no two names can be exchanged at once, a kill leaves it aside."""
    out = tmp_path / "out"
    shutil.copytree(fitted[0], tmp_path / ".out.old")
    assert fit(library, out, ICM)["loss"] is None and files(out) == files(fitted[0])


def test_tasks_of_another_model_are_refused(tasks, library, tiny, tmp_path):
    export(tasks["day"], "peft", tmp_path / "adapter")
    recipe = tmp_path / "other.yaml"
    text = (tasks["day"] / "recipe.yaml").read_text()
    recipe.write_text(text.replace(str(tiny()), str(tiny(tied=False))))
    with pytest.raises(UsageError, match=r"adapter: its recipe is of .*; a library is of one base"):
        fit([*library[:2], f"{tmp_path}/adapter={recipe}"], tmp_path / "out", ICM)
    assert not (tmp_path / "out").exists()


def test_a_run_may_have_an_equals_sign_in_its_name(tasks, tmp_path):
    shutil.copytree(tasks["day"], tmp_path / "lr=0.1")
    assert member_of(str(tmp_path / "lr=0.1")).name == "lr=0.1"


@pytest.mark.usefixtures("short_answers")
def test_what_is_drawn_is_a_run_and_an_adapter_of_peft(fitted, tasks, tmp_path):
    from peft import PeftModel

    generator, out = fitted[0], tmp_path / "drawn"
    record = draw(generator, tasks["item"], out, seed=5)
    assert json.loads((out / "generated.json").read_text()) == json.loads(json.dumps(record))
    own, _, adaptation = open_run(RunFolder(out))
    opened = read_generator(generator)
    dense = load_model(own.model)
    dense.hf.set_attn_implementation("eager")
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    mine = logits(adaptation.model, ids)
    with torch.no_grad():
        written = PeftModel.from_pretrained(dense.hf, out).eval()(input_ids=ids).logits
    torch.testing.assert_close(written, mine, atol=1e-4, rtol=1e-4)
    again = draw(generator, tasks["item"], tmp_path / "again", seed=5)
    other = draw(generator, tasks["item"], tmp_path / "other", seed=6)
    assert again["norm"] == record["norm"] != other["norm"] and opened.finished
    assert "loss" in evaluate(out, ["loss"])["adapter"]
    export(out, "peft", tmp_path / "exported")
    assert combine([out, tasks["name"]], tmp_path / "both", "cat")["exact_sites"] == 2
    with pytest.raises(UsageError, match="was generated and not trained; begin a new run with it"):
        train(out, resume=True, added=extension(2))


def test_an_adapter_is_judged_by_the_losses_that_eval_gives(fitted, tasks, tmp_path):
    out = tmp_path / "drawn"
    judged = draw(fitted[0], tasks["item"], out, trained=tasks["item"], draws=2)["judged"]
    assert list(judged["beside"]) == ["trained", "base", "mean", "random"]
    assert judged["rows"] == 6 and len(judged["draws"]) == 2
    assert judged["loss"] == pytest.approx(sum(judged["draws"]) / 2)
    own = evaluate(out, ["loss"], baseline=True)
    trained = evaluate(tasks["item"], ["loss"])["adapter"]["loss"].metrics["loss"]
    assert judged["draws"][0] == pytest.approx(own["adapter"]["loss"].metrics["loss"], abs=1e-5)
    assert judged["beside"]["base"]["loss"] == pytest.approx(
        own["baseline"]["loss"].metrics["loss"], abs=1e-5
    )
    assert judged["beside"]["trained"]["loss"] == pytest.approx(trained, abs=1e-5)
    for one in judged["beside"].values():
        assert one["difference"] == pytest.approx(judged["loss"] - one["loss"])
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]


def test_a_generator_that_goes_by_texts_is_judged_beside_its_merge(library, tasks, tmp_path):
    fit(library, tmp_path / "sg", SG, TEXTS)
    judged = draw(tmp_path / "sg", tasks["name"], tmp_path / "out", "what is ordered", trained=tasks["name"])
    assert "softmax_merge" in judged["judged"]["beside"]
    assert "is in the library, so this says how it is remembered" in judged["told"][0]
    with pytest.raises(UsageError, match="--describe: the task has none"):
        draw(tmp_path / "sg", tasks["item"], tmp_path / "no")
    with pytest.raises(DataError, match=r"--describe: needs .* tokens, but the model has 1024 positions"):
        draw(tmp_path / "sg", tasks["item"], tmp_path / "no", "what is ordered " * 600)
    fit(library, tmp_path / "merge", "{method: softmax_merge, top: 2}", TEXTS)
    assert draw(tmp_path / "merge", tasks["item"], tmp_path / "merged", "what")["rank"] == 4
    with pytest.raises(UsageError, match="this generator goes by the rows"):
        fit(library, tmp_path / "texts", ICM, {"city": "where"})


def test_few_rows_are_said_to_be_few():
    """By hand: two rows of one token whose differences are +1 and -1; training gains 1 on each."""
    base, trained, own = [(3.0, 1), (3.0, 1)], [(2.0, 1), (2.0, 1)], [(3.0, 1), (1.0, 1)]
    found = compared([own], {"trained": trained, "base": base})
    assert found["beside"]["trained"]["difference"] == 0 and found["beside"]["trained"]["tells"] == "nothing"
    assert found["beside"]["trained"]["interval"] == (-1.0, 1.0)
    assert found["words"][0].startswith("2 rows are too few to tell generated from trained")
    assert found["recovered"] == 1.0 and found["recovered_interval"] == (0.0, 2.0)
    same = compared([base], {"base": base, "trained": base})
    assert same["recovered"] is None and any("no share is said" in line for line in same["words"])
    better = compared([trained], {"base": base, "trained": trained})
    assert "generated is better than base, by 1.0000 nats per token" in better["words"]


def test_adapters_of_peft_are_a_task_with_the_recipe_of_their_data(tasks, library, tmp_path):
    folder = tmp_path / "exported"
    for number in (10, 9):
        export(tasks["day"], "peft", folder / f"checkpoint-{number}")
    recipe = tasks["day"] / "recipe.yaml"
    with pytest.raises(UsageError, match="of an adapter of PEFT write"):
        member_of(str(folder))
    member = member_of(f"{folder}={recipe}")
    assert [path.name for path in member.folders] == ["checkpoint-9", "checkpoint-10"]
    found = fit([*library[:2], f"{folder}={recipe}"], tmp_path / "generator", ICM)
    assert found["samples"] == {"name": 3, "city": 3, "exported": 2} and found["told"] == []


def test_tasks_that_began_with_other_factors_are_told(tasks, library, tmp_path):
    recipe = load_recipe(tasks["day"] / "recipe.yaml", ["train.seed=7"])
    train(recipe, tmp_path / "turned")
    found = fit([library[0], str(tmp_path / "turned")], tmp_path / "generator", ICM)
    assert "name and turned did not begin with the same factors" in found["told"][0]


def test_what_does_not_fit_is_refused_in_one_sentence(tasks, library, fitted, tmp_path):
    rank = load_recipe(tasks["day"] / "recipe.yaml", ["adapter.rank=3"])
    train(rank, tmp_path / "rank")
    out = tmp_path / "out"
    for words, method, texts, said in (
        ([*library, str(tmp_path / "rank")], ICM, {}, r"all need the same sites and ranks"),
        ([library[0], library[0]], ICM, {}, "two tasks are called name"),
        (library, "icm", {}, "--method icm"),
        (library, "{method: icm_lora, epoch: 3}", {}, "did you mean epochs"),
        (library, SG, {"nam": "who"}, "no task is called so.*did you mean name"),
        (library, SG, {"name": "who"}, "--describe: city has none"),
        (library, DND.replace("pool: 4", "pool: 400"), {}, "name: has 12 training rows, and 400 prompts"),
        ([str(tmp_path)], ICM, {}, "is no run"),
    ):
        with pytest.raises(UsageError, match=said):
            fit(words, out, method, texts)
        assert not out.exists()
    with pytest.raises(UsageError, match="add --judge RUN"):
        draw(fitted[0], tasks["item"], out, draws=2)
    with pytest.raises(UsageError, match="holds no generator"):
        draw(tmp_path, tasks["item"], out)


def test_a_damaged_generator_is_not_believed(fitted, tasks, tmp_path):
    folder = tmp_path / "generator"
    shutil.copytree(fitted[0], folder)
    weights = bytearray((folder / "generator.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "generator.safetensors").write_bytes(weights)
    with pytest.raises(DamagedFile, match=r"generator\.safetensors is damaged"):
        draw(folder, tasks["item"], tmp_path / "out")


def test_a_generator_draws_for_its_own_base_alone(fitted, tasks, tiny, tmp_path):
    recipe = tmp_path / "other.yaml"
    text = (tasks["item"] / "recipe.yaml").read_text()
    recipe.write_text(text.replace(str(tiny()), str(tiny(tied=False))))
    assert str(tiny(tied=False)) in recipe.read_text()
    with pytest.raises(UsageError, match="the weights of this task's model are others"):
        draw(fitted[0], recipe, tmp_path / "out")


def test_a_task_that_is_described_twice_is_refused(library, tmp_path):
    words = ["generate-adapter", "fit", *library, "--method", SG, "--out", str(tmp_path / "out")]
    words += [word for text in ("name=a", "city=b", "name=c") for word in ("--describe", text)]
    shown = CliRunner().invoke(app, words)
    assert isinstance(shown.exception, UsageError) and "name is described twice" in str(shown.exception)
