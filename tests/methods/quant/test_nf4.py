"""NF4 on bitsandbytes: what the storage adds to the library, and what merging into four bits loses."""

import copy
import logging
import sys

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from torch.nn import functional as F

from lrft.methods.quant import _bnb
from lrft.methods.quant.fp4 import FP4
from lrft.methods.quant.nf4 import NF4
from lrft.methods.quant.nf4_reference import NF4Reference
from lrft.registry.errors import MissingExtra, UsageError

repacking_cpu = pytest.mark.skipif(not bnb.has_avx512bf16(), reason="only CPUs with AVX512-BF16 repack")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def quantized_layer(weight, quant_type="nf4", double_quant=True, bias=None, **options):
    """A bitsandbytes layer as transformers makes it."""
    out, inner = weight.shape
    layer = Linear4bit(
        inner, out, bias is not None, quant_type=quant_type, compress_statistics=double_quant, **options
    )
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer.to("cpu")


def evaluated(layer, dtype=torch.bfloat16):
    with torch.no_grad():
        layer.eval()(torch.ones(2, layer.in_features, dtype=dtype))
    return layer.train()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
@pytest.mark.parametrize("shape", [(64, 128), (64, 96), (7, 13)], ids=str)
@pytest.mark.parametrize("double_quant", [True, False])
def test_codes_and_weights_are_those_of_the_reference(dtype, shape, double_quant):
    weight = gaussian(*shape).to(dtype)
    config = {"double_quant": double_quant}
    ours, reference = (kind(weight, None, kind.Config(**config)) for kind in (NF4, NF4Reference))
    assert torch.equal(ours.codes, reference.codes)
    if double_quant:
        reference.absmax = ours.absmax  # the 8-bit code of a scale may be the neighbouring one
    assert torch.equal(ours.weight(), reference.weight())


def test_rows_that_are_no_whole_number_of_blocks_decode_right_though_bitsandbytes_may_not():
    weight = gaussian(64, 96)
    assert relative(NF4(weight).weight(), weight) == pytest.approx(0.092, abs=0.004)


@pytest.mark.parametrize("format", [NF4, FP4])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(64, 128), (32, 96)], ids=str)
def test_a_layer_quantized_elsewhere_is_adopted_code_for_code(format, double_quant, shape):
    weight = gaussian(*shape).bfloat16()
    layer = quantized_layer(weight, format.quant_type, double_quant, bias=torch.ones(shape[0]).bfloat16())
    adopted = format.adopt(layer)
    ours = format(weight, layer.bias, format.Config(double_quant=double_quant))
    assert torch.equal(adopted.codes, layer.weight.data)
    assert adopted.config == ours.config
    assert adopted.stored_bytes == ours.stored_bytes
    assert torch.equal(adopted.weight(), ours.weight())
    assert torch.equal(adopted.bias, layer.bias)


def test_an_adopted_layer_computes_in_the_dtype_it_is_told():
    adopted = NF4.adopt(quantized_layer(gaussian(32, 64).half()), torch.bfloat16)
    assert adopted.weight().dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:adopting a 4-bit layer")
@pytest.mark.parametrize(
    "before", [lambda layer: layer, lambda layer: evaluated(layer)], ids=["fresh", "evaluated"]
)
def test_codes_kept_in_another_dtype_are_adopted_as_bytes(before):
    weight = gaussian(32, 64).bfloat16()
    layer = before(quantized_layer(weight, quant_storage=torch.bfloat16))
    assert torch.equal(NF4.adopt(layer).codes, NF4(weight).codes)


def test_adopting_says_what_is_wrong_with_a_layer_of_another_kind():
    with pytest.raises(UsageError, match="stored as fp4, not nf4"):
        NF4.adopt(quantized_layer(gaussian(32, 64), "fp4"))
    with pytest.raises(UsageError, match="holds no codes"):
        NF4.adopt(Linear4bit(64, 32, quant_type="nf4"))


@repacking_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_a_layer_that_bitsandbytes_repacked_in_evaluation_is_read_right(double_quant, dtype):
    layer = quantized_layer(gaussian(64, 128).to(dtype), double_quant=double_quant)
    codes = layer.weight.data.clone()
    before = bnb.dequantize_4bit(codes, layer.weight.quant_state)
    evaluated(layer, dtype)

    state = layer.weight.quant_state
    assert state.packing_format_for_cpu, "this version no longer repacks: the trap and this test can go"
    naive = bnb.dequantize_4bit(layer.weight.data.reshape(-1, 1), state)
    assert relative(naive, before) > 0.5

    packed, scales = layer.weight.data.clone(), state.absmax.clone()
    if exact := dtype == torch.bfloat16 and not double_quant:
        adopted = NF4.adopt(layer)
    else:
        with pytest.warns(UserWarning, match="rounded its block scales to bfloat16"):
            adopted = NF4.adopt(layer)
    assert torch.equal(adopted.codes, codes)
    assert adopted.weight().dtype == dtype
    if exact:
        assert torch.equal(adopted.weight(), before)
    assert relative(adopted.weight(), before) < 2**-8

    assert layer.weight.quant_state is state and state.packing_format_for_cpu
    assert torch.equal(layer.weight.data, packed) and torch.equal(state.absmax, scales)


@repacking_cpu
def test_the_backward_pass_of_bitsandbytes_is_wrong_after_an_evaluation_and_ours_is_not():
    weight = gaussian(64, 128).bfloat16()
    theirs, ours = (
        quantized_layer(weight, double_quant=False),
        NF4(weight, None, NF4.Config(double_quant=False)),
    )
    dense = ours.weight()
    for layer in (theirs, ours):
        evaluated(layer)

    def input_gradient(layer):
        x = torch.ones(1, 128, dtype=torch.bfloat16, requires_grad=True)
        layer(x).backward(dy)
        return x.grad

    dy = gaussian(1, 64, seed=1).bfloat16()
    assert torch.equal(input_gradient(ours), dy @ dense)
    assert relative(input_gradient(NF4.adopt(theirs)), dy @ dense) < 1e-6


def test_an_evaluated_layer_trains_bit_for_bit_as_one_that_never_was():
    never = NF4(gaussian(64, 128).bfloat16())
    once = evaluated(copy.deepcopy(never))
    assert torch.equal(never.weight(), once.weight())
    gradients = []
    for layer in (never, once):
        x = gaussian(3, 128, seed=1).bfloat16().requires_grad_()
        layer(x).float().square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_storage_takes_4_127_bits_a_weight():
    layer = NF4(gaussian(512, 1024).bfloat16())
    assert (layer.stored_bytes - 4) * 8 / (512 * 1024) == 4 + 8 / 64 + 32 / (64 * 256)


def test_blocks_of_other_sizes_trade_bits_for_error():
    weight = gaussian(128, 1024)
    layers = [NF4(weight, None, NF4.Config(block_size=size)) for size in (32, 64, 256, 1024)]
    errors = [relative(layer.weight(), weight) for layer in layers]
    assert errors == sorted(errors)
    assert [layer.stored_bytes for layer in layers] == sorted(
        (layer.stored_bytes for layer in layers), reverse=True
    )


def test_fp4_rounds_more_coarsely_than_nf4():
    weight = gaussian(256, 512)
    assert relative(FP4(weight).weight(), weight) == pytest.approx(0.12, abs=0.01)
    codes, state = bnb.quantize_4bit(weight, quant_type="fp4", compress_statistics=True)
    assert torch.equal(FP4(weight).weight(), bnb.dequantize_4bit(codes, state))


class TestMergingIntoFourBits:
    """Error of the output over the size of the adapter's own output, for `share` = |delta| / |W|."""

    dense = gaussian(512, 512)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(9))
    exact = NF4.Config(double_quant=False)

    def delta(self, share):
        factors = [torch.randn(512, 16, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
        product = factors[0] @ factors[1].mT
        return product * (share * self.dense.norm() / product.norm())

    def error(self, merged, share):
        """||merged x - (Q + delta) x|| / ||delta x||."""
        trained = self.base() + self.delta(share)
        return ((self.x @ (merged - trained).mT).norm() / (self.x @ self.delta(share).mT).norm()).item()

    def base(self):
        return NF4(self.dense, None, self.exact).weight()

    def requantized(self, weight):
        return NF4(weight, None, self.exact).weight()

    @pytest.mark.parametrize("share", [0.0019, 0.0063, 0.019, 0.063])
    def test_wider_storage_loses_less(self, share):
        merged = self.base() + self.delta(share)
        half, brain = self.error(merged.half().float(), share), self.error(merged.bfloat16().float(), share)
        twice_rounded = self.error((self.base().bfloat16() + self.delta(share).bfloat16()).float(), share)
        four_bits = self.error(self.requantized(merged), share)
        assert self.error(merged, share) < 1e-3
        assert half < brain < twice_rounded < 1.05 * four_bits

    @pytest.mark.parametrize("share", [0.0019, 0.0063, 0.019])
    def test_requantizing_the_merged_base_erases_a_small_adapter(self, share):
        merged = self.requantized(self.base() + self.delta(share))
        change = merged - self.base()
        delta = self.delta(share)
        projection = ((change * delta).sum() / delta.square().sum()).item()
        assert projection < 0.05
        assert self.error(merged, share) > 0.95

    @pytest.mark.parametrize(("share", "error"), [(0.0019, 11.3), (0.0063, 6.2), (0.019, 3.4), (0.063, 1.7)])
    def test_requantizing_the_original_weight_adds_the_noise_of_quantization(self, share, error):
        merged = self.requantized(self.dense + self.delta(share))
        projection = ((merged - self.base()) * self.delta(share)).sum() / self.delta(share).square().sum()
        assert projection.item() == pytest.approx(1, abs=0.25)
        assert self.error(merged, share) == pytest.approx(error, rel=0.25)
        assert self.error(merged, share) > self.error(
            self.requantized(self.base() + self.delta(share)), share
        )

    def test_taking_the_adapter_off_again_does_not_restore_a_four_bit_base(self):
        merged = self.requantized(self.base() + self.delta(0.063))
        assert not torch.equal(self.requantized(merged - self.delta(0.063)), self.base())


@pytest.fixture
def unimported(monkeypatch):
    """As if bitsandbytes had not been imported yet."""
    _bnb.bitsandbytes_functional.cache_clear()
    yield monkeypatch
    _bnb.bitsandbytes_functional.cache_clear()


def test_without_bitsandbytes_the_error_gives_the_install_line(unimported):
    unimported.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingExtra, match=r"quantization\.method: .*pip install bitsandbytes"):
        NF4(gaussian(4, 64))


def test_importing_bitsandbytes_hides_one_message_and_no_other(unimported, caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def import_module(name):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
        logger.warning("Something worth reading")

    unimported.setattr(_bnb.importlib, "import_module", import_module)
    with caplog.at_level(logging.WARNING):
        _bnb.bitsandbytes_functional()
    assert [record.getMessage() for record in caplog.records] == ["Something worth reading"]
    assert logger.filters == []


def test_the_forward_pass_is_in_the_dtype_of_the_activations():
    layer = NF4(gaussian(64, 128).bfloat16())
    x = gaussian(4, 128, seed=2).bfloat16()
    torch.testing.assert_close(
        layer(x).float(), F.linear(x.float(), layer.weight().float()), atol=2e-4, rtol=2e-2
    )
