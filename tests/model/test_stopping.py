"""One set of stop ids for every config, and a pad that the model knows and that stops nothing."""

from __future__ import annotations

import pytest

from lrft.model.load import load_model
from lrft.model.stopping import stops_as_trained, trained_generation
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection


@pytest.fixture
def loaded(tiny):
    section = ModelSection(name=str(tiny()), dtype="float32")
    return load_model(section).hf, load_tokenizer(section)[0]


def test_the_tokenizers_own_stop_comes_first_then_the_others_in_order(loaded):
    hf, tokenizer = loaded
    own = tokenizer.eos_token_id
    assert trained_generation(hf, tokenizer, {99, own, 0}, 7)[0].eos_token_id == [own, 0, 99]
    assert trained_generation(hf, tokenizer, {own}, 7)[0].eos_token_id == own


def test_a_tokenizer_without_a_stop_of_its_own_leaves_the_others(loaded):
    hf, tokenizer = loaded
    tokenizer.eos_token = None
    assert trained_generation(hf, tokenizer, {9, 4}, 7)[0].eos_token_id == [4, 9]


def test_a_pad_that_is_no_special_token_or_has_no_embedding_gives_way_to_the_first_stop(loaded):
    hf, tokenizer = loaded
    own = tokenizer.eos_token_id
    assert trained_generation(hf, tokenizer, {own, 9}, 10_000)[0].pad_token_id == own
    assert trained_generation(hf, tokenizer, {own, 9}, 5)[0].pad_token_id == own
    assert trained_generation(hf, tokenizer, {own, 9}, tokenizer.pad_token_id)[0].pad_token_id == 0


def test_a_pad_that_is_a_stop_is_not_written_where_it_takes_a_row_of_the_embedding(loaded):
    hf, tokenizer = loaded
    hf.config.pad_token_id = None
    stops_as_trained(hf, tokenizer, {tokenizer.eos_token_id}, 5)
    assert hf.generation_config.pad_token_id == tokenizer.eos_token_id and hf.config.pad_token_id is None


def test_the_begin_of_text_is_the_checkpoints_unless_the_vocabulary_is_another(loaded):
    hf, tokenizer = loaded
    hf.config.bos_token_id = hf.generation_config.bos_token_id = 77
    stops_as_trained(hf, tokenizer, {9}, 5)
    assert hf.config.bos_token_id == hf.generation_config.bos_token_id == 77
    stops_as_trained(hf, tokenizer, {9}, 5, own_vocabulary=True)
    assert hf.config.bos_token_id == hf.generation_config.bos_token_id == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.2}, ["temperature", "top_k"]),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3}, []),
        ({"early_stopping": True, "length_penalty": 2.0}, ["early_stopping", "length_penalty"]),
        ({"num_beams": 3, "early_stopping": True}, []),
        ({"num_return_sequences": 4}, ["num_return_sequences"]),
    ],
)
def test_settings_that_mean_nothing_are_left_out_and_the_rest_stays(loaded, tmp_path, settings, dropped):
    hf, tokenizer = loaded
    for name, value in settings.items():
        setattr(hf.generation_config, name, value)
    kept, left_out = trained_generation(hf, tokenizer, {9}, 5)
    assert sorted(left_out) == dropped
    kept.save_pretrained(tmp_path)
    for name in settings.keys() - set(dropped):
        assert getattr(kept, name) == settings[name]
    assert hf.generation_config.eos_token_id != 9  # looked at, not changed
