"""LT-SFT: the entries that full fine-tuning moved furthest train again, from the pretrained weights."""

from __future__ import annotations

from lrft.methods.adapters._share_of_entries import ShareOfEntries
from lrft.registry.axes import ADAPTERS


@ADAPTERS.register
class LTSFT(ShareOfEntries):
    """Lottery-ticket sparse fine-tuning: a sparse difference, at the entries that matter when everything may move.

        phase 1:  W1 = the weight after full fine-tuning
        phase 2:  W' = W + S,  S = 0 outside the k largest entries of |W1 - W|
        y  = x W'^T + b

    Phase 1 is a run of its own, whose merged model `init: lt_sft` is told. Phase 2 is this run: it begins at W, with an
    optimizer and a schedule of its own. k = `entries` or, without it, `share` of the entries of W, rounded, one at the
    least; the init deals them out over all weights. Differences of one base add up, W + S_task + S_language, which
    `lrft merge --add` does with two runs.

    Shapes: the values of S (k) = 0, so W' = W at step 0; `places` (k).
    Trains: k numbers per site. Memory: of phase 2 as of `adapter: gps`; phase 1 is full fine-tuning.
    Source: Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, and the authors' code
    (cambridgeltl/composable-sft), known here by a description; `share: 0.01` is its default.
    Departures: S is beside a base of any storage, where the code masks the gradients of W and keeps dense moments. The
    norm that gradients are clipped by is of the entries, as there, where the mask comes first; weight decay pulls S to
    0, where there it would shrink every weight. Parameters that the code trains dense beside S, heads say, are what
    `trainable` names. One iteration, and no pull of phase 1 to W by the sum of absolute values.
    """

    aliases = {
        "lottery_ticket_sft composable_sft": "adapter: lt_sft\ninit: {method: lt_sft, tuned: MERGED_MODEL_FOLDER}",
        "ft_params_proportion": "adapter: {method: lt_sft, share: 0.01}\n"
        "init: {method: lt_sft, tuned: MERGED_MODEL_FOLDER}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}
