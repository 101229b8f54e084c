"""AdamW and SGD against their equations."""

import math

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS


def build(name, param, **settings):
    config = OPTIMIZERS.declared(name).config(method=name, **settings)
    return OPTIMIZERS.get(name).build([ParamInfo("p", param, "matrix")], config)


def gradients(steps=4):
    return [
        torch.randn(6, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        for t in range(steps)
    ]


def run(name, **settings):
    param = torch.nn.Parameter(torch.ones(6, 5))
    optimizer = build(name, param, **settings)
    for gradient in gradients():
        param.grad = gradient.float()
        optimizer.step()
    return param.detach().double()


def test_adamw_follows_its_equations():
    lr, decay, b1, b2, eps = 0.01, 0.1, 0.8, 0.95, 1e-6
    p, m, v = torch.ones(6, 5, dtype=torch.float64), 0.0, 0.0
    for t, g in enumerate(gradients(), start=1):
        p = (1 - lr * decay) * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    found = run("adamw", lr=lr, weight_decay=decay, beta1=b1, beta2=b2, eps=eps)
    torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_equations(nesterov):
    lr, decay, momentum = 0.1, 0.2, 0.9
    p, v = torch.ones(6, 5, dtype=torch.float64), 0.0
    for g in gradients():
        p = (1 - lr * decay) * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    found = run("sgd", lr=lr, weight_decay=decay, momentum=momentum, nesterov=nesterov)
    torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_sgd_without_momentum_is_torchs(decay):
    param = torch.nn.Parameter(torch.ones(6, 5))
    theirs = torch.optim.SGD([param], lr=0.1, weight_decay=decay)
    for gradient in gradients():
        param.grad = gradient.float()
        theirs.step()
    found = run("sgd", lr=0.1, weight_decay=decay, momentum=0.0)
    torch.testing.assert_close(found, param.detach().double(), rtol=1e-6, atol=1e-7)


def test_sgd_refuses_nesterov_without_momentum():
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        OPTIMIZERS.declared("sgd").config.model_validate({"momentum": 0.0, "nesterov": True})


def test_sgd_passes_the_closures_loss_on():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = build("sgd", param)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert param.detach().max() < 1


@pytest.mark.parametrize(
    ("name", "bytes_each"), [("adamw", 8), ("sgd", 4), ("paged_adamw32bit", 8), ("lora_plus", 8)]
)
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_the_state_takes_the_bytes_the_docstring_states(name, bytes_each):
    param = torch.nn.Parameter(torch.ones(100, 50))
    optimizer = build(name, param)
    param.grad = torch.ones_like(param)
    optimizer.step()
    moments = [
        value for value in optimizer.state[param].values() if torch.is_tensor(value) and value.ndim == 2
    ]
    assert sum(moment.nbytes for moment in moments) == bytes_each * param.numel()
    assert math.prod(param.shape) == 5000
