"""Labels of whole texts: cross-entropy over classes, or the squared error of one number."""

from __future__ import annotations

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.ops.label_loss import label_losses
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import MethodConfig


@OBJECTIVES.register
class Classify(Objective):
    """Sequence classification and regression: every text is given a label from its last token.

        loss = -sum over texts of log softmax(S h)[c]       c the class, where `model.head` has several labels
        loss = sum over texts of (S h - y)^2                y the number, where it has one

    with h the hidden state of the text's last token after the final norm, S the score head. The loop divides by the
    texts of the step, each of which is one target.

    Shapes: h (texts, d), S (labels, d) without bias, in float32 whatever `model.dtype`; the loss one number. At step 0
    S is drawn as the model draws its weights, so the loss is near the log of the number of classes.
    Trains: what the adapter trains, and the labels x d numbers of S.
    Source: standard; as transformers' models for sequence classification compute it.
    Departures: S and its product are in float32.
    """

    aliases = {
        "sequence_classification seq_cls classification text_classification": "objective: classify\n"
        "model: {head: [LABEL, ...]}\ndata: {format: classify}",
        "regression mse": "objective: classify\nmodel: {head: [NAME]}\ndata: {format: classify}",
    }
    provides = {"backward"}
    requires = {"labels", "score_head"}

    config: MethodConfig

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        assert batch.labels is not None, "rows without labels are refused with the recipe"
        return label_losses(model.scores(batch), batch.labels).sum()
