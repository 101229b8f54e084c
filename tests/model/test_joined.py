"""Rows that come and leave at different times: as each alone, or it is said that the family keeps something else."""

from __future__ import annotations

import pytest

from lrft.model.joined import joins
from lrft.model.load import load_model
from lrft.recipe.sections import ModelSection


@pytest.mark.parametrize(
    ("family", "known"),
    [
        ("llama", True),
        ("gemma2", True),
        ("gpt_oss", True),
        ("deepseek_v3", True),
        ("opt", True),
        ("jamba", False),
        ("lfm2", False),
        ("falcon_h1", False),
        ("recurrent_gemma", False),
        ("mamba", False),  # it goes on without a past, and says nothing
    ],
)
def test_a_family_with_keys_and_values_alone_is_joined_and_no_other(tiny, family, known):
    assert joins(load_model(ModelSection(name=str(tiny(family)), dtype="float32"))) is known


def test_it_is_known_in_the_precision_that_trains(tiny):
    assert joins(load_model(ModelSection(name=str(tiny("llama")), dtype="bfloat16")))
