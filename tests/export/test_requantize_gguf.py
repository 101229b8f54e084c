"""`lrft merge --requantize q4_0`: one GGUF file of few bits that keeps what was trained, certified as it reads back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lrft.api.asking.doctor import diagnose
from lrft.api.merging.merge import merge
from lrft.export.fidelity import compare
from lrft.export.requantize import round_to_nearest
from lrft.model.load import load_model
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder
from tests.export.test_requantize import batches_of, bits, loud, trained  # noqa: F401

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("gguf") / "model"
    record = merge(RunFolder(trained("none")), out, requantize="q4_0")
    return out, record


def test_the_layers_are_in_four_bits_and_the_rest_in_the_precision_of_the_export(file):
    out, record = file
    reader = gguf.GGUFReader(out / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert sum(kind == "Q4_0" for kind in kinds.values()) == record["layers_in_bits"] == 14
    assert kinds["token_embd.weight"] == "F32" and kinds["output_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == 2
    size = sum(tensor.n_bytes for tensor in reader.tensors if tensor.tensor_type.name == "Q4_0")
    assert size == record["bytes_in_bits"]
    assert {path.name for path in out.iterdir()} >= {"model.gguf", "fidelity.json", "generation_config.json"}
    assert not list(out.glob("*.safetensors")) and "llama.cpp" in (out / "README.md").read_text()
    found = diagnose(out)
    assert found["kind"] == "merged" and all(one["passed"] for one in found["checks"])
    assert any("the GGUF file's tokens" in one["check"] for one in found["checks"])


def test_feedback_keeps_more_than_the_storage_itself(file):
    out, record = file
    assert 0 < record["kl_mean"] < record["nearest"]["kl_mean"]
    assert record["rounding"] == "feedback" and record["generation"]["agrees"]
    assert json.loads((out / "fidelity.json").read_text()) == record


def test_the_certificate_is_of_the_file_as_transformers_reads_it(file, trained):  # noqa: F811
    """By way of transformers' own reading of GGUF, which dequantizes: another path than the one that certified."""
    out, record = file
    run, batches = batches_of(trained("none"))
    read = load_model(ModelSection(name=str(out / "model.gguf"), dtype="float32"))
    found = compare(run, read, batches)
    assert found["loss_difference"] == pytest.approx(record["loss_difference"], abs=1e-5)
    assert found["kl_mean"] == pytest.approx(record["kl_mean"], rel=1e-3)


def test_a_rounding_to_nearest_is_the_librarys(tiny):
    dense = load_model(ModelSection(name=str(tiny()), dtype="float32"))
    found = round_to_nearest(dense, bits("q4_0"))
    for name, layer in found.layers.items():
        weight = dense.hf.get_submodule(name).weight.detach().numpy()
        theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(layer.blocks.numpy(), theirs), name


def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(trained, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match=r"--keep-rank 8: llama\.cpp reads no adapter beside a q4_0 file"):
        merge(RunFolder(trained("none")), tmp_path / "out", requantize="q4_0", keep_rank=8)
    with pytest.raises(UsageError, match="--requantize q5: choose fp4, int8, int_groups, nf4 or q4_0"):
        merge(RunFolder(trained("none")), tmp_path / "out", requantize="q5")
    assert not (tmp_path / "out").exists()
