"""Which layer a path stands in: its first number, whatever numbers come after it."""

import pytest

from lrft.core.in_layer import InLayer, in_layer, layer_of


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.self_attn.q_proj", InLayer("model.layers.3", 3, "self_attn.q_proj")),
        ("transformer.h.11", InLayer("transformer.h.11", 11, "")),
        (
            "model.layers.0.mlp.experts.7.up_proj",
            InLayer("model.layers.0", 0, "mlp.experts.7.up_proj"),
        ),
        ("2.weight", InLayer("2", 2, "weight")),
        ("block4.5x.fc1.6.w", InLayer("block4.5x.fc1.6", 6, "w")),
        ("model.embed_tokens", None),
        ("lm_head2.weight", None),
        ("", None),
    ],
)
def test_the_first_number_of_a_path_is_its_layer(name, found):
    assert in_layer(name) == found
    assert layer_of(name) == (name if found is None else found.path)
