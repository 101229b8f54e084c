"""The page: well-formed, alone, safe and small, whatever is in the runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.lab.report.page import DETAILS, LARGEST, page_of
from lrft.lab.report.read import find_runs, read_runs
from lrft.recipe.load import load_recipe
from lrft.registry.errors import Interrupted, UsageError
from lrft.training.keepers import StopOnSignal

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke"

EVIL = "</pre></script><script>window.__evil = 1</script><img src=http://evil.example/x onerror=alert(1)>\"'&amp;"
REFERENCES = {"src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction", "background"}


def page(*folders, **settings) -> str:
    return page_of(read_runs(find_runs(folders)), **settings)


@pytest.fixture(scope="module")
def two(looked_at, trained):
    """One run that was looked at and one of another recipe that was not."""
    return looked_at, trained("dora")


@pytest.fixture(scope="module")
def made(two, parse):
    text = page(*two)
    return text, parse(text)


def test_it_is_well_formed(made):
    assert made[1].wrong == [] and made[0].lower().count("<!doctype html>") == 1
    ids = [attributes["id"] for _, attributes in made[1].elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_refers_to_nothing_outside_itself(made):
    text, parsed = made
    found = [(name, a[name]) for _, a in parsed.elements for name in REFERENCES & a.keys()]
    ids = {attributes.get("id") for _, attributes in parsed.elements}
    assert found and all(
        name == "href" and value.startswith("#") and value[1:] in ids for name, value in found
    )
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.elements}
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert not re.search(
        r"https?:|fetch|XMLHttp|import\(", text.partition("<script>")[2].partition("</script>")[0]
    )


def test_its_policy_allows_its_own_script_and_no_other(made):
    text, parsed = made
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert len(parsed.all("script")) == 1


def test_it_has_both_schemes_of_colour(made):
    assert "prefers-color-scheme: dark" in made[0] and "color-scheme: light dark" in made[0]


def test_everything_is_in_the_page_without_its_script(made, two):
    """What a reader looks for stands in elements, not in a script."""
    said = made[1].said
    titles = ("loss (nats per token)", "learning rate", "gradient norm before clipping", "tokens per second")
    for text in (*titles, "Singular values of the change", "rank that was allocated", "intruder dimensions"):
        assert text in said
    for text in ("exact_match", "Versions and hardware", "torch_threads", "version of torch"):
        assert text in said
    for folder in two:
        assert folder.name in said
    assert "The weights were not looked at" in said  # of the second run
    assert not any(attributes.get("class") == "off" for _, attributes in made[1].elements)


def test_curves_of_all_runs_share_the_axes(made, two):
    charts = made[0].split("<svg")[1:]
    loss = charts[0].partition("</svg>")[0]
    labels = set(re.findall(r'data-label="([^"]+)"', loss))
    assert {f"{two[0].name}, training", f"{two[0].name}, held out", f"{two[1].name}, training"} <= labels


def test_the_differences_of_the_recipes_are_listed_and_nothing_else(made):
    between = made[1].said.partition("Differences of the recipes")[2].partition("Curves")[0]
    keys = set(re.findall(r"^[a-z_]+\.[\w.]+$", between, re.MULTILINE))
    assert {"adapter.method", "quantization.method", "train.eval_every"} <= keys
    assert "optimizer.lr" not in keys


def test_equal_recipes_are_said_to_be_equal(looked_at, copied):
    assert "The recipes are equal." in page(looked_at, copied(looked_at, "again"))


def test_every_value_of_the_recipe_has_its_origin(looked_at, parse):
    said = page(looked_at).partition("<h2>Recipes</h2>")[2].partition("</section>")[0]
    rows = dict(re.findall(r"<tr><td>([\w.]+)</td><td>.*?</td><td>(.*?)</td></tr>", said, re.DOTALL))
    assert rows["train.eval_every"] == "command line"
    assert re.search(r"_base\.yaml:\d+$", rows["train.save_every"])
    assert re.search(r"lora\.yaml:\d+$", rows["adapter.rank"])
    assert rows["train.clip"] == "default" and len(rows) > 60


def test_a_run_that_kept_no_origins_says_so(looked_at, copied, edit):
    folder = copied(looked_at)
    edit(folder / "run.json", origins=None)
    text = page(folder)
    assert "did not keep where its values came from" in text and "recipe.yaml:" in text


def test_a_resumed_run_keeps_where_its_values_came_from(tiny, tmp_path, monkeypatch):
    """But for the sections that a resume may change, which it reads anew."""

    def after_step(self, run):
        run.stop_signal, run.stopping = 15, True

    small = [f"model.name={tiny()}", "data.train.limit=20", "data.eval.limit=4", "train.device=cpu"]
    loaded = load_recipe(SMOKE / "lora.yaml", [*small, "train.seed=7", "eval.limit=3"])
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "after_step", after_step)
        with pytest.raises(Interrupted):
            train(loaded, folder)
    begun = json.loads((folder / "run.json").read_text())["origins"]
    assert begun["train.seed"] == begun["eval.limit"] == "command line"
    train(folder / "recipe.yaml", folder, resume=True, overrides=["eval.batch_tokens=4096"])
    after = json.loads((folder / "run.json").read_text())["origins"]
    assert after["train.seed"] == "command line" and after["eval.batch_tokens"] == "command line"
    assert after["eval.limit"].startswith(str(folder / "recipe.yaml"))


def test_scores_and_samples_stand_side_by_side(looked_at, parse):
    said = parse(page(looked_at)).said
    name = looked_at.name
    assert said.count(f"{name}, before") >= 2 and said.count(f"{name}, after") >= 2
    lines = (looked_at / "eval" / "adapter-samples.jsonl").read_text().splitlines()
    for sample in map(json.loads, lines):
        assert sample["prompt"].strip() in said and sample["reference"] in said
    score = json.loads((looked_at / "eval" / "adapter.json").read_text())["tasks"]["loss"]
    assert f"{score['metrics']['loss']:.4f} (n={score['n']})" in said


def test_text_of_the_user_is_text_wherever_it_stands(looked_at, copied, edit, parse):
    """Prompts, answers, references, names of runs and metrics, values of recipes, versions: none becomes an element."""
    folder = copied(looked_at, "a<b>&\"'")
    for label in ("adapter", "baseline"):
        file = folder / "eval" / f"{label}-samples.jsonl"
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        changed = [
            {**one, "prompt": EVIL, "output": EVIL, "reference": EVIL, "task": EVIL} for one in samples
        ]
        file.write_text("".join(json.dumps(one) + "\n" for one in changed))
        edit(folder / "eval" / f"{label}.json", tasks={EVIL: {"n": 1, "metrics": {EVIL: 1.0}}})
    edit(folder / "run.json", versions={EVIL: EVIL}, hardware={EVIL: EVIL}, git=EVIL)
    line = json.dumps({"step": 4, "loss": 1.0, EVIL: 2.0})
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + line + "\n")
    recipe = (folder / "recipe.yaml").read_text()
    written = re.sub(r"revision: null", f"revision: {json.dumps(EVIL)}", recipe, count=1)
    assert written != recipe
    (folder / "recipe.yaml").write_text(written)
    step = next((folder / "inspect").iterdir())
    found = json.loads(step.read_text())
    for site in found["sites"]:
        site["module"] = EVIL
    step.write_text(json.dumps({**found, "left_out": {EVIL: EVIL}}))

    parsed = parse(page(folder, looked_at))
    assert parsed.wrong == [] and len(parsed.all("script")) == 1 and parsed.all("img") == []
    assert all(not name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert parsed.said.count(EVIL) >= 10
    assert "a<b>&\"'" in parsed.said


def long_metrics(steps: int) -> str:
    """Lines as a training writes them, with one gradient that towers over all others."""
    lines = (
        f'{{"step": {i}, "tokens": 2048, "targets": 1999, "epoch": {i / 5000:.17g}, '
        f'"loss": {3 - i / steps + (i * 7919 % 997) / 997:.17g}, '
        f'"grad_norm": {1e9 if i == 61_803 else (i * 104_729 % 1009) / 1009 + 0.1:.17g}, '
        f'"lr": {1e-3 * (1 - i / steps):.17g}, "seconds": 0.1234, '
        f'"tokens_per_second": {16_000 + i * 31 % 101}, "penalty": {i % 13}}}\n'
        for i in range(1, steps + 1)
    )
    return "".join(lines)


def test_a_hundred_thousand_steps_make_a_small_page_with_the_spike_in_it(looked_at, copied, edit, parse):
    folder = copied(looked_at)
    (folder / "metrics.jsonl").write_text(long_metrics(100_000))
    edit(folder / "run.json", total_steps=100_000)
    text = page(folder)
    assert len(text.encode()) < LARGEST / 2
    parsed = parse(text)
    assert parsed.wrong == [] and "Of 100,000 steps about 1,000 points are drawn" in parsed.said
    (norm,) = [
        part for part in text.split("<svg")[1:] if 'aria-label="gradient norm' in part.partition(">")[0]
    ]
    high = float(re.search(r'data-y="[^,]+,([^"]+)"', norm)[1])
    assert 'data-log="1"' in norm and high >= 9  # of 1e9
    assert "penalty" in parsed.said


def test_detail_gives_way_where_there_is_no_room_and_the_page_says_so(looked_at, copied, parse):
    folder = copied(looked_at)
    lines = (json.dumps({"step": i, "loss": (i * 7919 % 997) / 997}) for i in range(1, 3000))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    whole = page(folder)
    tight = page(folder, largest=len(whole.encode()) - 1)
    assert len(tight) < len(whole) and f"about {DETAILS[1].points:,} points" in tight
    assert parse(tight).wrong == [] and parse(whole).wrong == []


def test_samples_that_are_left_out_are_counted(looked_at, copied):
    folder = copied(looked_at)
    file = folder / "eval" / "adapter-samples.jsonl"
    sample = json.loads(file.read_text().splitlines()[0])
    file.write_text("".join(json.dumps({**sample, "prompt": f"row {i}"}) + "\n" for i in range(40)))
    (folder / "eval" / "baseline-samples.jsonl").unlink()
    shown = DETAILS[0].samples
    assert f"{shown} of 40 samples are shown" in page(folder)
    assert "samples are shown" not in page(looked_at)


def test_columns_that_are_not_drawn_are_named(looked_at, copied):
    folder = copied(looked_at)
    line = {"step": 1, "loss": 1.0, **{f"own_{i:02}": float(i) for i in range(15)}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = page(folder)
    assert 'aria-label="own_11"' in text and 'aria-label="own_12"' not in text
    assert "3 more columns of metrics.jsonl are not drawn: own_12, own_13, own_14." in text


def test_more_than_has_room_is_refused(looked_at):
    with pytest.raises(UsageError, match=r"1 runs make a page of \d\.\d MB, more than 0\.01 MB; name fewer"):
        page(looked_at, largest=10_000)


def test_more_runs_than_colours_are_told_apart(looked_at, copied, parse):
    folders = [copied(looked_at, f"copy{number}") for number in range(9)]
    parsed = parse(page(*folders))
    assert parsed.wrong == []
    assert {f"copy{number}" for number in range(9)} <= set(parsed.said.split())
    again = [a for a in parsed.all("polyline") if "again" in a["class"].split()]
    assert again and {name for a in again for name in a["class"].split() if name.startswith("r")} == {"r8"}
