"""Relative changes, of weights whose change is a known multiple of them."""

import math
from types import SimpleNamespace

import pytest
import torch

from lrft.core.analysis import Change
from lrft.methods.analysis.layer_change import ratio
from lrft.registry.axes import ANALYSES

SHARES = {
    "model.layers.0.self_attn.q_proj": 0.1,
    "model.layers.0.mlp.up_proj": 0.3,
    "model.layers.11.self_attn.q_proj": 0.0,
    "lm_head": 0.2,
}


class Known:
    """Weights of one size, each changed by a share of itself."""

    def names(self) -> list[str]:
        return list(SHARES)

    def changes(self):
        for site, share in SHARES.items():
            yield Change(site, torch.ones(4, 4), share * torch.ones(4, 4))


def test_a_change_that_is_a_share_of_the_weight_is_that_share():
    analysis = ANALYSES.get("layer_change")(ANALYSES.settings("layer_change"))
    run = SimpleNamespace(weights=Known(), summary={})
    analysis.start(run)
    analysis.finish(run)
    found = run.summary["analysis"]["layer_change"]
    assert found["site"] == pytest.approx(SHARES)
    rms = lambda *shares: math.sqrt(sum(s**2 for s in shares) / len(shares))  # noqa: E731
    assert found["layer"] == pytest.approx(
        {"model.layers.0": rms(0.1, 0.3), "model.layers.11": 0.0, "lm_head": 0.2}
    )
    assert found["kind"] == pytest.approx({"q_proj": rms(0.1, 0), "up_proj": 0.3, "lm_head": 0.2})
    assert found["all"] == pytest.approx(rms(*SHARES.values()))


def test_zeros_that_moved_have_no_share():
    assert ratio(0.0, 0.0) == 0.0 and ratio(1.0, 0.0) == math.inf
