"""The moments of a training step at which memory may be at its most, and what is held at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lrft.build.at_rest import saving_room, step_room
from lrft.build.measured import Measured
from lrft.build.resident import inputs_held
from lrft.build.trial import Tried
from lrft.core.params import ParamInfo
from lrft.recipe.schema import Recipe
from lrft.training.private import private_bytes


@dataclass(frozen=True)
class Moments:
    """Those of one recipe on one kind of device.

    Attributes:
        infos: the parameters that train.
        counted: bytes at rest, `gradient_bytes` among them.
        state: bytes of the optimizer's state.
        device: `cpu` or `cuda`.
    """

    recipe: Recipe
    infos: list[ParamInfo]
    counted: Measured
    state: int
    device: str

    def of(self, tried: Tried, recomputed: int) -> Iterator[tuple[str, dict[str, int]]]:
        """Name -> the bytes of what is held then beside weights, adapter and optimizer state.

        Args:
            tried: every layer, and the loss, at one shape.
            recomputed: how many layers, from the first, are computed again in the backward pass.
        """
        costs, loss = tried.costs, tried.loss
        if not tried.trains:
            inside = max(loss.forward, *(cost.forward for cost in costs))
            yield "forward pass", {"activations": tried.between, "working": inside}
            return
        whole, per_layer = self.counted["gradient_bytes"], self.recipe.optimizer.per_layer
        private = None if self.recipe.privacy is None else private_bytes([info.param for info in self.infos])
        sums = 0 if private is None else private.sums  # beside which every row has gradients of its own
        held = whole if private is None and self.recipe.train.gradient_accumulation > 1 else 0
        first = inputs_held(self.recipe, recomputed)  # the inputs of the others lie elsewhere
        kept = [
            (tried.rows if i < first else 0) if i < recomputed else cost.kept for i, cost in enumerate(costs)
        ]
        all_kept = tried.between + sum(kept)
        inside = max(0, *(cost.forward - cost.kept for cost in costs))
        yield "forward pass", {"gradients": sums + held, "activations": all_kept, "working": inside}
        most = max(loss.forward, loss.backward - loss.gradients)
        there = sums + (held or loss.gradients)
        yield "loss", {"gradients": there, "activations": all_kept, "loss": most}
        done = loss.gradients
        for index in reversed(range(len(costs))):
            cost, before = costs[index], tried.between + sum(kept[:index])
            done += cost.gradients
            again = cost.forward + tried.rows if index < recomputed else 0
            yield (
                "backward pass",
                {
                    "gradients": sums + (whole if held or per_layer else done),
                    "activations": before + cost.kept,
                    "working": max(cost.backward - cost.gradients, again) - cost.kept,
                },
            )
        if private is not None:
            yield "clipping of a row", {"gradients": sums + whole, "working": private.clipping}
            yield "adding of noise", {"gradients": sums, "working": private.noise}
        yield "optimizer step", {"gradients": whole, "working": step_room(self.recipe, self.infos)}
        if self.device == "cpu":  # a GPU's tensors are copied to the host first
            room = saving_room(self.recipe, self.infos, self.state)
            read = {"gradients": 0 if per_layer else whole, "optimizer_state": self.state}
            yield "writing of a checkpoint", {**read, "working": room}
