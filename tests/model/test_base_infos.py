"""What methods are told of base weights that train, on families that hold them otherwise than Llama."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lrft.core.params import count
from lrft.methods.optim.adam_mini import AdamMini, blocks_of
from lrft.methods.select._backward_costs import measure_costs
from lrft.methods.select.hft import categories
from lrft.model.base_infos import base_infos
from lrft.model.load import load_model
from lrft.model.trained import base_parameters, choose_base_weights
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OPTIMIZERS, PRUNERS, SELECTORS
from lrft.registry.errors import RecipeError


def infos_of(folder, meta=True):
    model = load_model(ModelSection(name=str(folder), dtype="float32"), meta=meta)
    choose_base_weights(model, "full")
    return model, {info.name: info for info in base_infos(model, list(base_parameters(model)))}


@pytest.mark.parametrize(
    ("family", "block", "turned"),
    [
        ("mixtral", "model.layers.0.mlp", False),
        ("granitemoe", "model.layers.0.block_sparse_moe", False),
        ("lfm2_moe", "model.layers.1.feed_forward", False),
        ("gpt_oss", "model.layers.0.mlp", True),
        ("llama4_text", "model.layers.0.feed_forward", True),
    ],
)
def test_experts_are_matrices_and_their_router_is_one(tiny, family, block, turned):
    _, infos = infos_of(tiny(family))
    for leaf in ("gate_up_proj", "down_proj"):
        info = infos[f"{block}.experts.{leaf}"]
        assert (info.role, info.transposed) == ("matrices", turned)
        experts, rows, columns = info.param.shape
        shape, axis = blocks_of(info)
        assert shape == info.param.shape and axis == (1 if turned else 2)  # an output neuron of an expert
        assert AdamMini.state_bytes(info, None) == 4 * (
            info.param.numel() + experts * (columns if turned else rows)
        )
    router = infos.get(f"{block}.gate.weight") or infos[f"{block}.router.weight"]
    assert router.role == "matrix"


def test_adam_mini_spares_norms_and_biases_alone(tiny):
    for family in ("mixtral", "gpt_oss", "mamba", "gpt2", "rwkv", "recurrent_gemma"):
        _, infos = infos_of(tiny(family))
        built = AdamMini.build(
            list(infos.values()), AdamMini.Config(method="adam_mini", lr=0.1, weight_decay=0.1)
        )
        spared = {
            id(p) for group in built.param_groups if group["weight_decay"] == 0.0 for p in group["params"]
        }
        names = {name for name, info in infos.items() if id(info.param) in spared}
        wide = {
            n for n in names if max(infos[n].param.shape) < infos[n].param.numel() and not n.endswith("bias")
        }
        assert names and not wide, (family, wide)


def test_biases_of_all_experts_have_a_rate_for_each_number(tiny):
    _, infos = infos_of(tiny("gpt_oss"))
    bias = infos["model.layers.0.mlp.experts.down_proj_bias"]
    assert bias.param.ndim == 2 and blocks_of(bias) == (tuple(bias.param.shape), None)


def test_hft_halves_experts_among_themselves(tiny):
    _, infos = infos_of(tiny("mixtral"))
    layers = [[i for i in infos.values() if i.block == f"model.layers.{k}"] for k in (0, 1)]
    units = {
        id(p): [{id(q) for q in u} for u in layer]
        for c in categories(layers)
        for layer in c
        for u in layer
        for p in u
    }
    own = [infos[f"model.layers.0.mlp.experts.{leaf}"].param for leaf in ("gate_up_proj", "down_proj")]
    assert units[id(own[0])] == [{id(p)} for p in own]


def test_greentrainer_crosses_weights_whose_bias_alone_trains(tiny):
    model, infos = infos_of(tiny("gpt2"))
    order = [info for info in reversed(infos.values()) if info.name.endswith("bias")]
    costs = measure_costs(SimpleNamespace(model=model, parameters=order), order)
    crossed = sum(2 * i.param.numel() for i in infos.values() if i.role == "matrix")
    norms = sum(i.param.numel() for i in infos.values() if i.role == "vector" and i.param.ndim == 1)
    head = 2 * infos["transformer.wte.weight"].param.numel()
    assert costs.forward == crossed + norms + head


def test_greentrainer_counts_experts_as_the_matrices_that_they_are(tiny):
    model, infos = infos_of(tiny("mixtral"))
    order = [info for info in infos.values() if info.role == "matrices"]
    trained = measure_costs(SimpleNamespace(model=model, parameters=order), order)
    assert sum(trained.weight) == 2 * count(info.param for info in order)
    frozen = measure_costs(SimpleNamespace(model=model, parameters=order[-1:]), order[-1:])
    assert frozen.forward == trained.forward


@pytest.mark.parametrize(("kind", "method"), [(SELECTORS, "lift"), (PRUNERS, "trp")])
def test_methods_of_single_matrices_refuse_tensors_of_several(tiny, kind, method):
    _, infos = infos_of(tiny("mixtral"))
    cls = kind.get(method)
    run = SimpleNamespace(parameters=list(infos.values()), optimizer=OPTIMIZERS.get("sgd"), device="cpu")
    with pytest.raises(
        RecipeError, match=rf"experts.*{method} is of single matrices; write model.experts: split"
    ):
        cls(cls.Config(method=method)).start(run)


@pytest.mark.parametrize(
    ("family", "head"), [("llama", 16), ("qwen3_next", 16), ("internlm3", 128), ("gpt_neo", 16)]
)
def test_a_head_of_queries_has_the_rows_that_its_attention_says(tiny, family, head):
    _, infos = infos_of(tiny(family))
    rows = {i.head_rows for n, i in infos.items() if n.endswith(("q_proj.weight", "k_proj.weight"))}
    assert rows == {head}


def test_a_head_of_latent_attention_is_more_than_the_part_that_turns(tmp_path, tiny):
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import AutoConfig

    config = AutoConfig.from_pretrained(tiny("deepseek_v2"))
    config.q_lora_rank = None
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert config.head_dim == config.qk_rope_head_dim == 8
    _, infos = infos_of(tmp_path)
    rows = {i.head_rows for n, i in infos.items() if n.endswith("q_proj.weight")}
    assert rows == {config.qk_rope_head_dim + config.qk_nope_head_dim}
