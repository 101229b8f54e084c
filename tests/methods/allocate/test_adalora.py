"""AdaLoRA against PEFT's allocator, the published schedule, and the traps: ties, equal ranks, accumulation."""

from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.methods.allocate._dynamic import lowest, orthogonality
from lrft.methods.allocate.adalora import AdaLoRA, cubic_budget
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError
from tests.methods.allocate.allocating import draw_gradients, gates, make_run

TOTAL, INIT, FINAL, EVERY = 24, 3, 8, 2


def allocator(**settings) -> AdaLoRA:
    given = {"target_rank": 3, "t_init": INIT, "t_final": FINAL, "every": EVERY, **settings}
    return AdaLoRA(AdaLoRA.Config(**given))


def advance(run, seed: int) -> None:
    """One step of the loop on given gradients: they are large enough that pruned directions come back."""
    draw_gradients(run, seed)
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad()


class Reference(nn.Module):
    """The same factors under PEFT's names."""

    def __init__(self, run) -> None:
        super().__init__()
        for site, module in run.adapted():
            part = nn.Module()
            for key, value in zip("AEB", module.adapter.components(), strict=True):
                value = value.detach().clone()
                shaped = nn.Parameter(value[:, None] if key == "E" else value)
                part.register_module(f"lora_{key}", nn.ParameterDict({"default": shaped}))
            self.add_module(site, part)

    def tensor(self, name: str) -> nn.Parameter:
        site, key = name.split(".")
        return self.get_parameter(f"{site}.lora_{key}.default")


def test_the_same_components_are_pruned_as_by_peft_step_by_step():
    layer = pytest.importorskip("peft.tuners.adalora.layer")
    method = allocator(beta1=0.8, beta2=0.9)
    run = make_run(method, TOTAL)
    reference = Reference(run)
    phases = {"tinit": INIT, "tfinal": FINAL, "deltaT": EVERY, "total_step": TOTAL}
    settings = {"beta1": 0.8, "beta2": 0.9, "target_r": 3, **phases}
    theirs = layer.RankAllocator(reference, SimpleNamespace(**settings), "default")
    run.fire("start")
    seen = set()
    for step in range(1, TOTAL + 1):
        advance(run, step)
        draw_gradients(run, step)
        for info in run.parameters:
            param = reference.tensor(info.name)
            param.grad = info.param.grad.reshape(param.shape).clone()
        torch.optim.SGD(reference.parameters(), lr=0.1).step()
        theirs.update_and_allocate(reference, step)
        for site, E in gates(run).items():
            expected = reference.tensor(f"{site}.E")[:, 0]
            assert torch.equal(E == 0, expected == 0), f"step {step}"
            torch.testing.assert_close(E, expected.detach(), rtol=1e-5, atol=1e-6)
        seen.add(tuple((E == 0).tolist().__str__() for E in gates(run).values()))
    assert len(seen) > 4  # directions went and came back in between
    assert sum(int((E != 0).sum()) for E in gates(run).values()) == 3 * 3


class Chain(nn.Module):
    """Three maps one after the other, with the loss where PEFT looks for it."""

    def __init__(self, maps: list[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(dict(zip("abc", maps, strict=True)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> SimpleNamespace:
        for one in self.maps.values():
            x = one(x).tanh()
        return SimpleNamespace(loss=(x - y).square().mean())


@pytest.fixture
def in_double():
    """Adam divides gradients by their size, which makes 1e-4 of what a rounding in float32 leaves."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_steps_of_adam_are_those_of_pefts_model_and_as_small(in_double):
    """Penalty, scores and pruning included: that it hardly leaves its start is the method's, where LoRA has moved."""
    peft = pytest.importorskip("peft")
    steps, sizes, settings = 12, (48, 32, 40, 24), {"target_rank": 3, "t_init": 2, "t_final": 5, "every": 1}
    torch.manual_seed(0)
    plain = [nn.Linear(*pair) for pair in pairwise(sizes)]
    storage = QUANTIZERS.declared("none").config(method="none")

    def adapted(name: str) -> Chain:
        config = ADAPTERS.declared(name).config(method=name, rank=5, alpha=10.0)
        return Chain(
            [
                Adapted(
                    QUANTIZERS.get("none")(one.weight.detach(), one.bias.detach(), storage),
                    ADAPTERS.get(name)(config, Site(site, one.in_features, one.out_features)),
                )
                for site, one in zip("abc", plain, strict=True)
            ]
        )

    ours, lora = adapted("svd_lora"), adapted("lora")
    keys = {"tinit": 2, "tfinal": 5, "deltaT": 1, "total_step": steps, "orth_reg_weight": 0.2}
    theirs = peft.get_peft_model(
        Chain(deepcopy(plain)),
        peft.AdaLoraConfig(init_r=5, target_r=3, lora_alpha=10, target_modules=list("abc"), **keys),
    ).base_model.double()
    pairs = [(ours.maps[site].adapter, theirs.model.maps[site]) for site in "abc"]
    for mine, layer in pairs:
        layer.lora_A["default"].data.copy_(mine.A)
        layer.lora_B["default"].data.copy_(mine.B)
    made = {model: torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (ours, lora, theirs)}
    run = Run(ours, [], made[ours], None, steps)
    run.callbacks = [allocator(**settings, orthogonality=0.2)]
    run.fire("start")
    for step in range(1, steps + 1):
        x, y = torch.randn(16, sizes[0]), torch.randn(16, sizes[-1])
        for model, optimizer in made.items():
            optimizer.zero_grad()
            penalty = sum(mine.penalty() for mine, _ in pairs) if model is ours else 0
            (model(x=x, y=y).loss + penalty).backward()
            optimizer.step()
        run.step += 1
        run.fire("after_step")
        theirs.update_and_allocate(step)
        for mine, layer in pairs:
            expected = layer.lora_E["default"][:, 0]
            torch.testing.assert_close(mine.E, expected, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(mine.change(), layer.get_delta_weight("default"), rtol=1e-6, atol=1e-8)
    assert sum(int((mine.E != 0).sum()) for mine, _ in pairs) == 9
    for site, (mine, _) in zip("abc", pairs, strict=True):
        assert mine.change().norm() < lora.maps[site].adapter.change().norm() / 30


def test_the_averages_are_those_of_the_authors_formulas():
    """Ibar with the step's I, and U with the new Ibar."""
    method = allocator(beta1=0.7, beta2=0.6)
    run = make_run(method, TOTAL)
    run.fire("start")
    ibar = uncertainty = 0.0
    for step in range(1, 6):
        advance(run, step)
        draw_gradients(run, step)
        param = run.parameters[0].param
        value = (param * param.grad).abs()
        ibar = 0.7 * ibar + 0.3 * value
        uncertainty = 0.6 * uncertainty + 0.4 * (value - ibar).abs()
    name = run.parameters[0].name
    torch.testing.assert_close(method.importance.average[name], ibar)
    torch.testing.assert_close(method.importance.uncertainty[name], uncertainty)
    torch.testing.assert_close(method.importance.score(name), ibar * uncertainty)


def test_the_score_of_a_component_is_its_value_s_and_the_means_of_its_vectors():
    method = allocator()
    run = make_run(method, TOTAL)
    run.fire("start")
    advance(run, 1)
    score = method.importance.score
    expected = score("a.E")[2] + score("a.A")[2].mean() + score("a.B")[:, 2].mean()
    torch.testing.assert_close(method.scores()[2], expected)


def test_scores_rest_in_the_last_phase_and_its_components_stay_pruned():
    method = allocator()
    run = make_run(method, TOTAL)
    run.fire("start")
    pruned, average = [], None
    for step in range(1, TOTAL + 1):
        advance(run, step)
        if step == TOTAL - FINAL - 1:
            average = method.importance.average["a.A"].clone()
        if step > TOTAL - FINAL:
            pruned.append(torch.cat([E == 0 for E in gates(run).values()]))
    assert torch.equal(method.importance.average["a.A"], average)
    assert len(pruned) == FINAL and all(torch.equal(mask, pruned[0]) for mask in pruned)
    assert int((~pruned[0]).sum()) == 9


def test_the_budget_falls_by_the_published_cube():
    budgets = [cubic_budget(t, 12 * 72, 8 * 72, 6000, 25000, 60000) for t in range(0, 60001, 100)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[60] == 864 and budgets[61] < 864 and budgets[-1] == 576
    assert cubic_budget(20500, 864, 576, 6000, 25000, 60000) == 576 + int(288 * 0.5**3)
    assert cubic_budget(35000, 864, 576, 6000, 25000, 60000) == 576


def test_equal_scores_are_pruned_in_order_and_never_more_than_asked_for():
    assert lowest(torch.zeros(6), 2).tolist() == [True, True, False, False, False, False]
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 2).tolist() == [False, True, False, True, False]
    assert not lowest(torch.ones(3), 0).any()


def test_with_the_target_at_the_initial_rank_nothing_is_ever_pruned():
    run = make_run(allocator(target_rank=6), TOTAL)
    run.fire("start")
    for step in range(1, TOTAL + 1):
        advance(run, step)
        assert all((E != 0).all() for E in gates(run).values())


def test_the_penalty_is_the_mean_of_the_norms_and_not_of_their_squares():
    run = make_run(allocator(orthogonality=0.3), TOTAL)
    run.fire("start")
    total = sum(adapter.penalty() for adapter in run.penalized)
    norms = []
    for _, module in run.adapted():
        A, _, B = module.adapter.components()
        norms += [torch.norm(A @ A.T - torch.eye(6)), torch.norm(B.T @ B - torch.eye(6))]
    torch.testing.assert_close(total, 0.3 * sum(norms) / len(norms))


def test_hidden_components_take_no_part_in_the_penalty():
    A, B, mask = torch.randn(5, 8), torch.randn(7, 5), torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    shown = [0, 1, 3]
    expected = orthogonality(A[shown], B[:, shown], torch.ones(3), 0.5)
    torch.testing.assert_close(orthogonality(A, B, mask, 0.5), expected)


def test_without_weight_there_is_no_penalty():
    run = make_run(allocator(orthogonality=0.0), TOTAL)
    run.fire("start")
    assert [adapter.penalty() for adapter in run.penalized] == [None] * 3


def test_a_step_that_overflowed_or_froze_a_parameter_teaches_nothing():
    method = allocator()
    run = make_run(method, TOTAL)
    run.fire("start")
    advance(run, 1)
    before = {name: tensor.clone() for name, tensor in method.importance.average.items()}
    run.metrics = {"skipped": 1}
    draw_gradients(run, 2, scale=float("inf"))
    run.step += 1
    run.fire("after_step")
    assert all(torch.equal(before[name], tensor) for name, tensor in method.importance.average.items())
    run.metrics = {}
    draw_gradients(run, 3)
    run.parameters[0].param.grad = None
    run.fire("after_step")
    changed = {
        name for name, tensor in method.importance.average.items() if not torch.equal(before[name], tensor)
    }
    assert changed == set(before) - {run.parameters[0].name}


@pytest.mark.parametrize(
    ("t_init", "t_final", "total"), [(10, 14, 24), (0, 24, 24), (0, 23, 24), (None, None, 2)]
)
def test_phases_that_leave_no_step_to_prune_in_are_refused(t_init, t_final, total):
    with pytest.raises(RecipeError, match=r"allocate\.t_init: .* of \d+ steps"):
        allocator(t_init=t_init, t_final=t_final).config.check_length(total)


def test_phases_default_to_shares_of_the_run():
    run = make_run(allocator(t_init=None, t_final=None, every=None), 86_000)
    run.fire("start")
    method = run.callbacks[0]
    assert (method.t_init, method.t_final, method.every) == (8600, 43000, 100)
