"""`varlen` on torch's kernel for rows of many lengths, a GPU's; here a reference with its arguments stands in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lrft.build.adapt import adapt
from lrft.model import backend as backends
from lrft.model import varlen
from lrft.model.attention import Unsupported
from lrft.model.backend import attention_backends, check_mask, keeps_apart, settle_attention
from lrft.model.load import load_model
from lrft.model.probe import batch_of, find_fault, training_fault
from lrft.ops.attention import attend
from lrft.ops.attention_blocks import Rule
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.test_attention import inputs
from tests.training.conftest import RECIPE, ROOT

CUDA = torch.device("cuda")


def reference(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """The formula of torch's documentation: (T, H, D) and the bounds of sequences, a window of (left, right) keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    bounds = cu_seq_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(query)
    assert max_q == max_k == max(b - a for a, b in itertools.pairwise(bounds))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = []
    for start, end in itertools.pairwise(bounds):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        place = torch.arange(end - start)
        before = place[:, None] - place[None]
        left, right = (n if n >= 0 else end - start for n in window_size)
        seen = (before <= left) & (before >= -right)
        scores = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
        out.append((torch.softmax(scores.float(), -1).to(q.dtype) @ v).transpose(0, 1))
    return torch.cat(out)


def earlier(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The function as it began: no scale, no window, no groups."""
    assert is_causal and query.shape[1] == key.shape[1]
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0))


@pytest.fixture
def stands_in(monkeypatch):
    def put(function=reference):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)

    put()
    return put


def bounds_of(documents, length):
    edges = sorted({0, length, *(edge for _, start, end in documents for edge in (start, end))})
    longest = max(b - a for a, b in itertools.pairwise(edges))
    return torch.tensor(edges, dtype=torch.int32), longest


def both(heads, scale, window, function):
    """Output and gradients of our adapter of the kernel, and of attention per document."""
    results = []
    for ours in (True, False):
        q, k, v, _, documents = inputs((9, 30, 1, 17), heads, pad=0)
        if ours:
            bounds, longest = bounds_of(documents, q.shape[2])
            out, _ = varlen.varlen_attention(
                nn.Identity(),
                q,
                k,
                v,
                None,
                scale,
                sliding_window=window,
                cu_seq_lens_q=bounds,
                max_length_q=longest,
            )
        else:
            out = attend(q, k, v, documents, Rule(scale or q.shape[-1] ** -0.5, window or 0))
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
        results.append([out.detach(), q.grad, k.grad, v.grad])
    return results


@pytest.mark.parametrize("heads", [(4, 4, 16, 16), (6, 2, 16, 16), (4, 1, 8, 8)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 7, 64])
def test_it_is_causal_attention_within_each_document(stands_in, heads, scale, window):
    for ours, theirs in zip(*both(heads, scale, window, reference), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_torch_whose_function_knows_less_gives_the_same(stands_in, scale):
    stands_in(earlier)
    assert varlen.arguments() == {"is_causal", "return_aux"}
    for ours, theirs in zip(*both((6, 2, 16, 16), scale, None, earlier), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)
    with pytest.raises(Unsupported, match="Identity asks for a window, which varlen"):
        both((6, 2, 16, 16), scale, 8, earlier)


def test_a_function_with_other_arguments_is_not_called(stands_in):
    assert varlen.is_here()
    stands_in(lambda q, k, v, lengths: q)
    assert not varlen.is_here()
    stands_in(lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query)  # and is it causal?
    assert not varlen.is_here()


def model_of(tiny, family, **changed):
    section = ModelSection(name=str(tiny(family)), dtype="float32")
    return load_model(section), section


LENGTHS = [[list(range(5, 14)), list(range(40, 47)), [60]], [list(range(70, 81))]]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_a_model_computes_with_it_what_sdpa_computes_of_each_document(tiny, stands_in, family):
    model, _ = model_of(tiny, family)
    embedding = model.hf.get_input_embeddings().weight.requires_grad_(True)
    batch = batch_of(LENGTHS)
    results = []
    for name in ("sdpa", "varlen"):
        assert model.set_attention(name)
        hidden = model.hidden(batch)
        real = torch.cat([hidden[row, start:end] for row, start, end in batch.documents])
        (real * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append((real.detach(), embedding.grad.clone()))
        embedding.grad = None
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_probe_passes_it_and_refuses_what_the_kernel_does_not_compute(tiny, stands_in):
    model, section = model_of(tiny, "llama")
    assert model.set_attention("varlen")
    assert (
        find_fault(model, packing=True) is find_fault(model, packing=False) is training_fault(model) is None
    )
    assert keeps_apart(model, section)
    capped, _ = model_of(tiny, "gemma2")
    assert capped.set_attention("varlen")
    assert (
        "asks for softcap, which varlen attention does not compute" in find_fault(capped, packing=True).what
    )


def test_dropout_of_probabilities_is_met_before_training(tiny, stands_in):
    model, _ = model_of(tiny, "gpt2")
    assert model.set_attention("varlen")
    assert find_fault(model, packing=False) is None  # in evaluation mode nothing is dropped
    dropping = any(m.p for n, m in model.named_modules() if n.endswith("attn_dropout"))
    assert dropping == (training_fault(model) is not None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    modes = [module.training for module in model.modules()]
    assert "asks for dropout of its probabilities" in training_fault(model).what
    assert [module.training for module in model.modules()] == modes


def test_a_gpu_takes_it_after_flash_attention_and_before_sdpa(monkeypatch):
    section = ModelSection(name="o/n")
    found = [] if backends.importlib.util.find_spec("flash_attn") is None else ["flash_attention_2"]
    assert attention_backends(section, CUDA) == [*found, "varlen", "sdpa", "eager"]
    assert attention_backends(section.model_copy(update={"dtype": "float32"}), CUDA) == ["sdpa", "eager"]
    assert attention_backends(section.model_copy(update={"compile": True}), CUDA) == ["sdpa", "eager"]
    assert attention_backends(section, torch.device("cpu")) == ["segmented", "sdpa", "eager"]
    monkeypatch.setattr(varlen, "is_here", lambda: False)
    assert attention_backends(section, CUDA) == [*found, "sdpa", "eager"]


def test_the_backend_of_a_gpu_is_settled_by_what_it_computes(tiny, stands_in, monkeypatch):
    """The device is only named: the stand-in runs where the model is."""
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    for family, backend in (("llama", "varlen"), ("gemma2", "sdpa"), ("gemma2", "eager")):
        model, section = model_of(tiny, family)
        section = section.model_copy(update={"dtype": "bfloat16"})
        if backend == "eager":
            monkeypatch.setattr(
                model, "set_attention", lambda n, set_=model.set_attention: n != "sdpa" and set_(n)
            )
        settled = settle_attention(model, section, CUDA, True)
        assert model.attention in (backend, "eager") and settled.packing
        assert ("varlen: " in settled.note) == (family == "gemma2")


def test_without_a_gpu_it_is_refused_with_what_works(tiny):
    model, section = model_of(tiny, "llama")
    section = section.model_copy(update={"attention": "varlen"})
    with pytest.raises(
        RecipeError, match=r"model.attention: .* with varlen attention: it needs a GPU, .*write segmented"
    ):
        settle_attention(model, section, "cpu", True)


def test_no_mask_of_a_long_row_is_made_on_a_gpu(tiny):
    model, section = model_of(tiny, "llama")
    assert model.set_attention("sdpa")
    check_mask(model, section, CUDA, 2048)
    check_mask(model, section, "cpu", 4096)
    check_mask(model, section, CUDA, 0)
    plain = section.model_copy(update={"dtype": "bfloat16"})
    cases = {
        "write model.dtype=bfloat16, or train.max_length=2048": section,
        "write model.compile=false, or": plain.model_copy(update={"compile": True}),
        "write model.attention=auto, or": plain.model_copy(update={"attention": "sdpa"}),
        "write train.max_length=2048 or train.batch_size=1 with train.packing=false": plain,
    }
    for words, case in cases.items():
        with pytest.raises(
            RecipeError, match=r"train.max_length: 4096 tokens of a row are more than 2048"
        ) as raised:
            check_mask(model, case, CUDA, 4096)
        assert words in str(raised.value)
    model.set_attention("varlen")
    check_mask(model, plain, CUDA, 4096)


def test_a_training_refuses_the_mask_before_anything_is_calibrated(tiny, tmp_path, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        RECIPE.format(model=tiny(), dtype="float32", data=ROOT / "recipes" / "data" / "quickstart")
    )
    seen = []
    monkeypatch.setattr("lrft.build.settle.check_mask", lambda model, section, device, row: seen.append(row))
    for overrides, row in {
        (): 160,
        ("train.packing=false",): 160,
        ("train.packing=false", "train.batch_size=1"): 0,
    }.items():
        adapt(load_recipe(path, list(overrides)).recipe)
        assert seen.pop() == row and not seen


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 7])
def test_the_kernel_itself_is_that_formula(window):
    """Forward and gradients in bfloat16, of as many key heads as query heads and of fewer."""
    for heads in ((4, 4, 32, 32), (6, 2, 32, 32)):
        found = []
        for ours in (True, False):
            tensors = inputs((9, 300, 1, 17), heads, torch.bfloat16, pad=0)
            q, k, v = (x.detach().cuda().requires_grad_() for x in tensors[:3])
            bounds, longest = bounds_of(tensors[4], q.shape[2])
            if ours:
                told = {"cu_seq_lens_q": bounds.cuda(), "max_length_q": longest, "sliding_window": window}
                out, _ = varlen.varlen_attention(nn.Identity(), q, k, v, None, **told)
            else:
                out = attend(q, k, v, tensors[4], Rule(q.shape[-1] ** -0.5, window or 0))
            out.backward(torch.ones_like(out))
            found.append([out.detach(), q.grad, k.grad, v.grad])
        for a, b in zip(*found, strict=True):
            assert (a.float() - b.float()).norm() <= 2e-2 * b.float().norm()
