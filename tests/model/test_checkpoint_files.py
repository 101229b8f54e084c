"""Model files that do not hold the model: each is refused by name, since what is missing would be drawn at random."""

from __future__ import annotations

import pytest
import torch

from lrft.model.load import load_config, load_model
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError

UP = "model.layers.0.mlp.up_proj.weight"


def load(folder, **section):
    return load_model(ModelSection(name=str(folder), dtype="float32", **section))


@pytest.mark.parametrize(
    ("edit", "tied", "config", "words"),
    [
        (lambda t: t.pop(UP), True, {}, f"does not hold {UP}"),
        (lambda t: t.pop("lm_head.weight"), False, {}, "does not hold lm_head.weight"),
        (lambda t: t.update({"score.weight": torch.ones(2, 64)}), True, {}, "has no place for: score.weight"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32)}),
            True,
            {},
            r"model.norm.weight \(32 in the file, 64 in the model\)",
        ),
        (lambda t: None, True, {"num_hidden_layers": 3}, "does not hold model.layers.2.* and 6 more"),
        (lambda t: None, True, {"num_hidden_layers": 1}, "has no place for: model.layers.1.* and 6 more"),
        (lambda t: None, True, {"vocab_size": 600}, "520 x 64 in the file, 600 x 64 in the model"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), True, {}, "logits .* are no finite numbers"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(altered, edit, tied, config, words):
    with pytest.raises(RecipeError, match=f"model.name: .*{words}"):
        load(altered(edit, tied, **config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "gives no next token"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            r"bitsandbytes .*\(8 bits\)",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}},
            "gptq has quantized already, and its 3 bits are not read",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8 has quantized already"),
    ],
)
def test_what_the_configuration_says_is_refused_before_any_weight_is_read(altered, config, words):
    folder = altered(**config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=f"model.name: .*{words}"):
        load_config(ModelSection(name=str(folder)))


def test_a_classifier_is_refused(tiny, tmp_path):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny(), num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="LlamaForSequenceClassification, which gives no next token"):
        load(tmp_path)


def test_a_shard_that_is_gone_is_one_sentence(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny()).save_pretrained(tmp_path, max_shard_size="100KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(RecipeError, match=r"model.name: .*could not be loaded"):
        load(tmp_path)


def test_two_heads_in_the_file_stay_two_though_the_configuration_ties_them(altered):
    model = load(altered(tied=False, tie_word_embeddings=True))
    assert model.hf.get_output_embeddings().weight is not model.hf.get_input_embeddings().weight
    assert model.hf.config.tie_word_embeddings is False


def test_leftovers_that_every_old_checkpoint_has_are_no_fault(altered):
    load(altered(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})))
