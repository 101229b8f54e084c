"""The vocabulary of `provides` and `requires`: which kinds of parts go together.

A part may require what any other chosen part provides; the recipe check lists what nobody provides. What a method's own
setting does not go with stands in its `Config.clashes`, and rules between other sections in `recipe/clashes.py`.
"""

TRAITS: dict[str, str] = {
    "adapters": "an adapter section other than null, so that adapter parameters exist",
    "mergeable": "the adapter is a change of the weight: W' = W + delta(W)",
    "low_rank": "the adapter holds factors A (rank, in) and B (out, rank)",
    "trained_pair": "both factors of the adapter train",
    "linear_delta": "the change of the weight does not depend on W, so factors can be moved between bases",
    "undropped": "adapter.dropout is 0, because the adapter holds a part of the pretrained function",
    "own_weights": "the adapter is the weight of its layers itself, and the base's is given up",
    "beside_base": "what trains adds to a base that is kept (no adapter that is the weight itself)",
    "elastic": "the adapter's rank components can be hidden and shown while it trains",
    "nested": "every prefix of the adapter's rank components is itself an adapter",
    "kept_base": "the base keeps the pretrained weight (the init takes nothing off it)",
    "moved_start": "the model at step 0 is not the pretrained one, by design",
    "core_matrix": "the adapter trains a matrix (rank, rank) between two frozen factors",
    "chosen_rows": "the adapter trains some rows of the weight, which an init may choose",
    "chosen_channels": "the adapter changes some outputs of a layer, which an init may choose",
    "frozen_A": "the factor A of the adapter is frozen",
    "experts": "the adapter holds several experts a site and a router",
    "expert_count": "the adapter takes a number of experts at every site",
    "one_stage": "the adapter is trained in one go (restart: null)",
    "eager": "the model is not compiled (model.compile: false)",
    "dense_base": "base weights stay in floating point, so that they can be trained",
    "rounded_base": "base weights are rounded into few bits",
    "base_weights": "weights of the base model train (trainable: full, or patterns)",
    "fixed_base": "no weight of the base model trains",
    "backward": "gradients are computed by backpropagation",
    "first_order": "the optimizer moves along gradients, so that choosing which are computed chooses what moves",
    "entry_moments": "the optimizer keeps its moments entry by entry, so that some of them can be zeroed",
    "clippable": "all gradients exist together before the update, so that their global norm can be clipped",
    "per_parameter": "the update of a parameter depends on its own gradient alone",
    "documents": "every row of the data is a whole text, of which every token is learnt",
    "labels": "every row of the data is a whole text with its label",
    "score_head": "the model scores whole texts (model.head), and predicts no token",
    "any_model": "a task that scores language models and models with a score head alike",
    "pairs": "every row of the data is a pair of answers to one prompt",
}
