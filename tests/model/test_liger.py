"""Liger's kernels where a recipe asks for them, with a stand-in of plain torch that writes over what Liger does."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.api.planning.plan import plan
from lrft.build.adapt import adapt
from lrft.core.params import count
from lrft.model import liger
from lrft.model.fused import fuse
from lrft.model.load import load_model
from lrft.model.trained import parameter_infos
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import MissingExtra, RecipeError

CPU = torch.device("cpu")


class SiLUMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, dh):
        gate, up = (saved.data for saved in ctx.saved_tensors)
        d_gate, d_up = torch.ops.aten.silu_backward(dh * up, gate), dh * F.silu(gate)
        gate.copy_(d_gate)  # no version counter hears of it, as with Triton
        up.copy_(d_up)
        return gate, up


@pytest.fixture
def stand_in(monkeypatch):
    """Modules of Liger's names, and how often each kernel was called."""
    calls = {"norm": 0, "gate": 0}
    functional = ModuleType(liger.FUNCTIONS)

    def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
        assert not in_place, "what comes in belongs to others too"
        calls["norm"] += 1
        wide = X.float()
        normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        if casting_mode == "gemma":
            return (normal * (W.float() + offset)).to(X.dtype)
        return normal.to(X.dtype) * (W + offset)

    def liger_swiglu(a, b):
        calls["gate"] += 1
        return SiLUMul.apply(a, b)

    functional.liger_rms_norm, functional.liger_swiglu = liger_rms_norm, liger_swiglu
    for name in (liger.PACKAGE, "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, liger.FUNCTIONS, functional)
    monkeypatch.setattr(liger, "find_spec", lambda name: None if name != liger.PACKAGE else object())
    return SimpleNamespace(calls=calls, functional=functional)


def step(model, ids):
    """Hidden states, and the gradient of every trained number."""
    model.train()
    trained = [info.param for info in parameter_infos(model)]
    y = model.hf(input_ids=ids, use_cache=False).logits
    seed = torch.linspace(-1, 1, y.numel()).sin_().view_as(y).to(y.dtype)
    return [y, *torch.autograd.grad(y, trained, seed)]


@pytest.mark.parametrize(("family", "norms", "gates"), [("llama", 5, 2), ("gemma2", 9, 0)])
def test_values_and_gradients_are_those_of_the_models_own_code(
    tiny, stand_in, monkeypatch, family, norms, gates
):
    more = [f"model.name={tiny(family)}", "model.dtype=float32", "train.device=cpu"]
    more += ["model.attention=eager", "train.packing=false"]
    ids = torch.arange(3, 17).view(2, 7)
    monkeypatch.setattr("lrft.build.adapt.check_liger", lambda device: None)
    found = {}
    for asked in ("false", "true"):
        recipe = load_recipe("recipes/smoke/lora.yaml", [*more, f"model.liger={asked}"]).recipe
        model = adapt(recipe).model
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=torch.Generator().manual_seed(1))
        stand_in.calls.update(norm=0, gate=0)
        found[asked] = step(model, ids)
        expected = {"norm": norms, "gate": 2 * gates} if asked == "true" else {"norm": 0, "gate": 0}
        assert stand_in.calls == expected  # of a gate the backward pass forms the product again, on copies
    assert count(info.param for info in parameter_infos(model)) > 0
    for one, other in zip(found["false"], found["true"], strict=True):
        assert (other - one).norm() < 1e-5 * one.norm()


def test_a_run_that_is_only_scored_computes_without_it(tiny, stand_in):
    more = [f"model.name={tiny()}", "model.liger=true", "train.device=cpu"]
    model = adapt(load_recipe("recipes/smoke/lora.yaml", more).recipe, trains=False).model
    model.set_attention("eager")
    model.hf(input_ids=torch.arange(3, 9)[None])
    assert stand_in.calls == {"norm": 0, "gate": 0}


@pytest.mark.parametrize("what", ["norm", "norm's gradient", "gate"])
def test_a_kernel_that_gives_something_else_is_refused(tiny, stand_in, what):
    functional = stand_in.functional
    if what == "gate":
        functional.liger_swiglu = lambda a, b: a * F.silu(b)
    else:
        inner = functional.liger_rms_norm

        def wrong(X, *given):
            y = inner(X, *given)
            return y * 1.1 if what == "norm" else y + (X.detach() - X)

        functional.liger_rms_norm = wrong
    model = load_model(ModelSection(name=str(tiny()), dtype="bfloat16"))
    with pytest.raises(
        RecipeError, match=r"model\.liger: the kernel of liger_kernel gives other values than Llama"
    ):
        fuse(model.hf, with_liger=True)


def test_it_is_refused_before_anything_is_loaded(tiny, monkeypatch):
    recipe = load_recipe(
        "recipes/smoke/lora.yaml", ["model.name=none/such", "model.liger=true", "train.device=cpu"]
    )
    with pytest.raises(
        RecipeError, match=r"model\.liger: its kernels run on a GPU, and this training is on cpu"
    ):
        adapt(recipe.recipe)
    given = [f"model.name={tiny()}", "model.liger=true", "train.device=cpu"]
    with pytest.raises(RecipeError, match=r"model\.liger: its kernels run on a GPU"):
        plan("recipes/smoke/lora.yaml", overrides=given)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"model\.liger: needs `pip install lrft\[liger\]`"):
        liger.check_liger(torch.device("cuda"))
    with pytest.raises(
        RecipeError, match=r"model\.liger: its kernels would stand in a body that is compiled"
    ):
        load_recipe("recipes/smoke/lora.yaml", ["model.liger=true", "model.compile=true"])


def test_others_names_for_it_lead_to_the_key():
    with pytest.raises(RecipeError, match=r"model\.liger"):
        load_recipe("recipes/smoke/lora.yaml", ["train.use_liger_kernel=true"])
