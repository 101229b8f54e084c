"""Just One Byte: zeroth-order descent of which a step is told by a seed and a byte a direction, and replayed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import Draw, generator_of
from lrft.methods.optim._torch import Group
from lrft.methods.optim.mezo import MeZO
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import ADDED, Annotated, Field, Iterator, Problem, RecipeView

FINENESS, MOST = 16, 127  # steps of the logarithm between 1 and e, and the largest number of them
ZERO = MOST + 1  # added to a logarithm's code, so that 0 is a slope of 0


@OPTIMIZERS.register
class JustOneByte(MeZO):
    """Zeroth-order descent by shared randomness: what a step does is a seed and a coded number for each direction.

        e_i = eps exp(jitter x_i),  x_i ~ N(0, 1)
        g_i = (L(p + e_i z_i) - L(p - e_i z_i)) / (2 e_i)
        c_i = clamp(round(16 ln |g_i|), -127, 127)
        h_i = sign(g_i) exp(c_i / 16),  0 where g_i is
        p <- p - lr (sum of h_i z_i / sqrt(n) + wd p)

    with p, L, z_i (drawn from `seed`), wd as of `mezo`, n = `samples`, eps = `eps`, jitter = `jitter`. What is sent,
    sign and c_i, is what is done: h_i is at most 3.2 % from g_i between e^-7.94 and e^7.94, beyond them an end. So
    everybody who has p at step 0 has p at every step by the settings, the codes and the rates: `replay` does all
    updates again, without a loss, to the bit in the same dtype on the same kind of device.

    Shapes: z as p; e, g, c, h one number a direction.
    State: 0 bytes per number; of a run the codes, 2 bytes a direction, and the rates, 12 bytes for each change of them,
    or 8 where every step has another. During a step one copy of what trains, from which p is restored to the bit
    (`restore: exact`). With `checkpoint: record` a checkpoint holds that, and what trains is left out of it.
    Source: "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using Shared
    Randomness", 2023, arXiv 2306.10015, and the authors' code (ezelikman/justonebyte).
    Departures: settled here: sign and logarithm are nine bits there too and are kept in two bytes; the code sends the
    number before it is coded. Its jitter is of the opposite sign behind p, and g_i is divided by 2 eps: here e_i is on
    both sides and in g_i. Machines are the directions of one step: all see the step's whole batch, where each has its
    own data there. x_i has a seed of its own, weight decay is an addition. `replay` knows what this optimizer moved and
    nothing else, so `checkpoint: record` is refused where anything else changes; a resume, a score or a merge then
    begins with all updates so far, done again, and compares the sum of what trains.
    Advice: the authors have `lr: 0.1`, 300 steps and `eps: 0.001` for all weights of GPT-2.
    """

    aliases = {
        "one_byte shared_randomness": "optimizer: just_one_byte\ntrain: {clip: null}",
    }

    class Config(MeZO.Config):
        eps: float = Field(
            1e-3, gt=0, description="how far the two points lie from the parameters, in the median"
        )
        jitter: float = Field(
            0.1, ge=0, le=10, description="standard deviation of the logarithm of that distance"
        )
        restore: Literal["exact"] = "exact"
        checkpoint: Annotated[Literal["whole", "record"], ADDED] = Field(
            "whole",
            description="record: checkpoints hold the codes in the place of what trains, which comes of them",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What the record would not say."""
            yield from super().clashes(recipe)
            if self.checkpoint == "whole":
                return
            same = {
                "init.method": (None, "default"),
                "allocate.method": ("uniform",),
                "trainable.update": ("in_place",),
            }
            same |= dict.fromkeys(("restart", "select", "prune", "model.adapter"), (None,))
            for key, known in same.items():
                if recipe["init"] is None and key == "init.method":
                    continue
                if recipe[key] not in known:
                    message = "a record of steps does not say what this does; write whole, or leave it out"
                    yield Problem("optimizer.checkpoint", f"{message} ({key})")

    seed: int
    jitter: float
    codes: list[list[int]]
    rates: list[list[float]]
    since: list[int]

    @classmethod
    def build(cls, params: list[ParamInfo], config: Any, draw: Draw | None = None) -> JustOneByte:
        optimizer = super().build(params, config, draw)
        assert isinstance(optimizer, JustOneByte)
        optimizer.seed, optimizer.jitter = config.seed, config.jitter
        optimizer.replays = config.checkpoint == "record"
        optimizer.codes, optimizer.rates, optimizer.since = [], [], []
        return optimizer

    def _distance(self, settings: Group, sample: int) -> float:
        generator = generator_of(self.seed, settings["steps"], sample, "distance", torch.device("cpu"))
        drawn = torch.randn((), generator=generator, dtype=torch.float64).item()
        return float(settings["eps"] * math.exp(self.jitter * drawn))

    def _move_along(self, slopes: list[float]) -> None:
        rates = [float(group["lr"]) for group in self.param_groups]
        if not self.rates or self.rates[-1] != rates:
            self.rates.append(rates)
            self.since.append(len(self.codes))
        self.codes.append([coded(slope) for slope in slopes])
        self._update_by(self.codes[-1])

    def _update_by(self, codes: list[int]) -> None:
        self._update([decoded(code) / math.sqrt(len(codes)) for code in codes])

    @torch.no_grad()
    def replay(self, record: Mapping[str, Tensor]) -> None:
        """From parameters as they were at step 0 to those after the last step of a record, without a loss.

        Args:
            record: `record` of the `state_dict` of an optimizer with the same settings.

        Raises:
            ValueError: this optimizer has made steps already.
        """
        if self.codes:
            raise ValueError(f"{len(self.codes)} steps were made already; replay on parameters of step 0")
        codes, rates, since = _read(record, len(self.param_groups))
        for step, of_step in enumerate(codes):
            at_step = rates[bisect_right(since, step) - 1]
            for group, rate in zip(self.param_groups, at_step, strict=True):
                group["lr"], group["steps"] = rate, step
            self._update_by(of_step)
        for group in self.param_groups:
            group["steps"] = len(codes)
        self.codes, self.rates, self.since = codes, rates, since

    def state_dict(self) -> StateDict:
        """Torch's, and `record`: codes (steps, directions), rates (changes, groups), and from which steps they are.

        Where all groups always had one rate, it stands once; where every step had another, no steps are named.
        """
        alike = all(len(set(row)) == 1 for row in self.rates)
        record = {
            "codes": torch.tensor(self.codes, dtype=torch.int16),
            "rates": torch.tensor([row[:1] if alike else row for row in self.rates], dtype=torch.float64),
        }
        if self.since != list(range(len(self.codes))) or not self.replays:
            record["since"] = torch.tensor(self.since, dtype=torch.int32)
        state = super().state_dict()
        if self.replays:  # hundreds of names would be more than the record
            state["param_groups"] = [
                {key: value for key, value in group.items() if key != "param_names"}
                for group in state["param_groups"]
            ]
        return {**state, "record": record}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take back what `state_dict` gave; the record goes on."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "record"})
        self.codes, self.rates, self.since = _read(state_dict["record"], len(self.param_groups))


def coded(slope: float) -> int:
    """The code of a slope: 0 of 0, else -255 to 255 without 0, the sign that of the slope."""
    if slope == 0:
        return 0
    logarithm = max(-MOST, min(MOST, round(FINENESS * math.log(abs(slope)))))
    return int(math.copysign(ZERO + logarithm, slope))


def decoded(code: int) -> float:
    """The slope that a code stands for."""
    return math.copysign(math.exp((abs(code) - ZERO) / FINENESS), code) if code else 0.0


def _read(record: Mapping[str, Tensor], groups: int) -> tuple[list[list[int]], list[list[float]], list[int]]:
    rates = [row * groups if len(row) == 1 else row for row in record["rates"].tolist()]
    codes = record["codes"].tolist()
    return codes, rates, record["since"].tolist() if "since" in record else list(range(len(codes)))
