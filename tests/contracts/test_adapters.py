"""What every registered adapter owes, at every kind of site, on storages of every kind.

A new method is tested by being registered. Exceptions are declared: by traits, and by the kinds of site.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.build.asked_once import Asked
from lrft.core.adapted import Adapted, adapters_off
from lrft.core.adapter import Adapter, Additive, Shared
from lrft.core.block import AdaptedBlock
from lrft.core.elastic import Elastic
from lrft.core.features import passing
from lrft.core.frozen import FrozenLinear
from lrft.core.params import KINDS, MATRICES, Site
from lrft.core.routed import Routed
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import NotMergeable
from tests.each import each

WIDTH, INNER = 32, 40
SHAPES = [(48, WIDTH, True), (WIDTH, 64, False)]  # out, in, bias
PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)]  # and how far a sum may be off
# Sites that map hidden states alone; those that virtual tokens go through have a suite of their own.
CASES = [
    (name, kind)
    for name in ADAPTERS.names()
    for kind in ADAPTERS.get(name).site_kinds
    if kind in ("linear", "mlp")
]
ALL = pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
# Changes of norms and embeddings have a suite of their own too.
MERGED = [name for name, kind in CASES if kind == "linear" and "mergeable" in ADAPTERS.get(name).provides]
MERGEABLE = pytest.mark.parametrize("name", MERGED)
# An adapter sees a dense weight, or what the storage makes of x: one that computes as torch does, one of 4 bits and one
# of 8 stand for all. Two adapters are put on every storage: a low-rank term, and one that looks at the weight.
SMALL = {  # the sizes divide every width here, and leave methods that need that a choice
    "dropout": 0.0,
    "rank": 8,
    "block_size": 8,
    "group_size": 8,
    "noise": 0.0,
    "features": {"task": ["a", "b"]},
    "vector_length": 8,
    "activation_bits": None,  # no weight says how inputs are rounded
}
FEW, ON_EVERY = ("none", "nf4_reference", "int8"), ("lora", "dora")


def stored(name: str) -> list[str]:
    return QUANTIZERS.names() if name in ON_EVERY else [*FEW]


ALL_STORED = pytest.mark.parametrize(
    ("name", "kind", "storage"), [(*case, storage) for case in CASES for storage in stored(case[0])]
)
MERGEABLE_STORED = pytest.mark.parametrize(
    ("name", "storage"), [(name, storage) for name in MERGED for storage in stored(name)]
)


class Block(nn.Module):
    """A gated feed-forward block as most model families have it."""

    def __init__(self, store: Callable[[int, int], FrozenLinear]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = store(INNER, WIDTH), store(INNER, WIDTH)
        self.down_proj = store(WIDTH, INNER)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Body(nn.Module):
    def __init__(self, site: Adapted) -> None:
        super().__init__()
        self.site = site
        self.recomputed = False

    def forward(self, inputs_embeds: Tensor, **settings: object) -> SimpleNamespace:
        run = partial(checkpoint, self.site, use_reentrant=False) if self.recomputed else self.site
        return SimpleNamespace(last_hidden_state=run(inputs_embeds))


class Model(nn.Module):
    """The smallest model around one site: what a shared part can be bound to."""

    def __init__(self, site: Adapted, shared: Shared | None) -> None:
        super().__init__()
        self.base_model = Body(site)
        self.shared = shared
        if shared is not None:
            shared.bind(SimpleNamespace(hf=self))

    @property
    def site(self) -> Adapted:
        return self.base_model.site

    @property
    def adapter(self) -> Adapter:
        return self.site.adapter

    def forward(self, x: Tensor) -> Tensor:
        """Of rows that have every feature the adapter goes by; tokens alone are a row."""
        features = self.adapter.row_features(self.adapter.config)
        if not features:
            return self.base_model(inputs_embeds=x).last_hidden_state
        rows = x if x.ndim > 2 else x[None]
        with passing([features] * len(rows)):
            return self.base_model(inputs_embeds=rows).last_hidden_state.view(*x.shape[:-1], -1)

    def changeable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of the adapter and of what sites share, frozen ones too."""
        yield from self.adapter.named_parameters()
        if self.shared is not None:
            yield from self.shared.named_parameters(prefix="shared")

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((key, parameter) for key, parameter in self.changeable() if parameter.requires_grad)


def frozen(storage: str, out: int, width: int, bias: bool = False, dtype=torch.float32) -> FrozenLinear:
    weight, offset = torch.randn(out, width) / width**0.5, torch.randn(out) if bias else None
    config = QUANTIZERS.declared(storage).config(method=storage)
    return QUANTIZERS.get(storage)(weight.to(dtype), None if offset is None else offset.to(dtype), config)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Model]:
    """`make(name, kind)` -> a model around one site. Given adapters are two LoRAs of different rank, B = 0."""

    def build(name, kind="linear", storage="none", shape=SHAPES[0], dtype=torch.float32, **settings) -> Model:
        torch.manual_seed(1)
        out, width, bias = shape if kind in MATRICES else (WIDTH, WIDTH, False)
        site = Site("a.b", width, out, has_bias=bias, kind=kind)
        declared, cls = ADAPTERS.declared(name).config, ADAPTERS.get(name)
        for key, value in {**SMALL, "shift": bias}.items():  # a shift merges into a bias
            if key in declared.model_fields:
                settings.setdefault(key, value)
        if "adapters" in declared.model_fields:
            settings.setdefault("adapters", [write_lora(tmp_path, site, rank) for rank in (2, 3)])
        if kind in MATRICES:
            base: nn.Module = frozen(storage, out, width, bias, dtype)
        else:
            base = Block(partial(frozen, storage, dtype=dtype))
            site = replace(site, inner_features=INNER)
        config = declared(method=name, **settings)
        shared = cls.shared(config, {site.name: site}, hidden_size=out)
        adapter = cls.at(config, site, shared)
        adapter.start(base.weight()) if kind in MATRICES else adapter.fit(base)
        return Model((Adapted if kind in MATRICES else AdaptedBlock)(base, adapter), shared)

    return build


@each("name", [name for name in MERGED if not ADAPTERS.get(name).by_position])
def test_an_expert_gets_the_merged_map_of_however_many_tokens_chose_it(make, name):
    """Rows in no order that a batch would tell, and one alone."""
    module = make(name, "expert")
    jiggle(module)
    rows = tokens(module, 5)
    module.train()(rows)
    for count in (1, 5):
        y = module.train()(rows[:count])
        assert y.shape == (count, SHAPES[0][0]) and y.isfinite().all()
        trained = [parameter for _, parameter in module.trained()]
        found = torch.autograd.grad(y.square().sum(), trained, allow_unused=True)
        assert any(gradient is not None for gradient in found)
        with torch.no_grad():
            y = module.eval()(rows[:count])
            expected = F.linear(rows[:count], module.site.merged_weight(), merged_bias(module))
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)


@ALL
def test_what_it_gives_may_be_changed_in_place(make, name, kind):
    """As models do that add one layer's output into another's."""
    module = make(name, kind)
    module.train()
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    y = module(x)
    expected = torch.autograd.grad((y + 1).square().sum(), x, retain_graph=True)[0]
    again = module(x)
    again += 1
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], expected)


def write_lora(folder: Path, site: Site, rank: int) -> str:
    """A LoRA's folder as PEFT writes it."""
    place = folder / f"lora-{site.out_features}-{site.in_features}-{rank}"
    place.mkdir(exist_ok=True)
    key = f"base_model.model.{site.name}.lora_"
    tensors = {
        f"{key}A.weight": torch.randn(rank, site.in_features),
        f"{key}B.weight": torch.zeros(site.out_features, rank),
    }
    save_file(tensors, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "lora_dropout": 0.0}
    (place / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(place)


def merged_bias(model: Model) -> Tensor | None:
    """The bias of a merged site in float32, be it the base's own or a changed one."""
    moved, bias = model.site.merged_bias(), model.site.base.bias
    return bias.float() if moved is None and bias is not None else moved


def jiggle(model: Model, size: float = 0.1) -> None:
    """Move everything by noise; what a clip holds at the start goes to where it does not."""
    torch.manual_seed(2)
    held = "saturated" in model.adapter.provides
    with torch.no_grad():
        for _, parameter in model.changeable():
            parameter.mul_(0 if held else 1).add_(size * torch.randn_like(parameter))


def tokens(model: Model, *shape: int, dtype=torch.float32) -> Tensor:
    return torch.randn(*shape, model.adapter.site.in_features).to(dtype)


@ALL_STORED
@each("shape", SHAPES)
def test_the_start_changes_nothing(make, name, kind, storage, shape):
    model = make(name, kind, storage, shape)
    x = tokens(model, 5)
    if "own_weights" in model.adapter.provides:  # there is no base to be the same as
        bias = model.site.base.bias
        torch.testing.assert_close(
            model(x), F.linear(x, model.adapter.own_weight(), bias), atol=1e-5, rtol=1e-5
        )
        return
    if "moved_start" in model.adapter.provides:  # its authors draw the change too
        moved = (model(x) - model.site.base(x)).norm()
        assert moved.isfinite() and moved > 0
        return
    torch.testing.assert_close(model(x), model.site.base(x), atol=1e-5, rtol=1e-5)


@ALL_STORED
@each(("shape", "dtype", "tolerance"), [(shape, *kind) for shape in SHAPES for kind in PRECISIONS])
def test_forward_is_the_merged_weight(make, name, kind, storage, shape, dtype, tolerance):
    """y = A(x, W) must be x (W + delta(W))^T + b for every mergeable adapter on every storage."""
    model = make(name, kind, storage, shape, dtype)
    jiggle(model)
    x = tokens(model, 2, 5, dtype=dtype)
    got = model(x)
    assert got.dtype == dtype
    if "mergeable" not in model.adapter.provides:  # refusing well is also a contract
        assert got.isfinite().all()
        with pytest.raises(NotMergeable, match=r"a\.b"):
            model.adapter.delta_weight(torch.zeros(1, 1))
        return
    expected = F.linear(x.float(), model.site.merged_weight(), merged_bias(model))
    torch.testing.assert_close(
        got.float(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance
    )


@MERGEABLE_STORED
def test_gradients_are_those_of_the_formula(make, name, storage):
    """The fast path against autograd through `delta_weight`, for the input and every parameter."""
    fast = make(name, storage=storage)
    jiggle(fast)
    x = tokens(fast, 7).requires_grad_(True)
    slow, seed = copy.deepcopy(fast.site), torch.randn(7, 48)
    (fast(x) * seed).sum().backward()
    z = x.detach().clone().requires_grad_(True)
    weight = slow.base.weight()
    bias, moved = slow.base.bias, slow.adapter.delta_bias(slow.base.bias)
    bias = bias if moved is None else bias + moved
    (F.linear(z, weight + slow.adapter.delta_weight(weight), bias) * seed).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, atol=1e-4, rtol=1e-4)
    pairs = zip(fast.adapter.named_parameters(), slow.adapter.named_parameters(), strict=True)
    for (key, a), (_, b) in pairs:
        assert (a.grad is not None) == a.requires_grad, key
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, atol=2e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")


@ALL_STORED
def test_every_trainable_parameter_gets_a_gradient_and_no_other_one_does(make, name, kind, storage):
    model = make(name, kind, storage)
    jiggle(model)
    loss, penalty = model(tokens(model, 3)).square().sum(), model.adapter.penalty()
    (loss if penalty is None else loss + penalty).backward()  # which may be all that trains a router
    assert list(model.trained())
    for key, parameter in model.trained():
        assert parameter.grad.abs().sum() > 0, key
    known = {id(parameter) for _, parameter in model.trained()}
    assert not [key for key, p in model.named_parameters() if p.grad is not None and id(p) not in known]


@ALL_STORED
def test_a_bias_of_the_base_can_train_under_every_adapter(make, name, kind, storage):
    """It does what a constant one does; its gradient is its layer output's, summed, adapter on, off or folded."""
    one, other = (make(name, kind, storage, (48, WIDTH, False)) for _ in range(2))
    for model in (one, other):
        jiggle(model)
    biases = [nn.Parameter(torch.randn(layer.out_features)) for layer in layers(one)]
    for place, layer, bias in zip(
        [one.site] if kind == "linear" else layers(one), layers(other), biases, strict=True
    ):
        place.train_bias(bias)
        layer.bias = bias.detach().clone()
    x = tokens(one, 2, 5)
    torch.testing.assert_close(one(x), other(x), atol=1e-5, rtol=1e-5)
    if "mergeable" in one.adapter.provides and starts_anew(one.adapter):
        one.site.fold()
    seed = torch.randn_like(one(x))
    for context in (nullcontext(), adapters_off(one)):
        with context:
            reached = through_the_last_layer(one, x, seed) if kind == "mlp" else seed
            (one(x) * seed).sum().backward()
        torch.testing.assert_close(biases[-1].grad, reached.sum((0, 1)))
        assert all(bias.grad.abs().sum() > 0 for bias in biases)
        for bias in biases:
            bias.grad = None


def through_the_last_layer(model: Model, x: Tensor, seed: Tensor) -> Tensor:
    """What the gradient `seed` of the output is at the block's last layer, which an adapter may stand behind."""
    given: list[Tensor] = []
    handle = layers(model)[-1].register_forward_hook(lambda *call: given.append(call[-1]))
    y = model(x)
    handle.remove()
    return torch.autograd.grad((y * seed).sum(), given[-1])[0]


def starts_anew(adapter: Adapter) -> bool:
    """Whether a restart can move its change into the base."""
    return "own_weights" not in adapter.provides and "one_stage" not in adapter.requires


def layers(model: Model) -> list[FrozenLinear]:
    """The frozen layers of a site, the one whose output is added last behind the others."""
    base = model.site.base
    return [base] if isinstance(base, FrozenLinear) else [base.gate_proj, base.up_proj, base.down_proj]


@ALL
def test_recomputed_activations_give_the_same_gradients_penalty_included(make, name, kind):
    plain = make(name, kind)
    jiggle(plain)
    x = tokens(plain, 2, 5)
    gradients = []
    for model in (plain, make(name, kind)):
        model.load_state_dict(plain.state_dict())
        model.base_model.recomputed = model is not plain
        with passing([model.adapter.row_features(model.adapter.config)] * len(x)):  # until it has ended
            loss, penalty = model(x).square().mean(), model.adapter.penalty()
            (loss if penalty is None else loss + penalty).backward()
        if "experts" in model.adapter.provides:  # nothing of the pass is kept, nor of the one recomputed
            assert model.adapter.penalty() is None
        gradients.append([parameter.grad for _, parameter in model.trained()])
    torch.testing.assert_close(*gradients)


@ALL
def test_what_its_experts_got_is_told(make, name, kind):
    model = make(name, kind)
    assert isinstance(model.adapter, Routed) == ("routed" in model.adapter.provides)
    if not isinstance(model.adapter, Routed):
        return
    model.adapter.take_load()  # begins the count
    model(tokens(model, 2, 5))
    loads = model.adapter.take_load()
    assert loads and all(load.ndim == 1 and load.min() >= 0 for load in loads.values())
    assert all(
        10 <= load.sum() <= 10 * len(load) for load in loads.values()
    )  # 10 tokens, each to one or more
    again = make(name, kind)
    again.adapter.take_load()
    for _ in range(2):
        again(tokens(again, 2, 5))
    assert all(twice.sum() == 2 * loads[router].sum() for router, twice in again.adapter.take_load().items())


@ALL
def test_masters_are_float32_whatever_the_base(make, name, kind):
    model = make(name, kind, dtype=torch.bfloat16)
    assert {parameter.dtype for _, parameter in model.changeable()} == {torch.float32}


@ALL
def test_an_update_too_small_for_bfloat16_is_not_lost(make, name, kind):
    """Sixteen steps of a sixteenth of a bfloat16 step move the function; in bfloat16 they would all vanish."""
    model = make(name, kind, dtype=torch.bfloat16)
    jiggle(model)
    x = tokens(model, 64, dtype=torch.bfloat16)
    for _, parameter in model.trained():
        rounded = parameter.to(torch.bfloat16)
        assert torch.equal((rounded + rounded.abs() * 2**-12), rounded)
    before = model(x)
    with torch.no_grad():
        for _, parameter in model.trained():
            for _ in range(64):
                parameter.add_(parameter.abs() * 2**-12)
    assert (model(x) != before).any()


@MERGEABLE_STORED
@each("shape", SHAPES)
def test_folding_leaves_the_function_unchanged_on_every_storage(make, name, storage, shape):
    """What was trained goes beside the base and is not rounded into its storage, however coarse that is."""
    model = make(name, storage=storage, shape=shape)
    if not starts_anew(model.adapter):
        with pytest.raises(ValueError, match=r"no base to move it into|is trained in one stage"):
            model.site.fold()
        return
    x, stored = tokens(model, 5), model.site.base.weight().clone()
    for _ in range(2):
        jiggle(model)
        before, merged, bias = model(x), model.site.merged_weight(), merged_bias(model)
        model.site.fold()
        torch.testing.assert_close(model(x), before, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(model.site.merged_weight(), merged, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged_bias(model), bias, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x), model.site.base(x), atol=1e-5, rtol=1e-5)  # nothing left to fold
    assert torch.equal(model.site.base.original.weight(), stored)


@MERGEABLE
def test_the_factors_of_a_site_are_its_change_after_a_fold_too(make, name):
    """None is honest, and all that a change which depends on W can say."""
    model = make(name)
    linear = "linear_delta" in model.adapter.provides
    for folds in range(2):
        jiggle(model)
        factors = model.site.factors()
        assert linear or factors is None
        if factors is not None:
            A, B = factors
            torch.testing.assert_close(B @ A, model.site.change(), atol=1e-5, rtol=1e-5)
        if folds == 0 and starts_anew(model.adapter):
            model.site.fold()


@MERGEABLE
def test_factors_are_the_change(make, name):
    if "linear_delta" not in ADAPTERS.get(name).provides:
        return
    model = make(name)
    jiggle(model)
    weight, factors = model.site.base.weight(), model.adapter.factors()
    if factors is None:  # no low rank: what moves into a base is the change itself
        factors = torch.eye(weight.shape[1]), model.adapter.moved()
    A, B = factors
    assert A.dtype == B.dtype == torch.float32
    torch.testing.assert_close(B @ A, model.adapter.delta_weight(weight), atol=1e-5, rtol=1e-5)


@MERGEABLE
def test_a_change_that_is_declared_linear_is_additive(make, name):
    adapter, declared = make(name).adapter, "linear_delta" in ADAPTERS.get(name).provides
    assert isinstance(adapter, Additive) or not declared
    if declared:
        jiggle(model := make(name))
        x = tokens(model, 5)
        torch.testing.assert_close(
            model(x), model.site.base(x) + model.adapter.update(x), atol=1e-5, rtol=1e-5
        )


@MERGEABLE
def test_hidden_components_are_as_if_they_were_not_there(make, name):
    if "elastic" not in ADAPTERS.get(name).provides:
        return
    model = make(name)
    jiggle(model)
    x, adapter = tokens(model, 5), model.adapter
    assert isinstance(adapter, Elastic) and adapter.mask.all()
    before, half = model(x), torch.arange(adapter.capacity) % 2 == 0
    adapter.show(half)
    A, _ = adapter.factors()
    assert len(A) == half.sum()
    torch.testing.assert_close(model(x), F.linear(x, model.site.merged_weight(), model.site.base.bias))
    adapter.show(torch.zeros(adapter.capacity))
    torch.testing.assert_close(model(x), model.site.base(x))
    adapter.show(torch.ones(adapter.capacity))
    assert torch.equal(model(x), before)


@ALL
def test_state_round_trip(make, name, kind):
    one, two = make(name, kind), make(name, kind)
    jiggle(one)
    two.adapter.load_state_dict(one.adapter.state_dict())
    if one.shared is not None:
        two.shared.load_state_dict(one.shared.state_dict())
    x = tokens(one, 4)
    assert torch.equal(one(x), two(x))


@ALL
@each("shape", SHAPES)
def test_the_declared_count_is_the_counted_one(make, name, kind, shape):
    model = make(name, kind, shape=shape)
    counted = sum(p.numel() for p in model.adapter.parameters() if p.requires_grad)
    assert ADAPTERS.get(name).count(model.adapter.config, model.adapter.site) == counted


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "linear"])
def test_a_dry_run_asks_it_nothing_that_it_cannot_answer(make, name):
    adapter = make(name).adapter
    Asked(type(adapter), adapter.config, adapter.config, adapter.site).all(WIDTH)


@ALL_STORED
def test_rows_do_not_see_each_other(make, name, kind, storage):
    model = make(name, kind, storage)
    jiggle(model)
    x = tokens(model, 2, 6)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)


@ALL
def test_evaluation_is_training_without_dropout(make, name, kind):
    model = make(name, kind)
    jiggle(model)
    x = tokens(model, 6)
    training = model(x)
    torch.testing.assert_close(model.eval()(x), training)


@ALL
def test_parameters_changed_between_two_evaluations_are_seen(make, name, kind):
    model = make(name, kind).eval()
    jiggle(model)
    x = tokens(model, 6)
    with torch.no_grad():
        before = model(x)
    jiggle(model, 0.5)
    assert not torch.equal(model(x), before)
    if "mergeable" in model.adapter.provides:
        merged = F.linear(x, model.site.merged_weight(), merged_bias(model))
        torch.testing.assert_close(model(x), merged, atol=1e-4, rtol=1e-4)


@ALL
def test_switched_off_it_is_the_base(make, name, kind):
    model = make(name, kind)
    jiggle(model)
    x = tokens(model, 3)
    with adapters_off(model):
        assert torch.equal(model(x), model.site.base(x))
    assert not torch.equal(model(x), model.site.base(x))


@pytest.mark.parametrize("name", ADAPTERS.names())
def test_it_goes_on_kinds_of_site_that_there_are(name):
    assert set(ADAPTERS.get(name).site_kinds) <= KINDS.keys()


@ALL
def test_every_parameter_has_a_role(make, name, kind):
    model = make(name, kind)
    for key, parameter in model.adapter.named_parameters():
        assert not parameter.requires_grad or key in model.adapter.roles
    if model.shared is not None:
        assert {key for key, _ in model.shared.named_parameters()} <= model.shared.roles.keys()


@ALL
def test_names_for_peft_cover_the_tensors_for_peft(make, name, kind):
    adapter = make(name, kind).adapter
    form = type(adapter).peft_form()
    if form is not None:
        assert set(form.names) >= set(form.tensors(adapter, None))
        assert form.keys_of(adapter)["peft_type"]


def test_a_change_of_a_method_does_not_inherit_how_peft_holds_that_method():
    """Its function is another one; it says its own form, or has none."""
    child = type("Child", (ADAPTERS.get("lora"),), {})
    assert ADAPTERS.get("lora").peft_form() is not None and child.peft_form() is None
