"""AirLLM: ranks within their bounds and the channel, prefixes, what earns what, and networks against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lrft.core.batch import Batch
from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.core.team import Team
from lrft.methods.allocate import _environment, _rank_policy
from lrft.methods.allocate._actor_critic import ActorCritic, Transition, advantages, improve
from lrft.methods.allocate._diffusion import Denoiser, denoising_loss, sample, signal_left
from lrft.methods.allocate._environment import Channel, check_alike
from lrft.methods.allocate.airllm import AirLLM, squared_orthogonality
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import Problem, RecipeError
from lrft.training.flatten import flatten, unflatten
from tests.methods.allocate.allocating import SHAPES, make_run

STEPS, RANK = 14, 4
NUMBERS = sum(width + out + 1 for width, out in SHAPES)  # of one rank everywhere: 40
TIGHT = {
    "bandwidth": [2.6 * NUMBERS * 32 / math.log2(1 + 10**0.5)],
    "snr_db": [0.0, 5.0],
}  # mean rank 2.6 at 5 dB


def allocator(**settings) -> AirLLM:
    given = {"episode": 4, "warmup": 6, "denoising": 5, **TIGHT, **settings}
    return AirLLM(AirLLM.Config(method="airllm", **given))


def make(method=None, seed=0, rank=RANK):
    run = make_run(method or allocator(), STEPS, rank=rank, draw="orthonormal", alpha=8)
    run.seed = seed
    run.fire("start")
    return run


def step(run):
    run.seed_step()
    tokens = torch.randint(9, (2, 8), generator=torch.Generator().manual_seed(run.step))
    nothing = torch.zeros(0, dtype=torch.int64)
    run.micro_batches = [Batch(tokens, tokens, ((0, 0, 8), (1, 0, 5)), nothing, nothing)]
    run.metrics = {}
    run.fire("before_step")
    loss = torch.zeros(())
    for _, module in run.adapted():
        x = torch.ones(2, module.adapter.site.in_features)
        loss = loss + (module(x) - 1).square().mean() + module.adapter.penalty()
    loss.backward()
    run.optimizer.step()
    run.step += 1
    run.record(loss=loss.item())
    run.fire("after_step")
    run.optimizer.zero_grad()
    return dict(run.callbacks[0].ranks), run.metrics


def shown(run):
    return {site: module.adapter.mask.tolist() for site, module in run.adapted()}


def test_ranks_are_whole_within_their_bounds_prefixes_and_fit_through_the_channel():
    run = make(allocator(min_rank=2, bandwidth=[3 * TIGHT["bandwidth"][0]]))
    seen = set()
    for _ in range(STEPS):
        ranks, metrics = step(run)
        assert all(isinstance(rank, int) and 2 <= rank <= RANK for rank in ranks.values())
        assert shown(run) == {site: [1.0] * rank + [0.0] * (RANK - rank) for site, rank in ranks.items()}
        sent = sum(
            rank * (width + out + 1) for rank, (width, out) in zip(ranks.values(), SHAPES, strict=True)
        )
        carried = 3 * TIGHT["bandwidth"][0] * math.log2(1 + 10 ** (metrics["snr_db"] / 10))
        assert metrics["cost"] == pytest.approx(sent * 32 / carried) and metrics["cost"] <= 1
        seen.update(ranks.values())
    assert len(seen) > 1


def test_what_does_not_fit_earns_the_penalty_and_uses_up_no_step(monkeypatch):
    earned = []
    take = _rank_policy.RankPolicy.reward

    def reward(self, drawn, used, number, generator):
        earned.append(number)
        take(self, drawn, used, number, generator)

    monkeypatch.setattr(_rank_policy.RankPolicy, "reward", reward)
    run = make()
    refused = 0
    for _ in range(STEPS):
        before = len(earned)
        _, metrics = step(run)
        refused += metrics["refused"]
        assert len(earned) - before == metrics["refused"] + 1
        assert all(number < -10.1 for number in earned[before:-1])  # cost above 1, times 10 and 0.1
        assert earned[-1] == pytest.approx(-metrics["loss"] - 0.1 * metrics["cost"])
    assert refused > 0 and run.step == STEPS


def test_an_episode_begins_at_half_of_what_each_site_can_have():
    run = make()
    run.seed_step()
    run.micro_batches = []
    method, (first, *others) = run.callbacks[0], run.callbacks[0].adapters
    narrow = method.adapters[first]  # a layer that is narrower than the rank of the others
    narrow.A, narrow.B = nn.Parameter(narrow.A[:2]), nn.Parameter(narrow.B[:, :2])
    narrow.E, narrow.mask = nn.Parameter(narrow.E[:2]), narrow.mask[:2]
    method._begin(run)
    assert method.ranks == {first: 1, **dict.fromkeys(others, RANK // 2)}


def test_narrow_layers_have_of_the_ranks_drawn_up_to_the_recipes_as_many_as_they_can(monkeypatch):
    """Of 13 = 1 + floor(0.75 * (17 - 1)) those that there are, not three quarters of these."""
    method = allocator(bandwidth=[1e15])
    config = ADAPTERS.declared("svd_lora").config(method="svd_lora", rank=17)
    sites = {f"m.{i}": Site(f"m.{i}", width, out) for i, (width, out) in enumerate(SHAPES)}
    plan = method.plan({name: SitePlan(site, config) for name, site in sites.items()}, None)
    assert max(entry.rank for entry in plan.values()) == 6
    run = make(method)
    drawn = run.callbacks[0].policy.act

    def act(state, generator):
        found = drawn(state, generator)
        found.vector = torch.full_like(found.vector, 0.5)
        return found

    monkeypatch.setattr(method.policy, "act", act)
    run.seed_step()
    method.tokens = [0.0, 0.0]
    tried = method._try(run.generator)
    assert set(method.ranks.values()) == {RANK}
    torch.testing.assert_close(tried.used, torch.full((3,), 2 * 12 / 16 - 1))


def test_a_run_is_a_function_of_its_seed():
    def ranks(seed):
        run = make(seed=seed)
        return [step(run)[0] for _ in range(8)]

    assert ranks(0) == ranks(0) != ranks(1)


@pytest.mark.parametrize("until", [5, 8])  # within an episode, whatever was refused, and after more of them
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(until):
    whole, first = make(), make()
    expected = [step(whole)[0] for _ in range(STEPS)]
    for _ in range(until):
        step(first)
    state = unflatten(*flatten(first.callbacks[0].state_dict()))
    method = allocator()
    method.load_state_dict(state)
    second = make_run(method, STEPS, rank=RANK, draw="orthonormal", alpha=8)
    second.model.load_state_dict(first.model.state_dict())
    second.step = until
    second.fire("start")
    assert [step(second)[0] for _ in range(STEPS - until)] == expected[until:]
    one, other = (flatten(run.callbacks[0].state_dict())[0] for run in (whole, second))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_rank_k_is_the_adapter_truncated_to_its_first_k_components():
    run = make()
    for _, module in run.adapted():
        nn.init.normal_(module.adapter.E)
    step(run)
    for _, module in run.adapted():
        adapter, k = module.adapter, int(module.adapter.mask.sum())
        A, E, B = (part.detach() for part in adapter.components())
        torch.testing.assert_close(adapter.change().detach(), 8 / RANK * B[:, :k] @ torch.diag(E[:k]) @ A[:k])


def test_orthonormal_factors_have_no_penalty_and_the_shown_part_of_others_has():
    run = make()
    for _, module in run.adapted():
        A, _, B = module.adapter.components()
        assert module.adapter.penalty().item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        A, B = 2 * A, torch.cat([B[:, :2], 5 * B[:, 2:]], dim=1)
    penalty = squared_orthogonality(A, B, torch.tensor([1.0, 1.0, 0.0, 0.0]), 0.5)
    assert float(penalty) == pytest.approx(0.5 * 2 * 3**2)  # two rows of squared norm 4, columns of 1


def test_a_run_in_which_nothing_fits_ends_after_so_many_vectors():
    method = allocator(tries=9, bandwidth=[0.99 * NUMBERS * 32 / math.log2(1 + 10**0.5)])
    with pytest.raises(RecipeError, match=r"allocate\.tries: step 1: none of 9 vectors .* higher bandwidth"):
        step(make(method))
    assert len(method.policy.replay) == 9


def test_a_channel_that_carries_no_rank_is_refused_and_one_that_carries_few_is_told(monkeypatch):
    plan, told = {}, []
    for name, (width, out) in zip("abc", SHAPES, strict=True):
        plan[name] = SitePlan(Site(name, width, out), ADAPTERS.settings("svd_lora", rank=4))
    planned = allocator().plan(plan, None)
    assert {entry.setting("draw") for entry in planned.values()} == {"orthonormal"}
    monkeypatch.setattr(_environment, "say", told.append)
    allocator(bandwidth=[10.0 * TIGHT["bandwidth"][0]]).plan(plan, None)
    assert not told
    allocator(bandwidth=[2 / 2.6 * TIGHT["bandwidth"][0]]).plan(
        plan, None
    )  # carries 2 of 4, and 2.5 is the middle
    assert len(told) == 1 and "costs 1.25 of what the channel carries" in told[0]
    with pytest.raises(RecipeError, match=r"allocate\.bandwidth: at its best the channel carries 1 / "):
        allocator(bandwidth=[100.0]).plan(plan, None)


def test_the_published_cost_of_opt_is_the_cards():
    """884,880 numbers a unit of mean rank of OPT-1.3B: 10 dB carries a mean rank of 12.2 at 100 MHz."""
    channel = Channel([10.0], [1e8], 1.0, 32)
    opt = 24 * (4 * (2048 + 2048 + 1) + 2 * (2048 + 8192 + 1))
    assert opt == 884_880 and channel.cost(opt) == pytest.approx(1 / 12.2, rel=0.002)
    assert channel.places() == [0.5, 0.5]


def test_advantages_are_the_discounted_sums_of_errors():
    rewards, values = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.1, -0.2])
    gamma = 0.9
    errors = [1 + gamma * 0.1 - 0.5, -2 + gamma * -0.2 - 0.1, 3 + 0.2]
    expected = [sum((gamma * 0.95) ** (k - t) * errors[k] for k in range(t, 3)) for t in range(3)]
    torch.testing.assert_close(advantages(rewards, values, gamma), torch.tensor(expected))


def test_an_actor_moves_to_the_actions_that_were_rewarded():
    torch.manual_seed(0)
    actor, generator = ActorCritic(3, 1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    state = torch.ones(3)
    before = float(actor(state[None])[0].mean)
    for _ in range(15):
        episode: list[Transition] = []
        for _ in range(32):
            episode.append(actor.act(state, generator))
            episode[-1].reward = -float((episode[-1].action - 2).square())
        improve(actor, optimizer, episode, 0.0, generator)
    assert abs(float(actor(state[None])[0].mean) - 2) < abs(before - 2) / 2


class Told(nn.Module):
    """A denoiser that knows the clean vector, which its condition names."""

    def forward(self, noisy, level, condition):
        left = signal_left()[level][:, None]
        return (noisy - left.sqrt() * condition) / (1 - left).sqrt()


def test_with_a_perfect_denoiser_a_sample_is_one_and_a_half_times_its_condition():
    """Guidance: the prediction with a condition c is right for c, that without for 0, so the mix is right for 1.5 c."""
    condition = torch.tensor([0.4, -0.2, 0.0, 0.9])
    found = sample(Told(), condition, 4, 50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor([0.6, -0.3, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_better_rewarded_vectors_weigh_more_in_the_denoising_loss():
    torch.manual_seed(0)
    denoiser = Denoiser(2, 3)
    clean, condition = torch.rand(2, 2) * 2 - 1, torch.randn(2, 3)

    def loss(*rewards):
        return float(
            denoising_loss(
                denoiser, clean, condition, torch.tensor(rewards), torch.Generator().manual_seed(1)
            )
        )

    low, high = loss(0.0, 1.0), loss(1.0, 0.0)
    first, second = 5 * (high - low) + (high + low) / 2, (high + low) / 2 - 5 * (high - low)
    assert loss(2.0, 2.0) == pytest.approx((high + low) / 2, rel=1e-4)  # standardised to 0: both weigh 1
    assert low == pytest.approx((0.9 * first + 1.1 * second) / 2, rel=1e-4) and first > 0 < second


def test_processes_that_chose_different_ranks_are_stopped(monkeypatch):
    run = make()
    check_alike(run, {"a": 1})
    run.team = Team(0, 2)
    monkeypatch.setattr(Team, "largest", lambda self, number: number + 1)
    with pytest.raises(RecipeError, match=r"allocate\.method: the processes chose different ranks"):
        check_alike(run, {"a": 1})


def test_a_run_shorter_than_an_episode_and_ranks_below_the_lowest_are_refused():
    with pytest.raises(RecipeError, match=r"allocate\.episode: 15 is more than the 9 steps"):
        AirLLM.Config(method="airllm").check_length(9)
    (problem,) = AirLLM.Config(method="airllm", min_rank=9).clashes({"adapter": {}, "adapter.rank": 8})
    assert problem == Problem("allocate.min_rank", "is more than adapter.rank; write a lower one")
