"""LT-SFT's own statements: the support of what another run moved, exact, global, rewound, and read from its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.core.adapted import Adapted, adapted
from lrft.core.params import Site
from lrft.core.stages import Evidence, SitePlan
from lrft.methods.adapters.lt_sft import LTSFT
from lrft.methods.inits.lt_sft import LTSFTPlaces
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError

SHAPES = {"a": (24, 16), "b": (24, 24), "c": (40, 16)}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned_folder(folder, base, moved, turned=False):
    """A model in which `moved` was added to the base, in two shards."""
    folder.mkdir()
    where = {}
    for index, name in enumerate(base):
        file = f"model-{min(index, 1)}.safetensors"
        where.setdefault(file, {})[f"{name}.weight"] = base[name] + moved[name]
    for file, tensors in where.items():
        save_file({k: (t.mT if turned else t).contiguous() for k, t in tensors.items()}, folder / file)
    index = {"weight_map": {key: file for file, tensors in where.items() for key in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def movements():
    """Nothing of c moved, most of what moved far is in b."""
    scale = {"a": 0.6, "b": 1.0, "c": 0.0}
    return {name: scale[name] * change for name, change in weights(1).items()}


def planned(base, share=0.1, **given):
    config = LTSFT.Config(method="lt_sft", share=share)
    plan = {name: SitePlan(Site(name, width, out), config) for name, (out, width) in SHAPES.items()}
    init = LTSFTPlaces(LTSFTPlaces.Config(method="lt_sft", **given))
    foreseen = init.foresee(plan)
    return init, init.plan(plan, Evidence({}, base.__getitem__, None)), foreseen


def start(init, entry, weight):
    adapter = LTSFT(entry.config, entry.site)
    init.apply(adapter, weight, {}, None)
    return adapter


def count(plan):
    return sum(e.config.entries for e in plan.values() if e.config is not None)


@pytest.mark.parametrize("turned", [False, True])
def test_the_support_is_the_global_top_of_what_was_moved_and_the_start_is_the_pretrained_weight(
    tmp_path, turned
):
    base, moved = weights(), movements()
    _, plan, foreseen = planned(base, tuned=tuned_folder(tmp_path / "tuned", base, moved, turned))
    differences = {name: (base[name] + moved[name] - base[name]).abs() for name in base}
    least = torch.cat([d.flatten() for d in differences.values()]).sort().values[-count(plan)]
    assert count(plan) == count(foreseen) == 38 + 58 + 64
    assert plan["c"].config is None
    for name in "ab":
        init = LTSFTPlaces(
            LTSFTPlaces.Config(method="lt_sft", tuned=str(tmp_path / "tuned"))
        )  # not the one that planned
        adapter = start(init, plan[name], base[name])
        mask = torch.zeros(base[name].numel()).index_fill(0, adapter.places.long(), 1).view(SHAPES[name]) == 1
        assert torch.equal(mask, differences[name] >= least)
        assert torch.equal(Adapted(Dense(base[name]), adapter).merged_weight(), base[name])


@pytest.mark.parametrize(("share", "entries"), [(0.0104, 16), (0.1, 160), (0.0001, 1), (1.0, 1600)])
def test_a_share_is_of_all_weights_together_and_cut_as_in_the_authors_code(share, entries):
    """int(proportion * numbers): 16.64 is 16, where the weights' own 3.99, 5.99 and 6.66 would be 17."""
    _, _, foreseen = planned(weights(), share)
    assert count(foreseen) == entries


def test_more_entries_than_moved_are_refused(tmp_path):
    base, moved = weights(), {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    moved["a"][0, :5] = 1.0
    folder = tuned_folder(tmp_path / "tuned", base, moved)
    init, plan, _ = planned(base, tuned=folder, entries=5)
    assert start(init, plan["a"], base["a"]).places.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        RecipeError, match=r"init\.entries: 6 entries are more than the 5 that .* moved; use fewer"
    ):
        planned(base, tuned=folder, entries=6)


def test_a_later_iteration_keeps_what_was_moved_and_adds_the_furthest_of_the_rest(tmp_path):
    """The second of two iterations by hand: 40 entries were moved before, 30 join, and all begin at the model's own."""
    pretrained, moved = weights(), movements()
    now = {name: tensor.clone() for name, tensor in pretrained.items()}
    generator = torch.Generator().manual_seed(5)
    earlier = torch.randperm(24 * 16, generator=generator)[:40]
    now["a"].view(-1)[earlier] += 0.5
    folders = {
        "tuned": tuned_folder(tmp_path / "tuned", now, moved),
        "original": tuned_folder(tmp_path / "original", pretrained, {n: 0 * t for n, t in moved.items()}),
    }
    init, plan, foreseen = planned(now, **folders, entries=70)
    assert count(plan) == count(foreseen) == 70
    differences = {name: (now[name] + moved[name] - now[name]).abs() for name in now}
    differences["a"].view(-1)[earlier] = -1
    least = torch.cat([d.flatten() for d in differences.values()]).sort().values[-30]
    for name in "ab":
        adapter = start(init, plan[name], now[name])
        wanted = (differences[name] >= least).flatten().nonzero().flatten().tolist()
        assert adapter.places.tolist() == sorted(wanted + (earlier.tolist() if name == "a" else []))
        assert torch.equal(Adapted(Dense(now[name]), adapter).merged_weight(), now[name])
    with pytest.raises(RecipeError, match=r"init\.entries: 39 entries are fewer than the 40 .* write more"):
        planned(now, **folders, entries=39)
    with pytest.raises(RecipeError, match=r"init\.original: .*nothing is no folder"):
        planned(now, tuned=folders["tuned"], original=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="write tuned, or leave original out"):
        LTSFTPlaces.Config(method="lt_sft", original="x")


def test_the_pull_is_by_the_absolute_differences_over_the_numbers_of_the_model():
    config = LTSFT.Config(method="lt_sft", share=0.1, pull=0.3)
    sites = {name: Site(name, width, out) for name, (out, width) in SHAPES.items()}
    numbers = LTSFT.shared(config, sites, 16)
    parts = [LTSFT.at(config, site, numbers) for site in sites.values()]
    for part in parts:
        torch.nn.init.normal_(part.values)
    absolute = torch.cat([part.change().flatten() for part in parts]).abs()
    total = sum(part.penalty() for part in parts)
    torch.testing.assert_close(total, 0.3 * absolute.mean())
    total.backward()
    torch.testing.assert_close(parts[0].values.grad, 0.3 / len(absolute) * parts[0].values.detach().sign())
    base = nn.ModuleList(
        [Adapted(Dense(weights()[name]), part) for name, part in zip(SHAPES, parts, strict=True)]
    )
    whole = nn.ModuleDict(
        {"layers": base, "norm": nn.LayerNorm(24), "head": Dense(torch.ones(5, 24), torch.ones(5))}
    )
    numbers.bind(SimpleNamespace(hf=whole))
    theirs = (
        0.3 * absolute.sum() / (len(absolute) + 2 * 24 + 5 * 24 + 5)
    )  # the code's num_params are the model's
    torch.testing.assert_close(sum(part.penalty() for part in parts), theirs)
    plain = LTSFT.Config(method="lt_sft")
    assert LTSFT.shared(plain, sites, 16) is None and LTSFT.at(plain, sites["a"]).penalty() is None


def test_without_a_tuned_model_places_are_drawn_and_follow_the_seed():
    base = weights()
    init, plan, foreseen = planned(base)
    assert plan == foreseen and count(plan) == 160 and not init.reads_weights
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(start(init, plan["c"], base["c"]).places)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert len(set(drawn[0].tolist())) == len(drawn[0])


def test_differences_of_one_base_add_up_in_any_order(tmp_path):
    base = weights()["a"]
    site = Site("a", 16, 24)
    parts = [LTSFT(LTSFT.Config(method="lt_sft", share=0.2), site) for _ in range(2)]
    for seed, part in enumerate(parts):
        torch.manual_seed(seed)
        part.place(torch.randperm(24 * 16)[: len(part.places)].sort().values)
        torch.nn.init.normal_(part.values)
    task, language = (part.change() for part in parts)
    both = (task != 0) & (language != 0)
    assert both.any()  # some overlap, and add
    torch.testing.assert_close(base + task + language, base + language + task)
    x = torch.randn(5, 16)
    one = Adapted(Dense(Adapted(Dense(base), parts[0]).merged_weight().detach()), parts[1])
    torch.testing.assert_close(one(x), x @ (base + task + language).mT, atol=1e-5, rtol=1e-5)


def recipe(folder, **init):
    written = {
        "model": {"name": str(folder), "dtype": "float32"},
        "adapter": {"method": "lt_sft", "targets": ["q_proj", "down_proj"]},
        "init": {"method": "lt_sft", **init},
        "data": {"train": "x.jsonl", "format": "text"},
    }
    return Recipe.model_validate(written)


def test_a_model_on_disk_that_was_tuned_says_the_places_of_this_one(tiny, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(tiny(), folder)
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors[key].view(-1)[10:30] += 1.0
    save_file(tensors, folder / "model.safetensors")
    sites = dict(adapted(adapt(recipe(tiny(), tuned=str(folder), entries=20)).model.hf))
    assert list(sites) == ["model.layers.1.self_attn.q_proj"]
    assert sites["model.layers.1.self_attn.q_proj"].adapter.places.tolist() == list(range(10, 30))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "is no folder; name the one that lrft merge wrote"),
        ("empty", r"holds no model\.safetensors"),
        ("other", r"holds no a\.weight; name a tuned model of model\.name"),
        ("shape", r"a\.weight of shape \(3, 3\)"),
        ("torn", r"model\.safetensors"),
    ],
)
def test_a_folder_that_is_none_of_the_models_is_refused(tmp_path, fault, message):
    folder = tmp_path / "tuned"
    if fault != "missing":
        folder.mkdir()
    if fault == "other":
        save_file({"b.weight": torch.zeros(24, 24)}, folder / "model.safetensors")
    if fault == "shape":
        save_file({f"{name}.weight": torch.zeros(3, 3) for name in SHAPES}, folder / "model.safetensors")
    if fault == "torn":
        (folder / "model.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(RecipeError, match=rf"init\.tuned: .*{message}"):
        planned(weights(), tuned=str(folder))


@pytest.mark.slow
def test_two_iterations_of_full_and_sparse_runs_move_what_each_chose_and_nothing_else(tiny, tmp_path):
    """Runs and merges as a user makes them: the second keeps the first's entries, and adds as many."""
    common = [
        "model.dtype=float32",
        "train.max_steps=3",
        "data.train.limit=30",
        "data.eval.limit=2",
        "eval.tasks=[]",
    ]
    full = ["adapter=null", "init=null", "trainable=full"]
    base, moved, targets = str(tiny()), [], "adapter.targets=[q_proj, down_proj]"
    for iteration in (1, 2):
        more = ["init.original=" + str(tiny())] if iteration == 2 else []
        for kind, settings in (
            ("full", full),
            (
                "sparse",
                [
                    targets,
                    f"init.tuned={tmp_path / f'full-{iteration}-merged'}",
                    f"init.entries={200 * iteration}",
                    *more,
                ],
            ),
        ):
            folder = tmp_path / f"{kind}-{iteration}"
            train(load_recipe("smoke/lt_sft", [f"model.name={base}", *common, *settings]), folder)
            merge(folder, tmp_path / f"{kind}-{iteration}-merged", None, dtype="float32")
        base = str(tmp_path / f"sparse-{iteration}-merged")
        now, before = (load_file(Path(place) / "model.safetensors") for place in (base, tiny()))
        moved.append({name: (now[name] != tensor).flatten() for name, tensor in before.items()})
        assert sum(int(one.sum()) for one in moved[-1].values()) == 200 * iteration
    assert all(bool(second[first].all()) for first, second in zip(*(m.values() for m in moved), strict=True))
