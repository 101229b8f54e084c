"""What is told of the rewards of answers: of a step, and of a run at its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from torch.optim.optimizer import StateDict

from lrft.build.answers import Group
from lrft.core.reward import Reward

Counts = defaultdict[str, float]


def count(groups: Sequence[Group], rewards: Sequence[Reward], counted: Counts) -> None:
    """Add the sums over answers, and over prompts, of groups as they were first drawn."""
    for group in groups:
        whole = group.totals.reshape(len(group.attempts), -1).sum(1)
        counted["answers"] += len(group.attempts)
        counted["prompts"] += 1
        counted["reward"] += float(whole.sum())
        counted["spread"] += float(whole.std())
        counted["alike"] += group.alike
        counted["drawn"] += sum(attempt.tokens for attempt in group.attempts)
        counted["stopped"] += sum(attempt.stopped for attempt in group.attempts)
        for place, reward in enumerate(rewards if len(rewards) > 1 else ()):
            counted[f"reward/{reward.name}"] += float(group.scores[:, place].sum())


def together(parts: Sequence[Mapping[str, float]]) -> Counts:
    """The sums of all processes."""
    whole = defaultdict[str, float](float)
    for part in parts:
        for name, total in part.items():
            whole[name] += total
    return whole


def means(whole: Counts, redraws: int) -> dict[str, float]:
    """What is recorded of a step, from the sums over all of it; in the order in which a checkpoint gives it back."""
    answers, prompts = whole["answers"], whole["prompts"]
    found = {
        "reward": whole["reward"] / answers,
        "reward_spread": whole["spread"] / prompts,
        "rewards_alike": whole["alike"] / prompts,
        "answer_tokens": whole["drawn"] / answers,
        "answers_stopped": whole["stopped"] / answers,
        **{name: total / answers for name, total in whole.items() if "/" in name},
    }
    if redraws:
        found |= {"redrawn": whole["redrawn"] / prompts, "alike_left": whole["alike_left"] / prompts}
    return dict(sorted(found.items()))


class Told:
    """What the steps of a run so far come to, for its end."""

    def __init__(self, redraws: int) -> None:
        self.redraws = redraws
        self.differed = False  # whether any two answers to a prompt were worth more and less
        self.prompts = self.redrawn = self.alike_left = 0

    def add(self, whole: Counts) -> None:
        """Add the sums over a step."""
        self.differed = self.differed or whole["alike_left"] < whole["prompts"]
        self.prompts += int(whole["prompts"])
        self.redrawn += int(whole["redrawn"])
        self.alike_left += int(whole["alike_left"])

    def sentences(self) -> Iterator[str]:
        """What is said at the end."""
        if self.redraws and self.redrawn:
            yield (
                f"of {self.prompts:,} prompts, those whose answers were all worth the same were replaced, "
                f"{self.redrawn:,} times; {self.alike_left:,} were such after {self.redraws} others and taught nothing"
            )
        if not self.differed:
            yield "all answers to a prompt were worth the same in every step, so no reward taught anything"

    def state_dict(self) -> StateDict:
        """Plain values."""
        state: StateDict = {"differed": self.differed}
        if self.redraws:
            state |= {"prompts": self.prompts, "redrawn": self.redrawn, "alike_left": self.alike_left}
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Take back what `state_dict` gave."""
        self.differed = state["differed"]
        if self.redraws:
            self.prompts, self.redrawn = state["prompts"], state["redrawn"]
            self.alike_left = state["alike_left"]
