"""What every registered init owes, on the simplest adapter it can start and on dense and quantized bases.

What an init cannot promise it declares: `moved_start`, `rounded_base`, and by which `residual` it can be asked for.
"""

from __future__ import annotations

import copy
import typing
import zlib
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import Adapted
from lrft.core.less import start_of
from lrft.core.params import Site
from lrft.core.stages import Evidence, Init, SitePlan, Tokens
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS, SIGNALS
from lrft.registry.config import Source
from lrft.registry.errors import RecipeError

ROUNDED = ["nf4_reference", "int8_reference", "nf_blocks"]


# Adapters whose own start prunes or rounds the weight, at every rank.
WHOLE = {"chosen_entries", "chosen_rotation", "smoothed"}


def declares(name: str, trait: str) -> bool:
    declared = INITS.declared(name)
    return trait in declared.provides | declared.requires


def ways(name: str) -> list[str | None]:
    """What can be written for `residual`; [None] where the init leaves no choice."""
    field = INITS.declared(name).config.model_fields.get("residual")
    options = [] if field is None else _literals(field.annotation)
    return options or [None]


def _literals(annotation) -> list:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in _literals(part)]


NAMES = INITS.names()
RESIDUAL = [name for name in NAMES if INITS.get(name).residual]
MOVED = [name for name in NAMES if declares(name, "moved_start")]
STANDING = [
    name for name in MOVED if declares(name, "feature_axes")
]  # whose product is no change of low rank
ANCHORABLE = [name for name in NAMES if "anchor" in ways(name)]
JOINT = [
    name for name in RESIDUAL if name not in ANCHORABLE
]  # the start is fitted to one rounding of the base
WAYS = [(name, way) for name in RESIDUAL for way in ways(name)]
STORED = [
    (name, storage)
    for name in NAMES
    for storage in ["none", *ROUNDED]
    if storage != "none" or not declares(name, "rounded_base")
]
CHOICES = [
    (name, {key: option})
    for name in NAMES
    for key, field in INITS.declared(name).config.model_fields.items()
    for option in _literals(field.annotation)
    if key not in ("method", "residual")
]


def less(site):
    """The base as what it gave up left it; None where it gave up nothing."""
    return start_of(site.base)


def offset(site):
    return () if less(site) is None else less(site).offset or ()


ALL = pytest.mark.parametrize("name", NAMES)
SCALES = pytest.mark.parametrize("alpha", [8.0, 3.0])
EVERY_STORAGE = pytest.mark.parametrize(("name", "storage"), STORED)
EVERY_WAY = pytest.mark.parametrize(("name", "way"), WAYS)


def adapter_for(name: str) -> str:
    """The registered adapter that has what the init requires, with the fewest traits of those that fit best.

    Best is one whose start can be checked all the way: a linear change with a rank and an alpha. An init for other
    adapters is tried on what there is for it, and one that chooses places on the adapter of its name.
    """
    declared = {adapter: ADAPTERS.declared(adapter) for adapter in ADAPTERS.names()}
    wanted = INITS.declared(name).requires & frozenset().union(*(d.provides for d in declared.values()))

    def fit(adapter: str) -> tuple[int, bool, int, str]:
        d = declared[adapter]
        lacking = len({"mergeable", "linear_delta"} - d.provides)
        lacking += len({"rank", "alpha"} - d.config.model_fields.keys())
        return lacking, "low_rank" not in d.provides, len(d.provides), adapter

    linear = {adapter for adapter in declared if "linear" in ADAPTERS.get(adapter).site_kinds}
    possible = [adapter for adapter, d in declared.items() if adapter in linear and wanted <= d.provides]
    if name in possible and "placed" in wanted:
        return name
    assert possible, f"{name} requires what no adapter has: {sorted(wanted)}"
    return min(possible, key=fit)


def settings_for(adapter: str, rank: int, alpha: float):
    """Its settings, with a rank and an alpha where it has them, and inputs unrounded, which no weight could say."""
    declared = ADAPTERS.declared(adapter).config
    given = {"rank": rank, "alpha": alpha, "activation_bits": None}
    held = {key: value for key, value in given.items() if key in declared.model_fields}
    return declared(method=adapter, **held)


def storage_for(name: str) -> str:
    return "nf4_reference" if declares(name, "rounded_base") else "none"


def build(name: str, **settings):
    """The init, with some rows wherever its settings must name some."""
    config = INITS.declared(name).config
    rows = {
        key: Source(source="rows.jsonl")
        for key, field in config.model_fields.items()
        if field.is_required() and field.annotation is Source
    }
    return INITS.get(name)(config(method=name, **rows, **settings))


def storing(storage: str):
    """The storage format as an init is given it."""
    config = QUANTIZERS.declared(storage).config(method=storage)

    def store(weight, bias=None, **settings):
        chosen = type(config).model_validate({**config.model_dump(), **settings})
        return QUANTIZERS.get(storage)(weight, bias, chosen)

    return store


def passed(out: int, width: int, seed: int):
    """Inputs (40, width) and output gradients (40, out) of a micro-batch; some directions matter more than others."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(40, width, generator=generator), torch.randn(40, out, generator=generator)
    return x * 0.85 ** torch.arange(width), dy * 0.85 ** torch.arange(out)


def measured(init, out: int = 48, width: int = 32, rank: int = 4, site: int = 0):
    """Every statistic that an init asks for, over three micro-batches."""
    found = {}
    for need in init.needs:
        name, _, label = need.partition("@")
        cls, asked = (
            SIGNALS.get(name),
            SimpleNamespace(rank=rank, percent=25.0, activation_bits=4, cache_bits=None, clip=1.0),
        )
        statistic = cls(**init.signal_options(name, asked))
        for batch in range(3):
            x, dy = passed(out, width, zlib.crc32(label.encode()) + 100 * site + batch)
            statistic.update(
                dy.roll(1, 0) if cls.of_output else x, dy, Tokens(torch.arange(40), torch.arange(39))
            )
        found[need] = statistic.result()
    return found


def weight_and_signals(out=48, width=32):
    """The weight that `make` starts from, and the gradient at it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, width, generator=generator) / width**0.5
    return weight, measured(build("lora_ga"), out, width)


def make(
    name,
    storage=None,
    alpha=8.0,
    rank=4,
    out=48,
    width=32,
    *,
    seed=0,
    dtype=torch.float32,
    saved=None,
    **settings,
) -> tuple[Adapted, torch.Tensor]:
    """A site that the init has started, or that a checkpoint's parts restore, and its pretrained weight."""
    weight = weight_and_signals(out, width)[0].to(dtype)
    init = build(name, **settings)
    adapter = adapter_for(name)
    config = settings_for(adapter, rank, alpha)
    torch.manual_seed(seed)
    part = ADAPTERS.get(adapter).at(config, Site("a", width, out))
    signal = measured(init, out, width, rank) if saved is None else {}
    quantize = storing(storage or storage_for(name))
    if saved is not None:
        saved = {f"a.{kind}.{key}": tensor for kind, part_ in saved.items() for key, tensor in part_.items()}
    builder = SiteBuilder(quantize, init=init, signals={"a": signal}, saved=saved)
    return builder.adapt("a", part, weight, None, quantize), weight


def chosen(way):
    return {} if way is None else {"residual": way}


def move(site: Adapted, size: float = 0.1) -> torch.Tensor:
    """Train a little; the change of the weight that came of it."""
    before = site.adapter.delta_weight(torch.zeros(48, 32))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in site.adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return (site.adapter.delta_weight(torch.zeros(48, 32)) - before).detach()


def close(found, expected, atol=1e-5, rtol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(MOVED)))
@SCALES
def test_the_model_is_the_pretrained_one_at_step_0(name, alpha):
    """On a base that rounds, a joint decomposition is nearer to it than rounding alone."""
    site, weight = make(name, alpha=alpha)
    x = torch.randn(7, 32)
    if declares(name, "rounded_base"):
        plain = storing(storage_for(name))(weight)
        assert (site.merged_weight() - weight).norm() < 0.95 * (plain.weight() - weight).norm()
        close(site(x), F.linear(x, site.merged_weight()))
    else:
        close(site(x), F.linear(x, weight))


@pytest.mark.parametrize(("name", "settings"), CHOICES, ids=str)
def test_every_choice_of_a_setting_keeps_the_promise_of_step_0(name, settings):
    site, weight = make(name, **settings)
    if not declares(name, "moved_start") and not declares(name, "rounded_base"):
        x = torch.randn(7, 32)
        close(site(x), F.linear(x, weight))


@pytest.mark.parametrize("name", sorted(set(MOVED) - set(STANDING)))
@pytest.mark.parametrize("storage", ["none", *ROUNDED])
def test_a_moved_start_is_a_finite_low_rank_shift_of_an_untouched_base(name, storage):
    site, weight = make(name, storage)
    plain = storing(storage)(weight).weight()
    assert torch.equal(site.base.weight(), plain) and less(site) is None
    shift = site.merged_weight() - plain
    assert shift.isfinite().all() and shift.norm() > 0
    if WHOLE & site.adapter.provides:
        return
    values = torch.linalg.svdvals(site.adapter.delta_weight(plain))
    rank = getattr(site.adapter.config, "rank", len(values) // 4)
    assert (values[rank:] < 1e-5 * values[0]).all()
    x = torch.randn(7, 32)
    close(site(x), F.linear(x, plain + shift))


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("storage", ROUNDED)
@SCALES
def test_a_joint_decomposition_is_nearer_to_the_weight_than_rounding_alone(name, storage, alpha):
    site, weight = make(name, storage, alpha=alpha)
    plain = storing(storage)(weight).weight()
    assert not less(site).anchored
    assert (site.merged_weight() - weight).norm() < 0.99 * (plain - weight).norm()


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(MOVED) - set(JOINT)))
@pytest.mark.parametrize("storage", ROUNDED)
def test_an_anchored_quantized_base_is_the_plain_quantized_one_at_step_0(name, storage):
    site, weight = make(name, storage, **chosen("anchor" if name in ANCHORABLE else None))
    x = torch.randn(7, 32)
    close(site(x), storing(storage)(weight)(x), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ANCHORABLE)
def test_on_quantized_bases_anchoring_is_the_default_and_on_dense_ones_rewriting(name):
    assert less(make(name, "nf4_reference")[0]).anchored
    assert not less(make(name, "none")[0]).anchored
    assert less(make(name, "none", residual="anchor")[0]).anchored
    assert not less(make(name, "nf4_reference", residual="rewrite")[0]).anchored


@EVERY_WAY
def test_merging_onto_the_pretrained_weight_forgets_the_start_and_keeps_the_change(name, way):
    site, weight = make(name, **chosen(way))
    pretrained = site.pretrained_weight()
    moved = move(site)
    close(site.merged_weight(weight), weight + moved)
    close(site.merged_weight(), pretrained + moved)
    x = torch.randn(5, 32)
    close(site(x), F.linear(x, pretrained + moved), atol=1e-4)
    if not declares(name, "rounded_base"):
        close(pretrained, weight)


@EVERY_WAY
@pytest.mark.parametrize("storage", ROUNDED)
def test_switched_off_is_the_pretrained_map_as_the_base_stores_it(name, way, storage):
    site, weight = make(name, storage, **chosen(way))
    start = 0 if less(site).anchored else site.start.delta_weight(weight)
    expected = site.base.original.weight() + start
    move(site)
    site.enabled = False
    x = torch.randn(5, 32)
    close(site(x), F.linear(x, expected))


@EVERY_STORAGE
def test_a_checkpoint_restores_the_stored_base_bit_for_bit_without_starting_anew(name, storage):
    for way in ways(name):
        site, _ = make(name, storage, **chosen(way))
        saved = {} if site.start is None else {"start": copy.deepcopy(site.start.state_dict())}
        for key, part in zip("AB", offset(site), strict=False):
            saved.setdefault("offset", {})[key] = part.clone()
        again, _ = make(name, storage, saved=saved, seed=1, **chosen(way))
        assert (less(again) and less(again).anchored) == (less(site) and less(site).anchored)
        kept = site.base.state_dict()
        assert all(torch.equal(kept[key], found) for key, found in again.base.state_dict().items())
        again.adapter.load_state_dict(site.adapter.state_dict())
        x = torch.randn(5, 32)
        assert torch.equal(again(x), site(x))


@ALL
def test_what_is_kept_beside_the_adapter_is_a_constant(name):
    """It goes into checkpoints as tensors of its own, away from the optimizer."""
    site, _ = make(name)
    assert (site.start is not None) == (name in RESIDUAL)
    for part in offset(site):
        assert not part.requires_grad and part.dtype == torch.float32
        assert part.data_ptr() not in {p.data_ptr() for p in site.adapter.parameters()}


@EVERY_STORAGE
def test_the_same_seed_gives_the_same_start(name, storage):
    one, two = (make(name, storage)[0] for _ in range(2))
    first, second = one.adapter.state_dict(), two.adapter.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(one.base.weight(), two.base.weight())


@ALL
def test_what_trains_is_the_adapters_business(name):
    site, _ = make(name)
    adapter = adapter_for(name)
    config = settings_for(adapter, 4, 8.0)
    fresh = ADAPTERS.get(adapter).at(config, Site("a", 32, 48))
    flags = [(key, p.requires_grad, p.dtype) for key, p in site.adapter.named_parameters()]
    assert flags == [(key, p.requires_grad, p.dtype) for key, p in fresh.named_parameters()]


@EVERY_STORAGE
def test_the_start_can_be_trained(name, storage):
    """A start with nothing but zeros would look right and never move."""
    site, _ = make(name, storage)
    (site(torch.randn(16, 32)) * torch.randn(16, 48)).sum().backward()
    grads = [p.grad for p in site.adapter.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert any(grad.abs().max() > 1e-6 for grad in grads)


@ALL
def test_a_half_precision_weight_starts_float32_factors(name):
    site, weight = make(name, dtype=torch.bfloat16)
    assert {p.dtype for p in site.adapter.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in site.adapter.parameters())
    if not declares(name, "moved_start"):
        error = (site.merged_weight() - weight.float()).norm() / weight.float().norm()
        assert error < (0.1 if declares(name, "rounded_base") else 4e-3)


@pytest.mark.parametrize(
    "name", [n for n in RESIDUAL if ADAPTERS.get(adapter_for(n)).peft_form() is not None]
)
def test_peft_tensors_with_the_start_are_the_change_alone(name):
    site, weight = make(name)
    move(site)
    form = type(site.adapter).peft_form()
    tensors, keys = form.tensors(site.adapter, site.start), form.keys(site.adapter.config, True)
    assert keys["r"] == tensors["A"].shape[0] == 8
    change = keys["lora_alpha"] / keys["r"] * tensors["B"] @ tensors["A"]
    close(weight + change, site.merged_weight(weight))


@pytest.mark.parametrize("name", ANCHORABLE)
def test_a_change_much_smaller_than_the_start_survives_bfloat16(name):
    """Subtracting two bfloat16 products would drown it; the difference of the factors is formed first."""
    site, _ = make(name, residual="anchor")
    with torch.no_grad():
        moving = getattr(site.adapter, "B", None)
        moving = next(site.adapter.parameters()) if moving is None else moving
        moving.add_(1e-3 * torch.randn_like(moving))
    x = torch.randn(64, 32)
    exact = site(x) - site.base(x)
    x16 = x.to(torch.bfloat16)
    moved = site.adapter.moved(site.start)  # factors, or the change itself
    rough = x16
    for factor in moved if isinstance(moved, tuple) else (moved,):
        rough = rough @ factor.to(torch.bfloat16).mT
    rough = rough.float()
    assert (rough - exact).norm() < 0.02 * exact.norm()


@ALL
def test_what_is_needed_is_measured_and_can_be_asked_for(name):
    for _, settings in [(name, {}), *(choice for choice in CHOICES if choice[0] == name)]:
        init = build(name, **settings)
        for need in init.needs:
            signal, marker, label = need.partition("@")
            assert signal in SIGNALS.names()
            assert not marker or isinstance(init.sources()[label], Source)
        assert not init.needs or init.config.batches > 0


@ALL
@pytest.mark.filterwarnings("ignore:init.batches")
def test_a_plan_keeps_the_sites_and_only_writes_what_adapter_and_storage_understand(name):
    adapter, init = adapter_for(name), build(name)
    config = settings_for(adapter, 4, 8.0)
    sites = {f"layer{i}": Site(f"layer{i}", 32, 48) for i in range(3)}
    plan = {key: SitePlan(site, config) for key, site in sites.items()}
    signals = {key: measured(init, site=i) for i, key in enumerate(sites)}
    evidence = Evidence(signals, lambda key: weight_and_signals()[0], storing(storage_for(name)))
    found = {**plan, **init.plan(copy.deepcopy(plan), evidence)}
    assert found.keys() == plan.keys()
    for entry in found.values():
        assert entry.config is None or type(config).model_validate(entry.config.model_dump())
        storing(storage_for(name))(torch.randn(48, 32), **entry.quantization)


HIGH = pytest.mark.parametrize("rank", [10, 24, 40])


def plan_at(name, rank, out, width):
    config = settings_for(adapter_for(name), rank, alpha=8.0)
    return {"layer": SitePlan(Site("layer", width, out), config)}


@ALL
@HIGH
@pytest.mark.parametrize(("out", "width"), [(16, 32), (32, 16)])
@pytest.mark.filterwarnings("ignore:init.batches")
def test_a_rank_above_a_side_of_the_layer_starts_or_is_refused_with_the_highest_that_does(
    name, rank, out, width
):
    """10 has too few directions where a start takes two for each component."""
    init = build(name)
    most = init.most_rank(Site("layer", width, out))
    if most is not None and rank > most:
        with pytest.raises(
            RecipeError, match=rf"adapter\.rank: rank {rank} .* at layer, .* at most {most} there"
        ):
            init.check(plan_at(name, rank, out, width))
        rank = most
    init.check(plan_at(name, rank, out, width))
    site, _ = make(name, rank=rank, out=out, width=width)
    (site(torch.randn(16, width)) * torch.randn(16, out)).sum().backward()
    assert all(p.isfinite().all() for p in site.adapter.parameters())
    assert any(p.grad.abs().max() > 0 for p in site.adapter.parameters() if p.requires_grad)


@ALL
def test_a_layer_that_a_planner_leaves_out_may_be_as_small_as_it_likes(name):
    plan = plan_at(name, 40, 16, 16)
    plan["layer"].config = None
    build(name).check(plan)


LIMITED = [name for name in NAMES if build(name).most_rank(Site("layer", 16, 16)) is not None]


@pytest.mark.parametrize("name", LIMITED)
def test_a_dry_run_refuses_a_rank_that_cannot_start(tiny, name):
    """Before any weight is read; with EVA and LQ-LoRA too, which plan ranks and bits from what is measured."""
    adapter = adapter_for(name)
    section = {"method": adapter, "rank": 4, "targets": "all-linear"}
    rows = {
        key: "rows.jsonl"
        for key, field in INITS.declared(name).config.model_fields.items()
        if field.is_required() and field.annotation is Source
    }
    written = {"model": {"name": str(tiny())}, "data": {"train": "x.jsonl", "format": "text"}}
    written["init"] = {"method": name, **rows}

    def plan(**changes):
        recipe = Recipe.model_validate({**written, "adapter": {**section, **changes}})
        return plan_without_weights(recipe, load_model(recipe.model, meta=True)).plan

    assert plan()
    with pytest.raises(RecipeError, match=r"rank 999 .*\d+ of 14 layers"):
        plan(rank=999)
    if "rank_pattern" in ADAPTERS.declared(adapter).config.model_fields:
        with pytest.raises(RecipeError, match=r"rank 999 .* model\.layers\.1\.self_attn\.v_proj.*1 of 14"):
            plan(rank_pattern={"layers.1.self_attn.v_proj": 999})


def test_an_init_may_be_for_adapters_without_a_rank(monkeypatch):
    """Such as one that sets a block of values: an adapter is found for it, and it starts that."""

    class Ones(Init):
        name = "ones"
        requires = {"adapters"}

        @torch.no_grad()
        def apply(self, adapter, weight, signal, quantize):
            for parameter in adapter.parameters():
                parameter.fill_(1e-3)

    alone = ADAPTERS.declared("bat")
    monkeypatch.setattr(type(ADAPTERS), "names", lambda self: ["bat"] if self is ADAPTERS else ["default"])
    monkeypatch.setattr(type(INITS), "declared", lambda self, name: alone if name == "bat" else Ones)
    assert adapter_for("ones") == "bat"
    config = settings_for("bat", 8, 8.0)
    part = ADAPTERS.get("bat")(config, Site("a", 32, 48))
    weight = torch.randn(48, 32)
    site = SiteBuilder(storing_none, init=Ones(None)).adapt("a", part, weight, None, storing_none)
    assert site.start is None and bool((site.adapter.D == 1e-3).all())
    assert not torch.equal(site.merged_weight(), weight)


def storing_none(weight, bias=None, **settings):
    return QUANTIZERS.get("none")(weight, bias)
