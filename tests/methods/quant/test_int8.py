"""int8 keeps weights in 8 bits and activations as they are."""

from pathlib import Path

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.methods.quant.int8 import Int8
from lrft.methods.quant.int8_reference import Int8Reference
from lrft.recipe.load import load_recipe


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_codes_and_weights_are_those_of_the_reference(dtype):
    weight = gaussian(48, 100).to(dtype)
    weight[5] = 0
    ours, reference = Int8(weight), Int8Reference(weight)
    assert torch.equal(ours.codes, reference.codes)
    assert torch.equal(ours.absmax, reference.absmax)
    assert torch.equal(ours.weight(), reference.weight())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_requantizing_keeps_the_codes(dtype):
    once = Int8(gaussian(48, 100).to(dtype))
    assert torch.equal(Int8(once.weight()).codes, once.codes)


def test_a_weight_takes_8_bits_and_a_row_one_scale():
    assert Int8(gaussian(48, 100)).stored_bytes == 48 * 100 + 48 * 4


def test_every_weight_is_within_half_a_step_of_its_row():
    weight = gaussian(48, 100)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((Int8(weight).weight() - weight).abs() <= step * 0.5001).all()


def test_an_outlier_among_the_activations_costs_no_precision():
    """LLM.int8() without its outlier split would round every other activation of the token to 0 here."""
    layer = Int8(gaussian(48, 100))
    x = torch.full((1, 100), 0.01)
    x[0, 0] = 1000.0
    torch.testing.assert_close(layer(x), x @ layer.weight().mT)


def test_a_training_on_a_cpu_is_told_once_that_decoding_is_slow(on_tiny):
    recipes = Path(__file__).parents[3] / "recipes" / "smoke"

    def notes(storage, trains=True):
        path = recipes / "lora.yaml"
        return adapt(
            load_recipe(path, [*on_tiny(path), f"quantization={storage}"]).recipe, trains=trains
        ).notes

    (told,) = notes("int8")
    assert told.startswith("quantization: decoding int8 makes a step on a CPU several times slower; nf4 ")
    assert notes("int8", trains=False) == []
    assert notes("nf4") == []
