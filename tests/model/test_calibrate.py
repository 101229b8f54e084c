"""Calibration: what statistics are given, who shares one, and when it ends."""

from __future__ import annotations

import pytest
import torch

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.stages import Statistic
from lrft.methods.inits.smt import SMTBlocks
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.methods.signals.grad import Grad
from lrft.model.calibrate import calibrate
from lrft.model.load import load_model
from lrft.model.sites import choose, linear_sites
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import DataError


def loaded(tiny, targets="all-linear", family="llama", dtype="float32"):
    model = load_model(ModelSection(name=str(tiny(family)), dtype=dtype))
    return model, choose(linear_sites(model), targets)[0]


def batch_of(ends=(9, 6), length=9, prompt=3, seed=0, targets=True):
    ids = torch.randint(3, 400, (len(ends), length), generator=torch.Generator().manual_seed(seed))
    documents = tuple((row, 0, end) for row, end in enumerate(ends))
    spans = [row * length + torch.arange(prompt - 1, end - 1) for row, end in enumerate(ends)]
    supervised = torch.cat(spans) if targets else torch.empty(0, dtype=torch.int64)
    positions = torch.arange(length).expand(len(ends), -1)
    return Batch(
        ids, positions, documents, supervised, ids.flatten()[supervised + 1] if targets else supervised
    )


class Watching(Statistic):
    """Keeps what it is given."""

    backward = False
    made = []

    def __init__(self, enough=99, option=0):
        self.enough, self.option = enough, option
        self.given = ()
        type(self).made.append(self)

    def update(self, x, dy, tokens):
        self.given = (*self.given, (x, dy, tokens, torch.is_grad_enabled(), x.requires_grad))

    @property
    def converged(self):
        return len(self.given) >= self.enough

    def result(self):
        if not self.given:
            raise ValueError("no calibration batch reached it")
        return torch.tensor(float(len(self.given)))


class OfInput(Watching):
    of_input = True
    made = []


class WithBackward(Watching):
    backward = True
    made = []


class Refusing(Objective):
    """An objective that must not be called."""

    def __call__(self, model, batch, run=None):
        raise AssertionError("a loss was computed")


@pytest.fixture(autouse=True)
def _forget():
    for cls in (Watching, OfInput, WithBackward):
        cls.made = []


def run(model, sites, batches, kind, objective=None, **options):
    objective = objective or CrossEntropy(None)
    return calibrate(model, sites, batches, objective, lambda site, name: kind(**options), ["it"])


def test_without_a_statistic_that_asks_for_gradients_only_the_body_runs(tiny):
    model, sites = loaded(tiny)
    run(model, sites, [batch_of()], Watching, objective=Refusing(None))
    assert len(Watching.made) == len(sites)
    for statistic in Watching.made:
        ((x, dy, _, grad, graph),) = statistic.given
        assert dy is None and not grad and not graph and x.ndim == 2


def test_inputs_and_gradients_come_as_flat_tokens_with_those_that_count(tiny):
    model, sites = loaded(tiny)
    batch = batch_of()
    run(model, sites, [batch], WithBackward)
    for statistic, site in zip(WithBackward.made, sites.values(), strict=True):
        ((x, dy, tokens, _, _),) = statistic.given
        assert x.shape == (18, site.in_features) and dy.shape == (18, site.out_features)
        assert tokens.real.tolist() == [*range(9), *range(9, 15)]
        assert torch.equal(tokens.supervised, batch.supervised)
        padding = torch.arange(15, 18)
        assert not dy[padding].any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_is_autograds_of_the_mean_loss(tiny, family):
    model, sites = loaded(tiny, family=family)
    batches = [batch_of(seed=1), batch_of((7, 9), seed=2)]
    found = run(model, sites, batches, Grad)
    names = {name: model.hf.get_submodule(name).weight for name in sites}
    for weight in names.values():
        weight.requires_grad_(True)
    for batch in batches:
        (CrossEntropy(None)(model, batch) / batch.targets.numel() / 2).backward()
    for name, weight in names.items():
        expected = weight.grad.mT if family == "gpt2" else weight.grad
        torch.testing.assert_close(found[name]["it"], expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32")]
)
def test_gradients_are_measured_along_a_full_training_whose_weights_are_put_back(tiny, family, dtype):
    """The same steps by hand, on a copy: AdamW on float32 masters, after clipping, and no decay."""
    model, sites = loaded(tiny, family=family, dtype=dtype)
    mine, _ = loaded(tiny, family=family, dtype=dtype)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.hf.named_parameters()}
    batches = [batch_of(seed=seed) for seed in range(3)]
    make = lambda site, name: Grad()  # noqa: E731
    warm_up = SMTBlocks(SMTBlocks.Config(method="smt", warmup_rate=0.01)).warm_up
    found = calibrate(model, sites, batches, CrossEntropy(None), make, ["it"], warm_up=warm_up)
    for name, parameter in model.hf.named_parameters():
        assert (parameter.data_ptr(), parameter.requires_grad, parameter.grad) == (
            before[name][0],
            False,
            None,
        )
        assert torch.equal(parameter, before[name][1])
    weights = [p.requires_grad_(True) for p in mine.hf.parameters()]
    masters = [p.detach().float().clone() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=0.01, weight_decay=0)
    total = dict.fromkeys(sites, 0.0)
    mine.train()
    for batch in batches:
        (CrossEntropy(None)(mine, batch) / batch.targets.numel()).backward()
        for name in sites:
            gradient = mine.hf.get_submodule(name).weight.grad.float()
            total[name] = total[name] + (gradient.mT if family == "gpt2" else gradient) / 3
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for master, weight in zip(masters, weights, strict=True):
            weight.data.copy_(master)
    still = run(model, sites, batches, Grad)
    for name in sites:
        size = total[name].norm()
        exact = 1e-3 if dtype == "float32" else 0.05
        assert (
            (found[name]["it"] - total[name]).norm()
            < exact * size
            < 0.5 * (still[name]["it"] - total[name]).norm()
        )


def test_sites_that_read_one_tensor_share_a_statistic_of_the_input(tiny):
    model, sites = loaded(tiny)
    found = run(model, sites, [batch_of(), batch_of(seed=1)], OfInput)
    used = [statistic for statistic in OfInput.made if statistic.given]
    assert len(used) == 2 * 4  # two layers: attention's input and output, the block's input and output
    assert all(len(statistic.given) == 2 for statistic in used)
    layer = "model.layers.1"
    assert found[f"{layer}.self_attn.q_proj"]["it"] is found[f"{layer}.self_attn.v_proj"]["it"]
    assert found[f"{layer}.mlp.gate_proj"]["it"] is found[f"{layer}.mlp.up_proj"]["it"]
    assert found[f"{layer}.self_attn.q_proj"]["it"] is not found["model.layers.0.self_attn.q_proj"]["it"]


def test_what_depends_on_more_than_the_input_or_was_made_otherwise_is_not_shared(tiny):
    model, sites = loaded(tiny, ["q_proj", "k_proj", "v_proj"])
    run(model, sites, [batch_of()], Watching)
    assert all(len(statistic.given) == 1 for statistic in Watching.made)

    def make(site, name):
        return OfInput(option=1 if site.endswith("q_proj") else 2)

    calibrate(model, sites, [batch_of()], CrossEntropy(None), make, ["it"])
    used = [statistic.option for statistic in OfInput.made if statistic.given]
    assert used == [1, 2, 1, 2]


def test_it_ends_when_every_statistic_has_converged(tiny):
    model, sites = loaded(tiny, ["q_proj", "o_proj"])
    drawn, told = [], []

    def batches():
        for seed in range(10):
            drawn.append(seed)
            yield batch_of(seed=seed)

    def make(site, name):
        return Watching(enough=1 if site.endswith("q_proj") else 3)

    calibrate(model, sites, batches(), CrossEntropy(None), make, ["it"], told.append)
    assert told == [1, 2, 3] and len(drawn) <= 4
    assert [len(statistic.given) for statistic in Watching.made] == [1, 3, 1, 3]


def test_a_class_may_judge_all_sites_together(tiny):
    model, sites = loaded(tiny, ["q_proj", "o_proj"])

    class Together(Watching):
        made = []

        @classmethod
        def settled(cls, statistics):
            enough = sum(len(statistic.given) for statistic in statistics.values()) >= 8
            return set(statistics) if enough else set()

    run(model, sites, [batch_of(seed=seed) for seed in range(9)], Together)
    assert [len(statistic.given) for statistic in Together.made] == [2] * 4


def test_kinds_can_be_measured_together(tiny):
    model, sites = loaded(tiny, ["q_proj", "k_proj"])
    kinds = {"one": OfInput, "two": WithBackward}
    found = calibrate(
        model, sites, [batch_of()], CrossEntropy(None), lambda site, name: kinds[name](), ["one", "two"]
    )
    assert {tuple(statistics) for statistics in found.values()} == {("one", "two")}
    assert [len(statistic.given) for statistic in OfInput.made] == [1, 0, 1, 0]
    assert all(len(statistic.given) == 1 for statistic in WithBackward.made)


def test_a_pass_for_reference_alone_is_not_measured(tiny):
    model, sites = loaded(tiny, ["q_proj"])

    class Twice(CrossEntropy):
        def __call__(self, model, batch, run=None):
            with torch.no_grad():
                model.hidden(batch)
            return super().__call__(model, batch)

    kinds = {"one": OfInput, "two": WithBackward}
    calibrate(model, sites, [batch_of()], Twice(None), lambda site, name: kinds[name](), ["one", "two"])
    assert all(len(statistic.given) == 1 for statistic in [*OfInput.made, *WithBackward.made])


def test_a_loss_per_row_is_divided_by_its_rows(tiny):
    model, sites = loaded(tiny, ["q_proj"])

    class PerRow(CrossEntropy):
        def divisor(self, batches):
            return batches.examples

    batch = batch_of()
    rows = Batch(**{**vars(batch), "examples": (4, 7)})
    by_token, by_row = (run(model, sites, [rows], Grad, kind(None)) for kind in (CrossEntropy, PerRow))
    for name in sites:
        ratio = batch.targets.numel() / 2
        torch.testing.assert_close(by_row[name]["it"], ratio * by_token[name]["it"], atol=1e-6, rtol=1e-4)


def test_a_micro_batch_without_a_target_is_no_error(tiny):
    model, sites = loaded(tiny, ["q_proj"])
    empty = batch_of(targets=False)
    found = run(model, sites, [batch_of(), empty], Grad)
    expected = run(model, sites, [batch_of()], Grad)
    assert all(torch.equal(found[name]["it"], expected[name]["it"]) for name in sites)


def test_a_site_that_cannot_be_measured_is_named(tiny):
    model, sites = loaded(tiny, ["layers.0.self_attn.q_proj"])
    with pytest.raises(DataError, match=r"q_proj: it cannot be measured: no calibration batch with a target"):
        run(model, sites, [batch_of(targets=False)], Grad)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny, training):
    model, sites = loaded(tiny)
    model.train(training)
    run(model, sites, [batch_of()], WithBackward)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_base_weights_that_train_keep_no_gradient_of_a_calibration(tiny):
    model, sites = loaded(tiny, ["q_proj"])
    norm = model.hf.model.norm.weight.requires_grad_()
    calibrate(model, sites, [batch_of()], CrossEntropy(None), lambda site, name: Grad(), ["grad"])
    assert norm.grad is None
