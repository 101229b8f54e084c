"""LoRA+ is AdamW with a faster B, grouped as PEFT groups it."""

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS


def build(name, infos, **settings):
    return OPTIMIZERS.get(name).build(infos, OPTIMIZERS.declared(name).config(method=name, **settings))


def factors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"s.A": ((4, 32), "lora_A"), "s.B": ((32, 4), "lora_B"), "s.magnitude": ((32,), "magnitude")}
    return [
        ParamInfo(name, nn.Parameter(torch.randn(shape, generator=generator)), role, "s")
        for name, (shape, role) in shapes.items()
    ]


def train(name, steps=5, **settings):
    infos = factors()
    optimizer = build(name, infos, **settings)
    for t in range(steps):
        generator = torch.Generator().manual_seed(t)
        for info in infos:
            info.param.grad = torch.randn(info.param.shape, generator=generator) + info.param.detach()
        optimizer.step()
    return [info.param.detach() for info in infos]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_at_ratio_one_it_is_adamw_bit_for_bit(weight_decay):
    plus = train("lora_plus", lr=1e-3, ratio=1.0, weight_decay=weight_decay)
    plain = train("adamw", lr=1e-3, weight_decay=weight_decay)
    assert all(torch.equal(a, b) for a, b in zip(plus, plain, strict=True))


def test_after_one_step_b_has_moved_ratio_times_as_far_as_a():
    before = [info.param.detach() for info in factors()]
    a, b, magnitude = (x - y for x, y in zip(train("lora_plus", 1, lr=1e-3, ratio=8.0), before, strict=True))
    # The first step of Adam is lr * sign(gradient), up to eps.
    torch.testing.assert_close(a.abs(), torch.full_like(a, 1e-3), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(b.abs(), torch.full_like(b, 8e-3), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(magnitude.abs(), torch.full_like(magnitude, 8e-3), rtol=1e-3, atol=1e-6)


class Tiny(nn.Module):
    """Every kind of parameter that PEFT's grouping tells apart."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20)

    def forward(self, ids):
        return self.head(self.linear(self.norm(self.emb(ids))))


def role(name, param):
    if "lora_embedding" in name:
        return "embedding"
    for part, own in {"lora_A": "lora_A", "lora_B": "lora_B", "magnitude": "magnitude"}.items():
        if part in name:
            return own
    return "vector" if param.ndim == 1 else "matrix"


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_parameters_fall_into_the_groups_of_peft(dora):
    model = peft.get_peft_model(
        Tiny(),
        peft.LoraConfig(
            r=2, target_modules=["emb", "linear"], modules_to_save=["norm", "head"], use_dora=dora
        ),
    )
    options = {
        "lr": 1e-3,
        "loraplus_lr_ratio": 4.0,
        "loraplus_weight_decay": 0.1,
        "loraplus_lr_embedding": 1e-5,
    }
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, **options)
    infos = [
        ParamInfo(name, param, role(name, param), name.rpartition(".lora")[0] if "lora" in name else "")
        for name, param in model.named_parameters()
        if param.requires_grad
    ]
    ours = build("lora_plus", infos, lr=1e-3, ratio=4.0, weight_decay=0.1, lr_embedding=1e-5)

    def membership(optimizer):
        rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
        return {info.name: rates[id(info.param)] for info in infos}

    assert membership(ours) == membership(theirs)
    assert {rate for rate, _ in membership(ours).values()} == {1e-3, 4e-3, 1e-5}
    assert {decay for _, decay in membership(ours).values()} == {0.0, 0.1}


def test_a_trained_embedding_matrix_of_the_base_is_an_ordinary_matrix():
    """Only adapters on embeddings have a rate of their own; 1e-6 would all but freeze a whole matrix."""
    infos = [ParamInfo("emb.weight", nn.Parameter(torch.zeros(4, 4)), "embedding")]
    assert build("lora_plus", infos, lr=1e-3).param_groups[0]["lr"] == 1e-3


def test_the_rate_of_embeddings_is_that_of_prompts(tiny, tmp_path):
    """A prompt is an adapter on the embedding: it moves at `lr_embedding`, in a recipe as it is written."""
    import lrft

    chosen = [f"model.name={tiny()}", "train.device=cpu", "train.max_steps=1", "data.train.limit=8"]
    found = []
    for rate in (1e-6, 1e-2):
        optimizer = f"optimizer={{method: lora_plus, lr: 1e-4, lr_embedding: {rate}}}"
        lrft.train(
            "recipes/smoke/prompt_tuning.yaml",
            tmp_path / f"{rate}",
            overrides=[*chosen, "~data.eval", "eval.tasks=[]", "~optimizer", optimizer],
        )
        from safetensors.torch import load_file

        (held,) = load_file(next((tmp_path / f"{rate}" / "adapter").glob("*.safetensors"))).values()
        found.append(held)
    assert (found[0] - found[1]).abs().max() == pytest.approx(1e-2, rel=0.05)
