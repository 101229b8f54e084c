"""The vocabulary of `provides` and `requires`. Compatibility is set algebra over these words, nothing else.

A part may require what any other chosen part provides; the recipe check lists what nobody provides.
"""

TRAITS: dict[str, str] = {
    "adapters": "an adapter section other than `none`, so that adapter parameters exist",
    "mergeable": "the adapter is a change of the weight: W' = W + delta(W)",
    "low_rank": "the adapter holds factors A (rank, in) and B (out, rank)",
    "linear_delta": "the change of the weight does not depend on W, so factors can be moved between bases",
    "undropped": "adapter.dropout is 0, because the adapter holds a part of the pretrained function",
    "dense_base": "base weights stay in floating point, so that they can be trained",
    "backward": "gradients are computed by backpropagation",
    "clippable": "all gradients exist together before the update, so that their global norm can be clipped",
}
