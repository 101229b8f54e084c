"""VB-LoRA's own statements: what the bank makes, what is stored, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.vblora import NEVER, VBLoRA, mix
from lrft.methods.quant.none import Dense


def make(out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    sizes = {"rank": 3, "vectors": 20, "vector_length": 8, "bound": 1.0, "std": 1.0, **settings}
    adapter = VBLoRA(VBLoRA.Config(method="vblora", **sizes), Site("a", width, out))
    return Adapted(Dense(weight), adapter), weight


def test_every_piece_is_the_softmax_of_its_largest_logits_over_their_vectors():
    adapter = make()[0].adapter
    A, B = adapter.branch().pair()
    bank = adapter.bank[0].vectors
    for factor, logits in ((A, adapter.logits_A), (B.mT, adapter.logits_B.transpose(0, 1))):
        for row, pieces in zip(factor, logits, strict=True):
            for piece, own in zip(row.split(8), pieces, strict=True):
                (i, j) = own.topk(2).indices
                share = torch.sigmoid(own[i] - own[j])
                torch.testing.assert_close(piece, share * bank[i] + (1 - share) * bank[j])


def test_one_vector_a_piece_is_that_vector():
    bank = torch.randn(5, 4)
    assert torch.equal(mix(torch.eye(5), bank, 1), bank)


def test_the_first_step_moves_the_chosen_logits_and_the_chosen_vectors_alone():
    site, _ = make()
    site(torch.randn(50, 16)).square().sum().backward()
    for logits in (site.adapter.logits_A, site.adapter.logits_B):
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2).indices, 1.0).bool()
        assert torch.equal(logits.grad != 0, chosen)
    used = {
        int(i) for p in (site.adapter.logits_A, site.adapter.logits_B) for i in p.topk(2).indices.unique()
    }
    moved = site.adapter.bank[0].vectors.grad.any(1).nonzero().flatten()
    assert {int(i) for i in moved} == used and len(used) < 20


def test_all_sites_choose_from_one_bank_that_is_saved_once():
    config = VBLoRA.Config(method="vblora", vectors=9, vector_length=8)
    sites = {"a": Site("a", 16, 24), "b": Site("b", 40, 8)}
    shared = VBLoRA.shared(config, sites, 0)
    one, two = (VBLoRA.at(config, site, shared) for site in sites.values())
    assert one.bank[0] is two.bank[0] and one.state_dict().keys() == {"logits_A", "logits_B"}
    assert shared.peft_tensors()["vblora_vector_bank"].shape == (9, 8)
    assert shared.vectors.abs().max() <= 0.02


def test_the_trained_count_is_pefts_for_llama_3_2_3b():
    config = VBLoRA.Config(method="vblora")
    sites = 28 * sum(VBLoRA.count(config, Site("a", 3072, out)) for out in (3072, 1024))
    assert sites + 256 * 256 == 1_212_416


@pytest.mark.parametrize(
    ("layers", "width", "sites", "published"),
    [(12, 768, "qv", 0.023), (12, 768, "all", 0.027), (24, 1024, "qv", 0.024), (24, 1024, "all", 0.033)],
)
def test_what_is_stored_is_what_the_papers_table_says_for_roberta(layers, width, sites, published):
    config, square = VBLoRA.Config(method="vblora", vectors=90), (width, width)
    shapes = [square] * 2 if sites == "qv" else [square] * 4 + [(width, 4 * width), (4 * width, width)]
    stored = 90 * 256
    for shape in shapes:
        tensors = VBLoRA.peft.tensors(VBLoRA(config, Site("a", *shape)), None)
        stored += layers * sum(t.numel() * t.element_size() for t in tensors.values()) / 4
    assert (
        abs(stored / 1e6 - published) < 0.0014
    )  # the paper's q and v have a tenth less than pieces of rank 4
    assert sites == "qv" or round(stored / 1e6, 3) == published


@pytest.mark.parametrize(("vectors", "top_k"), [(20, 1), (20, 2), (20, 3), (300, 2)])
def test_it_is_pefts_read_from_a_file(tmp_path, vectors, top_k):
    """Also after rounding to bfloat16 of what is stored, where PEFT takes the last weight to be 1 less the others."""
    peft = pytest.importorskip("peft")
    site, weight = make(vectors=vectors, top_k=top_k)
    keys = dict(VBLoRA.peft.keys(site.adapter.config, False))
    keys.pop("peft_type")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    model[0].weight.data.copy_(weight)
    theirs = peft.get_peft_model(model, peft.VBLoRAConfig(target_modules=["0"], **keys)).eval()
    tensors = {f"base_model.model.0.{k}": t for k, t in VBLoRA.peft.tensors_of(site.adapter).items()}
    tensors["base_model.vblora_vector_bank"] = site.adapter.bank[0].vectors.detach()
    x = torch.randn(5, 16)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        kept = {k: t.to(dtype).float() if t.is_floating_point() else t for k, t in tensors.items()}
        peft.set_peft_model_state_dict(theirs, kept)
        torch.testing.assert_close(site(x), theirs(x), atol=tolerance, rtol=tolerance)
    peft.set_peft_model_state_dict(theirs, tensors)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


def test_compact_files_name_vectors_in_the_fewest_bytes_and_others_keep_their_choice():
    tensors = VBLoRA.peft.tensors(make(vectors=300)[0].adapter, None)
    assert {name: t.dtype for name, t in tensors.items() if "places" in name} == {
        "logits_A_places": torch.int16,
        "logits_B_places": torch.int16,
    }
    adapter = make(top_k=3)[0].adapter
    logits = VBLoRA.peft.tensors(adapter, None)["logits_A"]
    assert (logits == NEVER).sum(-1).eq(17).all()
    rounded = logits.bfloat16().float().topk(3).indices.sort().values
    assert torch.equal(rounded, adapter.logits_A.topk(3).indices.sort().values)


def test_the_factors_are_not_kept_for_the_backward_pass():
    site, _ = make(out=80, width=80, rank=4)
    x, kept = torch.randn(2, 80), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        site(x)
    assert (2, 80) in kept and (4, 80) not in kept and (80, 4) not in kept


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="vector_length 7 does not divide 16 inputs and 24 outputs; use 8"):
        make(vector_length=7)
    with pytest.raises(ValueError, match="top_k is 3, but there are 2 vectors"):
        make(vectors=2, top_k=3)
