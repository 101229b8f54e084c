"""Private training: bounded gradients and noise against their formulas, epsilon against Opacus, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("opacus", reason="pip install 'lrft[privacy]'")

from opacus.accountants import PRVAccountant, RDPAccountant

from lrft.api.planning.find_lr import find_lr
from lrft.api.training.federate import federate
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.held import Held
from lrft.build.measure import planned
from lrft.build.peaks import PeaksOf
from lrft.build.privacy import Spending, check_not_private, tell_privacy
from lrft.build.steps import train_data
from lrft.core.privacy import Privacy, Secret
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.steps import Shape
from lrft.model.described import build_skeleton
from lrft.model.noise import add_noise
from lrft.model.trained import parameter_infos
from lrft.ops.products import multiplying
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import DataError, NumericalError, RecipeError
from lrft.training.accountant import Spent, epsilon_of, noise_for
from lrft.training.private import add_clipped, hide, private_bytes, private_loss
from tests.each import each
from tests.training.unbroken import goes_on_unbroken, same

PRIVATE = [
    "privacy={noise: 0.8, clip: 0.5, delta: 1e-3, seed: 7}",
    "train.packing=false",
    "quantization=none",
    "data.train.limit=24",
    "train.keep_last=9",
]
FEDERATED = [
    "~train.max_steps",
    "federate={clients: 3, rounds: 3, local_steps: 2, fraction: 0.67, partition: even}",
]


def recipe_of(recipe_file, *overrides, dtype="float32"):
    return load_recipe(recipe_file(dtype), [*PRIVATE, *overrides])


@pytest.fixture
def parts(recipe_file):
    """A private step before it is taken: the run, its rows, the loss."""

    def make(*overrides):
        recipe = recipe_of(recipe_file, "adapter.dropout=0", *overrides).recipe
        text = read_text(recipe)
        model = adapt(recipe, text=text).model
        model.train()
        data = train_data(recipe, text)
        infos = parameter_infos(model)
        for info in infos:  # B is 0 at the start, which leaves A without a gradient
            torch.nn.init.normal_(info.param, std=0.1, generator=torch.Generator().manual_seed(3))
        privacy = Privacy(0.05, 0.7, data.expected, data.rate, data.secret)
        optimizer = torch.optim.SGD([info.param for info in infos], lr=0.1)
        run = Run(model, infos, optimizer, SimpleNamespace(), 8, recipe=recipe, privacy=privacy)
        run.seed_step()
        objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
        return run, data, objective, text

    return make


def test_the_gradient_is_the_sum_of_clipped_gradients_of_rows_by_themselves_and_the_noise(parts):
    """Against one backward pass a row of the mean loss by plain logits, bounded by torch's own clipping."""
    run, data, objective, text = parts()
    step = next(step for step in range(50) if len(data.chosen(step)) > 2)
    run.step = step
    private_loss(run, data.at(step), objective)
    found = {info.name: info.param.grad.clone() for info in run.parameters}
    sums = {info.name: torch.zeros_like(info.param) for info in run.parameters}
    lengths = []
    for row in data.chosen(step):
        for info in run.parameters:
            info.param.grad = None
        batch = collate([[text.train[row]]], text.pad_id, None, [[row]])
        logits = run.model(batch).flatten(0, 1)[batch.supervised]
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
        params = [info.param for info in run.parameters]
        lengths.append(float(torch.nn.utils.clip_grad_norm_(params, run.privacy.clip)))
        for info in run.parameters:
            sums[info.name] += info.param.grad
    assert max(lengths) > run.privacy.clip, "nothing was clipped"
    drawn = run.privacy.secret.generator("noise", run.seed, step)
    for name, total in sums.items():
        noise = 0.7 * 0.05 * torch.randn(total.shape, generator=drawn)
        torch.testing.assert_close(found[name], (total + noise) / data.expected, atol=1e-6, rtol=1e-4)
    assert float(run.metrics["clipped"]) == sum(n > run.privacy.clip for n in lengths) / len(lengths)


def test_a_short_gradient_stays_and_a_long_one_has_the_length_that_is_allowed():
    gradients = [torch.full((3,), 2.0), None, torch.full((2, 2), 2.0)]
    sums = [torch.zeros(3), torch.zeros(5), torch.zeros(2, 2)]
    assert add_clipped(sums, gradients, 100.0) == 0
    assert torch.equal(sums[0], gradients[0]) and not sums[1].any()
    sums = [torch.zeros_like(one) for one in sums]
    assert add_clipped(sums, gradients, 0.5) == 1
    assert torch.cat([one.flatten() for one in sums]).norm() == pytest.approx(0.5)
    assert add_clipped(sums, [torch.zeros(3), None, torch.zeros(2, 2)], 0.5) == 0
    assert all(torch.isfinite(one).all() for one in sums)


def test_noise_has_the_deviation_that_is_accounted_for_and_reaches_every_parameter():
    privacy = Privacy(0.5, 1.5, 20.0, 0.1, Secret(1))
    sums = [torch.zeros(400, 400), torch.zeros(300)]
    found = hide(sums, privacy, privacy.secret.generator("noise", 0, 0))
    assert found[0].std() == pytest.approx(1.5 * 0.5 / 20, rel=0.02)
    assert found[1].std() == pytest.approx(1.5 * 0.5 / 20, rel=0.15)
    again = hide(sums, privacy, privacy.secret.generator("noise", 0, 1))
    assert abs(float(torch.corrcoef(torch.stack((found[0].flatten(), again[0].flatten())))[0, 1])) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_gradients_take_in_a_private_step_is_what_is_counted(dtype):
    """Every tensor that is made is counted, at every call."""
    params = [torch.zeros(shape, dtype=dtype) for shape in ((300, 200), (500, 400), (70,))]
    gradients, counted = [torch.randn_like(param) for param in params], private_bytes(params)
    noise = torch.Generator().manual_seed(0)
    with Held() as held:
        sums = [torch.zeros_like(param, dtype=torch.float32) for param in params]
        assert held.mark() == counted.sums == 4 * sum(param.numel() for param in params)
        add_clipped(sums, gradients, 0.5)
        assert held.peak - counted.sums == pytest.approx(counted.clipping, rel=0.001)
        assert held.mark() == counted.sums
        hidden = hide(sums, Privacy(0.5, 1.0, 4, 0.1, Secret(1)), noise)
        kept = [gradient.to(dtype) for gradient in hidden]
        assert held.peak - counted.sums == pytest.approx(counted.noise, rel=0.001)
    assert sum(gradient.nbytes for gradient in kept) == sum(param.nbytes for param in params)


@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        ("float32", ["adapter.rank=32"]),
        ("bfloat16", ["adapter.rank=32"]),
        ("float32", ["trainable=full", "adapter=null", "init=null"]),
    ],
)
def test_a_planned_private_step_holds_what_the_step_of_a_real_model_does(parts, tiny, dtype, more):
    """Beside weights and state, of a row of which every token is learnt; the optimizer's step is left out."""
    size = [f"model.name={tiny()}", f"model.dtype={dtype}", "train.max_length=64", "train.device=cpu"]
    run, data, objective, _ = parts(*size, *more, "data.too_long=truncate_right")
    longest = max(data.encoded, key=lambda row: len(row.input_ids))
    length = len(longest.input_ids)
    learnt = replace(longest, supervised=[False, *[True] * (length - 1)])
    batches = replace(data.at(0), micro_batches=[collate([[learnt]], 0, None, [[0]])] * 3)
    with multiplying(()), Held() as held:
        private_loss(run, batches, objective)
        measured = held.peak
    shape = Shape(1, length, (length,))
    recipe = run.recipe
    with planned(recipe, build_skeleton(recipe.model)[0]) as found:
        peaks = PeaksOf(recipe, found, "cpu")
        moments = list(peaks.moments.of(peaks._try(shape), 0))
    step = {"forward pass", "loss", "backward pass", "clipping of a row", "adding of noise"}
    assert step < {name for name, _ in moments}
    planned_peak = max(sum(held.values()) for name, held in moments if name in step)
    assert measured == pytest.approx(planned_peak, rel=0.1)


def test_rows_are_drawn_one_by_one_with_the_rate_that_is_accounted_for(parts):
    _, data, _, _ = parts()
    drawn = [data.chosen(step) for step in range(3000)]
    counts = torch.bincount(torch.tensor([row for rows in drawn for row in rows]), minlength=24)
    assert data.rate == 4 / 24 and torch.all((counts / 3000 - data.rate).abs() < 0.035)
    sizes = torch.tensor([len(rows) for rows in drawn], dtype=torch.float64)
    assert sizes.mean() == pytest.approx(4, rel=0.03)
    assert sizes.var() == pytest.approx(24 * data.rate * (1 - data.rate), rel=0.1), "a batch of fixed size"
    assert [data.chosen(step) for step in range(5)] == drawn[:5]
    assert all(len(batch.documents) == 1 for batch in data.at(1).micro_batches)


def test_a_step_that_drew_no_row_is_noise_alone_and_no_fault(parts, recipe_file, tmp_path):
    few = ["train.batch_size=1", "train.gradient_accumulation=1"]
    run, data, objective, _ = parts(*few)
    run.step = next(step for step in range(50) if not data.chosen(step))
    assert private_loss(run, data.at(run.step), objective) == 0 and run.metrics["rows"] == 0
    drawn = run.privacy.secret.generator("noise", run.seed, run.step)
    for info in run.parameters:
        torch.testing.assert_close(
            info.param.grad, 0.7 * 0.05 * torch.randn(info.param.shape, generator=drawn)
        )
    seed = next(
        seed for seed in range(50) if drew_none(parts, seed, 1, few)
    )  # where an exact 0 is looked for
    train(recipe_of(recipe_file, *few, f"privacy.seed={seed}", "train.max_steps=3"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (lines[1]["rows"], lines[1]["loss"]) == (0, 0)


def drew_none(parts, seed, step, few):
    _, data, _, _ = parts(*few)
    data.secret = Secret(seed)
    return not data.chosen(step)


def test_accumulated_micro_batches_are_one_batch(parts):
    """The expected rows of a step are what counts: the same rows, the same noise, the same gradients."""
    found = []
    for sizes in (["train.batch_size=4", "train.gradient_accumulation=1"], ["train.gradient_accumulation=4"]):
        run, data, objective, _ = parts("train.batch_size=1", *sizes)
        run.step = 2
        private_loss(run, data.at(2), objective)
        found.append((data.rate, data.chosen(2), [info.param.grad for info in run.parameters]))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


def test_what_rows_change_beside_parameters_is_refused(parts):
    run, _, _, _ = parts("adapter={method: lora_fa, rank: 2}")
    spending = Spending(run.recipe, run.privacy)
    spending.start(run)
    run.step, run.metrics = 1, {"rows": 0}
    spending.after_step(run)  # in which no row could change anything
    next(site for _, site in run.sites).adapter.A.data += 1
    run.step, run.metrics = 2, {"rows": 3}
    with pytest.raises(NumericalError, match="no noise hides"):
        spending.after_step(run)


@each(("accountant", "theirs"), [("rdp", RDPAccountant), ("prv", PRVAccountant)])
def test_epsilon_is_that_of_opacus_step_by_step(accountant, theirs):
    made = theirs()
    for _ in range(30):
        made.step(noise_multiplier=0.9, sample_rate=0.05)
    for _ in range(12):
        made.step(noise_multiplier=1.3, sample_rate=0.1)
    found = epsilon_of([Spent(0.9, 0.05, 30), Spent(1.3, 0.1, 12)], 1e-5, accountant)
    assert found == pytest.approx(made.get_epsilon(delta=1e-5), rel=1e-12)
    assert epsilon_of([], 1e-5, accountant) == 0


def test_the_noise_of_an_epsilon_comes_to_no_more_than_it():
    noise = noise_for(2.0, 1e-5, 0.05, 200, "rdp")
    assert 1.97 < epsilon_of([Spent(noise, 0.05, 200)], 1e-5, "rdp") <= 2.0


def test_a_private_run_says_what_it_spent_and_goes_on_to_the_bit(recipe_file, tmp_path, capsys):
    loaded = recipe_of(recipe_file)
    train(loaded, tmp_path / "whole")
    assert "privacy: 8 steps come to epsilon" in capsys.readouterr().err
    found = json.loads((tmp_path / "whole" / "result.json").read_text())["privacy"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    made = RDPAccountant()
    for step, line in enumerate(lines, 1):
        made.step(noise_multiplier=0.8, sample_rate=4 / 24)
        if step in (3, 6, 8):  # which are saved
            assert line["epsilon"] == pytest.approx(made.get_epsilon(delta=1e-3), rel=1e-9)
        else:
            assert "epsilon" not in line
    assert found["epsilon"] == pytest.approx(made.get_epsilon(delta=1e-3)) and found["steps"] == 8
    assert found["rows"] == 24 and found["noise"] == 0.8 and found["unit"] == "row"
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")


def test_a_secret_that_the_system_drew_goes_on_to_the_bit_and_is_another_one_in_another_run(
    recipe_file, tmp_path
):
    loaded = recipe_of(recipe_file, "privacy.seed=null", "train.max_steps=4")
    train(loaded, tmp_path / "whole")
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")
    train(loaded, tmp_path / "other")
    with pytest.raises(AssertionError):
        same(tmp_path / "other", tmp_path / "whole")


def test_clients_spend_by_their_rows_and_the_rounds_that_they_were_in(recipe_file, tmp_path, capsys):
    loaded = recipe_of(recipe_file, *FEDERATED, "privacy.delta=1e-2")
    federate(loaded, tmp_path / "whole")
    assert "privacy: the client that spent most is at epsilon" in capsys.readouterr().err
    found = json.loads((tmp_path / "whole" / "result.json").read_text())["privacy"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert (
        sum(client["steps"] for client in found["clients"]) == 3 * 2 * 2
    )  # rounds, clients of a round, steps
    for client in found["clients"]:
        made = RDPAccountant()
        for _ in range(client["steps"]):
            made.step(noise_multiplier=0.8, sample_rate=4 / client["rows"])
        assert client["epsilon"] == pytest.approx(made.get_epsilon(delta=1e-2))
    assert lines[-1]["epsilon"] == found["epsilon"] == max(c["epsilon"] for c in found["clients"])
    goes_on_unbroken(loaded, tmp_path / "whole", 1, tmp_path / "broken")


def test_clients_draw_noise_apart_and_the_noise_of_an_epsilon_is_each_clients_own(recipe_file, tmp_path):
    shares = "federate.partition={by: dirichlet, alpha: 0.5}"
    chosen = [
        "privacy.noise=null",
        "privacy.epsilon=3.0",
        "privacy.delta=1e-2",
        *FEDERATED,
        shares,
        "federate.fraction=1",
        "federate.clients=2",
    ]
    federate(recipe_of(recipe_file, *chosen), tmp_path / "run")
    clients = json.loads((tmp_path / "run" / "result.json").read_text())["privacy"]["clients"]
    assert all(2.9 < client["epsilon"] <= 3.0 for client in clients)
    assert (
        len({client["noise"] for client in clients}) == len({client["sample_rate"] for client in clients}) > 1
    )
    one = Secret(7).generator("noise", 0, 0).initial_seed()
    assert (
        one
        != Secret(7).generator("noise", 1, 0).initial_seed()
        != Secret(7).generator("rows", 1, 0).initial_seed()
    )


@each(
    ("changes", "key"),
    [
        (["train.packing=null"], "train.packing"),
        (["train.packing=true"], "train.packing"),
        (["privacy.noise=null"], "privacy"),
        (["privacy.epsilon=3"], "privacy"),
        (["train.stop_below=1.0"], "train.stop_below"),
        (["optimizer.per_layer=true"], "optimizer.per_layer"),
        (["optimizer={method: mezo}"], "optimizer.method"),
        (["allocate=adalora", "adapter.method=adalora"], "allocate.method"),
        (["restart=relora"], "restart"),
        (["analyse=[gradient_noise_scale]"], "analyse"),
    ],
)
def test_what_would_break_the_guarantee_is_refused_before_anything_is_read(changes, key, recipe_file):
    with pytest.raises(RecipeError) as refused:
        recipe_of(recipe_file, *changes)
    assert key in [problem.key for problem in refused.value.problems]


@each(
    ("changes", "error", "said"),
    [
        (["privacy.delta=0.1"], DataError, "not below one over the 24 rows"),
        (
            ["init=lora_ga", "adapter.dropout=0"],
            RecipeError,
            "measures the training rows before the first step",
        ),
        (["adapter={method: selective_lora, rank: 4}"], RecipeError, "does something between steps"),
        (["privacy.noise=null", "privacy.epsilon=1e-9"], RecipeError, "no noise brings 8 steps down"),
    ],
)
def test_what_only_rows_or_parts_can_tell_is_refused_before_the_first_step(
    changes, error, said, recipe_file, tmp_path
):
    with pytest.raises(error, match=said):
        train(recipe_of(recipe_file, *changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_is_not_accounted_for_elsewhere_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="nobody accounts"):
        find_lr(recipe_of(recipe_file))
    with pytest.raises(RecipeError, match="where all clients train in one process"):
        check_not_private(recipe_of(recipe_file).recipe)


def sum_of(run, step, objective):
    """The sum of the bounded gradients of a step's rows, without noise."""
    run.privacy = replace(run.privacy, noise=0.0)
    private_loss(run, step, objective)
    return torch.cat([info.param.grad.flatten() for info in run.parameters]) * run.privacy.rows


@each(
    "drawn",
    [["adapter.dropout=0.5"], ["train.neftune=50.0"], ["objective={method: masked_thought, ramp: 0.0}"]],
)
def test_a_row_more_moves_the_sum_by_no_more_than_its_bound_whatever_rows_draw(drawn, parts):
    run, data, objective, _ = parts(*drawn)
    run.step = next(step for step in range(50) if len(data.chosen(step)) > 2)
    if "neftune" in drawn[0]:
        add_noise(run.model, run.recipe.train.neftune)
    whole = data.at(run.step)
    all_rows = sum_of(run, whole, objective)
    others = sum_of(run, replace(whole, micro_batches=whole.micro_batches[1:]), objective)
    assert (all_rows - others).norm() <= run.privacy.clip * 1.001
    torch.testing.assert_close(sum_of(run, whole, objective), all_rows)
    run.step += 1
    assert not torch.allclose(sum_of(run, whole, objective), all_rows), "nothing was drawn"


def test_what_draws_after_the_rows_of_a_step_does_not_tell_how_many_they_were(parts):
    run, data, objective, _ = parts()
    whole = data.at(next(step for step in range(50) if len(data.chosen(step)) > 2))
    found = []
    for micro_batches in (whole.micro_batches, whole.micro_batches[1:], []):
        private_loss(run, replace(whole, micro_batches=micro_batches), objective)
        found.append(torch.rand(4))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_layers_that_are_computed_again_know_the_row_that_they_are_given(recipe_file):
    """As an adapter needs it that goes by the features of a row."""
    data = Path(__file__).parents[2] / "recipes" / "data" / "featured"
    flix = [
        f"data.train={data}/train.jsonl",
        f"data.eval={data}/test.jsonl",
        "data.train.limit=24",
        "data.features=[tone, form]",
        "~adapter",
        "adapter={method: flix, rank: 2, features: {tone: [plain, polite], form: [statement, question]}}",
    ]
    found = []
    for again in ("false", "true"):
        recipe = recipe_of(recipe_file, *flix, f"model.activation_checkpointing={again}").recipe
        text = read_text(recipe)
        model = adapt(recipe, text=text).model
        rows, infos = train_data(recipe, text), parameter_infos(model)
        for info in infos:
            torch.nn.init.normal_(info.param, std=0.1, generator=torch.Generator().manual_seed(3))
        privacy = Privacy(0.05, 0.0, rows.expected, rows.rate, rows.secret)
        optimizer = torch.optim.SGD([info.param for info in infos], lr=0.1)
        run = Run(model.train(), infos, optimizer, SimpleNamespace(), 8, recipe=recipe, privacy=privacy)
        step = next(rows.at(k) for k in range(50) if len(rows.chosen(k)) > 2)
        private_loss(run, step, OBJECTIVES.get("cross_entropy")(recipe.objective))
        found.append([info.param.grad.clone() for info in infos])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))
    assert any(one.any() for one in found[0])


def test_all_of_the_secret_decides_what_is_drawn_and_not_the_32_bits_that_torch_takes_of_a_seed():
    drawn = Secret(7).generator("noise", 0, 0)
    seeded, low = (torch.Generator().manual_seed(drawn.initial_seed() % 2**bits) for bits in (64, 32))
    first = torch.randn(1000, generator=drawn)
    assert torch.equal(torch.randn(1000, generator=seeded), again := torch.randn(1000, generator=low))
    assert abs(float(torch.corrcoef(torch.stack((first, again)))[0, 1])) < 0.15
    assert torch.equal(torch.randn(1000, generator=Secret(7).generator("noise", 0, 0)), first)


def test_a_row_of_the_data_that_would_be_several_of_a_step_is_refused(recipe_file):
    """Each window is bounded by itself, so that a document of three could move the sum by three bounds."""
    windows = ["data.format={method: text, column: completion}", "data.too_long=windows"]
    cut = ["train.max_length=24", "data.stride=12"]
    plain = [one for one in PRIVATE if not one.startswith("privacy")]
    text = read_text(load_recipe(recipe_file("float32"), [*plain, *windows, *cut]).recipe)
    assert len(text.train) > 24, "no document has two windows"
    with pytest.raises(RecipeError, match=r"data\.too_long: makes several rows of a long one"):
        recipe_of(recipe_file, *windows, *cut)


def test_an_objective_that_compares_rows_is_refused():
    private = ["privacy={noise: 1.0}", "train.packing=false", "train.batch_size=4"]
    with pytest.raises(RecipeError, match="kto compares with the answers of other rows, and private"):
        load_recipe("smoke/kto", private)


def test_what_chooses_rows_by_all_of_them_is_told(recipe_file, capsys):
    """One row more may leave out two that are near it, or hold out others."""
    for changes in ([], ["data.dedup=exact"]):
        tell_privacy(recipe_of(recipe_file, *changes).recipe)
        assert "looking at all of them" not in capsys.readouterr().err
    tell_privacy(recipe_of(recipe_file, "data.dedup=near", "~data.eval", "data.split=4").recipe)
    said = capsys.readouterr().err
    assert "data.dedup: near chooses rows" in said and "data.split chooses rows" in said
