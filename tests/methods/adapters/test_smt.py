"""SMT's own statements, its blocks as slices of the dense gradient, and the choice of its init."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.build.measure import measure
from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.stages import Evidence, SitePlan
from lrft.methods.adapters.smt import SMT
from lrft.methods.inits.smt import SMTBlocks
from lrft.methods.quant.none import Dense
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

OUT, WIDTH, SIDE = 32, 24, 8


def settings(**given):
    return SMT.Config(method="smt", block=SIDE, **given)


def make(**given):
    torch.manual_seed(0)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    adapter = SMT(settings(**given), Site("a", WIDTH, OUT))
    torch.nn.init.normal_(adapter.D)
    return Adapted(Dense(weight), adapter), weight


def blocks(matrix):
    """Every block of a matrix, row by row, cut by hand."""
    rows, columns = matrix.shape[0] // SIDE, matrix.shape[1] // SIDE
    return [
        matrix[SIDE * i : SIDE * (i + 1), SIDE * j : SIDE * (j + 1)]
        for i in range(rows)
        for j in range(columns)
    ]


def test_gradients_of_blocks_are_slices_of_the_dense_one():
    site, _ = make(blocks=5)
    site.adapter.place(torch.tensor([0, 1, 4, 10, 11]))  # two of one row, two of one column
    weight = site.merged_weight().requires_grad_(True)
    x, z = (torch.arange(7.0 * WIDTH).view(7, WIDTH).sin().requires_grad_(True) for _ in range(2))
    site(x).square().sum().backward()
    F.linear(z, weight).square().sum().backward()
    wanted = torch.stack([blocks(weight.grad)[n] for n in (0, 1, 4, 10, 11)])
    torch.testing.assert_close(site.adapter.D.grad, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, z.grad, atol=1e-4, rtol=1e-4)


def test_other_entries_never_move_and_all_blocks_are_the_whole_weight():
    site, weight = make(blocks=3)
    site.adapter.place(torch.tensor([2, 5, 9]))
    moved = [block.any().item() for block in blocks(site.merged_weight() - weight)]
    assert [n for n, one in enumerate(moved) if one] == [2, 5, 9]
    whole, weight = make(share=1.0)
    with torch.no_grad():
        whole.adapter.D.copy_(torch.stack(blocks(torch.ones(OUT, WIDTH) - weight)))
    torch.testing.assert_close(whole.merged_weight(), torch.ones(OUT, WIDTH))


def test_the_input_alone_is_kept_for_the_backward_pass():
    site, _ = make(blocks=9)  # more columns than the input has
    kept = []
    x = torch.randn(40, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    held = {t.data_ptr() for t in (x, site.adapter.D, site.base.weight())}
    rows_and_columns = 2 * 9 * 4
    assert sum(t.nbytes for t in kept if t.data_ptr() not in held) <= rows_and_columns


@pytest.mark.parametrize("score", ["abs_mean", "mean_abs", "l1", "l2"])
def test_blocks_are_chosen_by_the_score(score):
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(OUT, WIDTH, generator=generator)
    by_hand = {
        "abs_mean": lambda b: b.abs().mean(),
        "mean_abs": lambda b: b.mean().abs(),
        "l1": lambda b: b.abs().sum(),
        "l2": lambda b: b.norm(),
    }[score]
    order = torch.stack([by_hand(block) for block in blocks(gradient)]).argsort(descending=True)
    site, weight = make(blocks=4)
    init = SMTBlocks(SMTBlocks.Config(method="smt", score=score))
    init.apply(site.adapter, weight, {"grad": gradient}, None)
    assert site.adapter.places.tolist() == sorted(order[:4].tolist())


def planned(signals, share=0.25, **given):
    config = settings(share=share)  # 0.25: 3 of 12 blocks
    plan = {name: SitePlan(Site(name, WIDTH, OUT), config) for name in signals}
    init = SMTBlocks(SMTBlocks.Config(method="smt", **given))
    found = init.plan(plan, Evidence({n: {"grad": g} for n, g in signals.items()}, None, None))
    counts = {name: entry.setting("blocks") for name, entry in found.items()}
    foreseen = init.foresee(plan)
    return counts, sum(entry.setting("blocks") or 0 for entry in foreseen.values())


def test_one_budget_is_dealt_over_all_matrices_and_the_dry_run_counts_the_same():
    strong, weak = torch.ones(OUT, WIDTH), torch.full((OUT, WIDTH), 0.1)
    weak[:SIDE, :SIDE] = 5.0
    none = torch.zeros(OUT, WIDTH)
    counts, foreseen = planned({"weak": weak, "none": none, "strong": strong})
    assert counts == {"weak": 1, "none": None, "strong": 8} and foreseen == 9
    counts, foreseen = planned({"weak": weak, "none": none, "strong": strong}, share=0.06)
    assert counts == {"weak": 1, "none": None, "strong": 1} and foreseen == 2  # 2.16 of all, and 0.72 of each
    counts, foreseen = planned({"weak": weak, "none": none, "strong": strong}, blocks=5)
    assert counts == {"weak": 1, "none": None, "strong": 4} and foreseen == 5
    with pytest.raises(RecipeError, match=r"init\.blocks: 37 are more than the 36"):
        planned({"weak": weak, "none": none, "strong": strong}, blocks=37)


def test_groups_of_matrices_have_budgets_of_their_own():
    """However large its gradients, one group takes nothing of the other's; the rest has the adapter's share."""
    strong, weak = torch.ones(OUT, WIDTH), torch.full((OUT, WIDTH), 0.1)
    odd = torch.full((OUT, WIDTH), 0.01)
    odd[:SIDE, :SIDE] = 0.5
    signals = {"0.attn.q": strong, "0.attn.v": odd, "0.mlp.up": weak, "0.mlp.down": 2 * weak, "head": odd}
    counts, foreseen = planned(signals, shares={"mlp.*": 0.5, "attn.*": 0.25})
    assert counts == {"0.attn.q": 6, "0.attn.v": None, "0.mlp.up": None, "0.mlp.down": 12, "head": 3}
    assert foreseen == 6 + 12 + 3
    counts, _ = planned(signals, shares={"*.v": 0.01, "attn.*": 0.25, "*": 0.5})
    assert counts == {"0.attn.q": 3, "0.attn.v": 1, "0.mlp.up": 5, "0.mlp.down": 12, "head": 1}
    with pytest.raises(
        RecipeError, match=r"init\.shares: \*\.k names no layer that no pattern before it names"
    ):
        planned(signals, shares={"*.k": 0.1})
    for clash in ({"scope": "matrix"}, {"blocks": 4}):
        with pytest.raises(ValueError, match="and shares are of groups of them; write one of the two"):
            SMTBlocks.Config(method="smt", shares={"attn.*": 0.1}, **clash)


def test_a_warm_up_asks_for_gradients_of_weights_that_move():
    assert SMTBlocks(SMTBlocks.Config(method="smt")).warm_up is None
    init, weights = (
        SMTBlocks(SMTBlocks.Config(method="smt", warmup_rate=0.01)),
        [torch.ones(3), torch.ones(2)],
    )
    step = init.warm_up(weights)
    weights[0].grad = torch.tensor([5.0, -5.0, 0.0])
    step()
    torch.testing.assert_close(weights[0], torch.tensor([0.99, 1.01, 1.0]))
    assert weights[1].eq(1).all()  # no gradient, and no decay


@pytest.mark.parametrize("changed", [[], ["init.blocks=7"], ["init.scope=matrix"]])
def test_a_dry_run_counts_the_numbers_that_will_train(tiny, changed):
    recipe = load_recipe("smoke/smt", [f"model.name={tiny()}", *changed]).recipe
    sites = list(linear_sites(load_model(recipe.model, meta=True)).values())
    each = [s.in_features * s.out_features / 32**2 for s in sites]
    blocks = {"init.blocks=7": 7, "init.scope=matrix": sum(max(1, round(0.1 * n)) for n in each)}
    wanted = blocks.get(*changed, round(0.1 * sum(each))) if changed else round(0.1 * sum(each))
    assert measure(recipe, optimizer=False)["trainable"] == wanted * 32**2


def test_890_blocks_of_256_are_the_numbers_of_the_authors_script():
    config = SMT.Config(method="smt", blocks=89)
    assert 10 * SMT.count(config, Site("q", 4096, 4096)) == 58_327_040
    assert SMT.Config(method="smt").side(4096, 11008) == SMT.Config(method="smt").side(14336, 4096) == 256


def test_sides_without_a_common_block_are_refused():
    with pytest.raises(ValueError, match="30 x 7 has no blocks"):
        SMT(settings(), Site("a", 7, 30))


def test_a_warm_up_would_move_what_a_loss_compares_with(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    settings = ["model.name=x/y", "init.warmup_rate=0.001", "objective=dpo", "eval.tasks=[]"]
    with pytest.raises(
        RecipeError, match=r"init\.warmup_rate: moves the base, which dpo compares with; write null"
    ):
        load_recipe(
            "smoke/smt", [*settings, f"data={{train: {tmp_path / 'pairs.jsonl'}, format: preference}}"]
        )


def test_another_init_is_refused_in_one_sentence():
    with pytest.raises(RecipeError, match=r"init\.method: does not choose .* write init: smt"):
        load_recipe("smoke/smt", ["model.name=x/y", "init=default"])
