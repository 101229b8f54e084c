"""X-LoRA's own statements, and PEFT's X-LoRA on the same adapters and classifier."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import adapted, adapters_off
from lrft.core.stages import SitePlan
from lrft.methods.adapters.xlora import XLoRA
from lrft.model.attach import attach
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import INITS, QUANTIZERS
from lrft.registry.errors import RecipeError
from tests.model.test_families import DOCUMENTS, batch_of

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def write(folder, shapes, rank, seed, **keys):
    """A LoRA's folder as PEFT writes it, with a change of its own at every site of `shapes` (out, in)."""
    torch.manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for site, (out, width) in shapes.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = torch.randn(rank, width) / width**0.5
        tensors[f"base_model.model.{site}.lora_B.weight"] = torch.randn(out, rank) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none"}
    config |= {
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, **keys}), encoding="utf-8")
    return str(folder)


@pytest.fixture
def given(tiny, tmp_path):
    """Two LoRAs of the tiny model: rank 2 on q_proj and v_proj, rank 3 with rsLoRA's scale on q_proj and up_proj."""
    sites = linear_sites(load_base(tiny))
    shapes = {name: (site.out_features, site.in_features) for name, site in sites.items()}

    def of(*leaves):
        return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] in leaves}

    one = write(tmp_path / "one", of("q_proj", "v_proj"), 2, seed=1)
    return [one, write(tmp_path / "two", of("q_proj", "up_proj"), 3, seed=2, use_rslora=True)]


def load_base(tiny):
    return load_model(ModelSection(name=str(tiny()), dtype="float32", attention="sdpa"))


def mixed(tiny, folders, storage="none", **settings):
    model, config = load_base(tiny), XLoRA.Config(method="xlora", adapters=folders, **settings)
    plan = {name: SitePlan(site, config) for name, site in linear_sites(model).items()}
    stored = QUANTIZERS.declared(storage).config(method=storage)

    def quantize(weight, bias=None, **_):
        return QUANTIZERS.get(storage)(weight, bias, stored)

    init = INITS.get("default")(INITS.declared("default").config(method="default"))
    attach(model, plan, SiteBuilder(quantize, XLoRA, config, init))
    model.eval()
    return model


def logits(model, ids=IDS, **kwargs):
    return model.hf(input_ids=ids, use_cache=False, **kwargs).logits


def with_deltas(tiny, folders, weights):
    """The logits of the base with weights[a] * delta_a added to its dense weights."""
    base, model = load_base(tiny), mixed(tiny, folders)
    for name, site in adapted(model.hf):
        part = site.adapter
        for a, weight in enumerate(weights):
            rows = part.owner == a
            delta = part.scales[a] * part.B[:, rows] @ part.A[rows]
            base.hf.get_submodule(name).weight.data += weight * delta.detach()
    return logits(base)


def fix(model, scalings):
    """Make the classifier say `scalings` whatever it reads."""
    last = model.shared.linears[-1]
    nn.init.zeros_(last.weight)
    last.bias.data.copy_(torch.tensor(scalings))


VARIANTS = [
    {},
    {"layerwise": True},
    {"depth": 3, "size": 20},
    {"temperature": 0.3, "global_weight": 1.7},
    {"top_k": 1},
    {"softmax": False},
    {"softmax": False, "top_k": 1, "softmax_topk": True, "layerwise": True},
]
PEFT_NAMES = {
    "depth": "xlora_depth",
    "size": "xlora_size",
    "temperature": "softmax_temperature",
    "softmax": "enable_softmax",
    "top_k": "top_k_lora",
    "softmax_topk": "enable_softmax_topk",
    "layerwise": "layerwise_scalings",
    "global_weight": "global_scaling_weight",
}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_logits_and_gradients_are_pefts(tiny, given, settings):
    peft = pytest.importorskip("peft")
    ours = mixed(tiny, given, **settings)
    base = load_base(tiny).hf
    base.config.use_cache = False
    keys = {PEFT_NAMES[key]: value for key, value in settings.items()}
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        adapters={str(i): folder for i, folder in enumerate(given)},
        **keys,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(base, config).eval()
    own = [
        layer for layer in theirs.base_model.internal_xlora_classifier.layers if isinstance(layer, nn.Linear)
    ]
    for linear, other in zip(ours.shared.linears, own, strict=True):
        nn.init.normal_(linear.weight, std=0.5)
        other.load_state_dict(linear.state_dict())
        other.requires_grad_(True)
    got, expected = logits(ours), theirs(input_ids=IDS, use_cache=False).logits
    assert (got - logits(load_base(tiny))).abs().max() > 1e-2
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for value in (got, expected):
        value.square().mean().backward()
    for linear, other in zip(ours.shared.linears, own, strict=True):
        torch.testing.assert_close(linear.weight.grad, other.weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("chosen", [0, 1])
def test_one_hot_scalings_are_that_adapter(tiny, given, chosen):
    model = mixed(tiny, given, softmax=False)
    fix(model, [float(a == chosen) for a in range(2)])
    expected = with_deltas(tiny, given, [float(a == chosen) for a in range(2)])
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_no_scalings_are_the_base_and_uniform_ones_the_mean_of_the_deltas(tiny, given):
    model = mixed(tiny, given, softmax=False)
    fix(model, [0.0, 0.0])
    torch.testing.assert_close(logits(model), logits(load_base(tiny)), atol=1e-5, rtol=1e-5)
    model = mixed(tiny, given)
    fix(model, [0.3, 0.3])
    torch.testing.assert_close(logits(model), with_deltas(tiny, given, [0.5, 0.5]), atol=1e-4, rtol=1e-4)


def test_the_first_pass_reads_the_model_with_the_scaling_pass_value(tiny, given):
    model, seen = mixed(tiny, given, scaling_pass_value=0.5), []
    model.shared.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model)
    fixed = mixed(tiny, given, softmax=False)
    fix(fixed, [0.5, 0.5])
    expected = fixed.hf.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    assert not seen[0].requires_grad


def test_scalings_sum_to_one_and_top_k_alone_leaves_less(tiny, given):
    model = mixed(tiny, given)
    logits(model)
    torch.testing.assert_close(model.shared.scalings.sum(-1), torch.ones(2, 6, 1))
    model = mixed(tiny, given, top_k=1)
    logits(model)
    assert (model.shared.scalings.sum(-1) < 1).all()


def test_only_the_classifier_trains_unless_asked(tiny, given):
    model = mixed(tiny, given)
    sites = dict(adapted(model.hf))
    assert not any(p.requires_grad for site in sites.values() for p in site.adapter.parameters())
    assert sum(p.numel() for p in model.shared.parameters()) == (64 + 1) * 2
    model = mixed(tiny, given, train_adapters=True)
    trained = {name for name, site in adapted(model.hf) if site.adapter.A.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"q_proj", "v_proj", "up_proj"}
    name = next(name for name in trained if name.endswith("q_proj"))
    part = dict(adapted(model.hf))[name].adapter
    assert XLoRA.count(part.config, part.site) == (2 + 3) * (64 + part.site.out_features)
    logits(model).square().mean().backward()
    assert part.A.grad.abs().sum() > 0 and part.B.grad.abs().sum() > 0


def test_packed_rows_and_activation_checkpointing_change_no_gradient(tiny, given):
    gradients = []
    for checkpointing in (False, True):
        model = mixed(tiny, given, storage="nf4_reference").train()
        if checkpointing:
            model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(4)
        nn.init.normal_(model.shared.linears[0].weight)
        hidden = model.hidden(batch_of([DOCUMENTS], 17))
        with (
            torch.no_grad(),
            adapters_off(model),
        ):  # a reference pass between the two leaves the scalings alone
            model.hidden(batch_of([DOCUMENTS[:1]], 6))
        hidden.square().mean().backward()
        gradients.append(model.shared.linears[0].weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_generation_with_a_cache_is_generation_without(tiny, given):
    model = mixed(tiny, given)
    nn.init.normal_(model.shared.linears[0].weight, std=2.0)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = [
        model.hf.generate(
            IDS,
            attention_mask=mask,
            use_cache=cache,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        for cache in (False, True)
    ]
    torch.testing.assert_close(torch.stack(made[0].logits), torch.stack(made[1].logits), atol=1e-4, rtol=1e-4)


def test_beams_reorder_both_caches(tiny, given):
    model, options = mixed(tiny, given), {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 4}
    nn.init.normal_(model.shared.linears[0].weight, std=4.0)
    made = [
        model.hf.generate(
            IDS,
            attention_mask=torch.ones_like(IDS),
            use_cache=cache,
            output_scores=True,
            return_dict_in_generate=True,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **options,
        )
        for cache in (False, True)
    ]
    assert torch.equal(made[0].sequences, made[1].sequences)
    torch.testing.assert_close(made[0].sequences_scores, made[1].sequences_scores)
    torch.testing.assert_close(torch.stack(made[0].scores), torch.stack(made[1].scores))


def test_a_cache_filled_elsewhere_is_refused(tiny, given):
    model = mixed(tiny, given)
    with adapters_off(model):
        cache = model.hf(input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="start with an empty one, or use_cache=False"):
        model.hf(input_ids=IDS[:, :1], past_key_values=cache)


def test_switched_off_no_first_pass_is_run(tiny, given):
    model = mixed(tiny, given)
    with adapters_off(model):
        torch.testing.assert_close(logits(model), logits(load_base(tiny)))
    assert model.shared.scalings is None


def test_a_site_alone_asks_for_its_model(tiny, given):
    site = linear_sites(load_base(tiny))["model.layers.0.self_attn.q_proj"]
    config = XLoRA.Config(method="xlora", adapters=given)
    base = QUANTIZERS.get("none")(torch.randn(site.out_features, site.in_features))
    with pytest.raises(ValueError, match="needs its classifier"):
        XLoRA.at(config, site)(torch.randn(2, 3, 64), base)
    made = XLoRA.at(config, site, XLoRA.shared(config, linear_sites(load_base(tiny)), 64))
    with pytest.raises(ValueError, match="run the whole model"):
        made(torch.randn(2, 3, 64), base)


def test_dropout_of_a_given_adapter_acts_in_training_alone(tiny, tmp_path):
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    folder = write(tmp_path / "dropped", shapes, 2, seed=1, lora_dropout=0.5)
    model = mixed(tiny, [folder])
    calm = logits(model)
    torch.testing.assert_close(logits(model), calm)
    assert not torch.allclose(logits(model.train()), calm)


def test_patterns_of_alpha_are_pefts(tiny, tmp_path):
    shapes = {f"model.layers.{i}.self_attn.q_proj": (64, 64) for i in (0, 1)}
    folder = write(tmp_path / "patterned", shapes, 2, seed=1, alpha_pattern={r"layers\.1\.self_attn.*": 32})
    scales = [
        float(site.adapter.scales) for n, site in adapted(mixed(tiny, [folder]).hf) if n.endswith("q_proj")
    ]
    assert scales == [2.0, 16.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_dora": True}, "is a DoRA; only a plain LoRA can be an expert"),
        ({"peft_type": "VERA"}, "is of type VERA"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "fits a base changed by pissa_niter_4"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tiny, tmp_path, keys, message):
    folder = write(tmp_path / "odd", {"model.layers.0.self_attn.q_proj": (64, 64)}, 2, seed=1, **keys)
    with pytest.raises(RecipeError, match=message):
        mixed(tiny, [folder])


def test_adapters_of_another_model_are_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"adapter\.adapters: .* holds no adapter_config\.json"):
        mixed(tiny, [str(tmp_path)])
    folder = write(tmp_path / "names", {"model.layers.9.self_attn.q_proj": (64, 64)}, 2, seed=1)
    with pytest.raises(
        RecipeError, match=r"changes model\.layers\.9\.self_attn\.q_proj, which is no adapted layer"
    ):
        mixed(tiny, [folder])
    folder = write(tmp_path / "shapes", {"model.layers.0.self_attn.q_proj": (64, 32)}, 2, seed=1)
    with pytest.raises(RecipeError, match="changes a 64 x 32 weight, but this is 64 x 64"):
        mixed(tiny, [folder])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapters": []}, "at least 1 item"),
        ({"adapters": ["a"], "top_k": 2}, "top_k is 2, but there are 1 adapters"),
        (
            {"adapters": ["a", "b"], "softmax_topk": True, "top_k": 1},
            "softmax_topk needs top_k, and softmax: false",
        ),
        ({"adapters": ["a", "b"], "softmax_topk": True, "softmax": False}, "softmax_topk needs top_k"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        XLoRA.Config(method="xlora", **settings)


def test_the_folder_of_a_run_is_as_good_as_its_adapters(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "adapter", {"model.layers.0.self_attn.q_proj": (64, 64)}, 2, seed=1)
    model = mixed(tiny, [str(tmp_path / "run")])
    assert F.relu(model.shared.linears[0].bias).shape == (1,)
