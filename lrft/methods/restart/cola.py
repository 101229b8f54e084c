"""COLA: a chain of LoRAs, each trained on what the ones before left."""

from __future__ import annotations

from typing import TypedDict

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.methods.restart._unload import check_renewable, fold_all
from lrft.registry.axes import RESTARTS
from lrft.registry.config import Field, MethodConfig, Sequence
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    knots: int


@RESTARTS.register
class COLA(TimedMethod):
    """Chain of LoRA: a few adapters train one after the other, each merged into the weight before the next begins.

        after step ceil(k T / K), k = 1 ... K - 1:  W <- W + s B A,  A drawn anew,  B <- 0

    with T the run's steps, K = `links`, s the adapter's scale. A link also gets a new optimizer state and a new
    schedule. All links together cost what LoRA costs. `links: 1` is LoRA, bit for bit.

    Shapes: W (out, in), A (r, in), B (out, r). Changes nothing at step 0; a merge between two links leaves the function
    of the model as it was, as W + s B A is the same before and after.
    Trains: what the adapter trains, a new one in every link. What was merged is kept in float32 beside the stored
    weight and never rounded into it: 4 r (in + out) bytes a link, or 4 in out where that is less.
    State: the number of merges.
    Source: Xia, Qin and Hazan, "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning", 2024,
    arXiv 2401.04151. There is no authors' code; the length of the chain and the links' rates were not to be had.
    Departures: A is drawn as the adapter draws it (Kaiming-uniform for LoRA, where the paper says Gaussian). A link's
    schedule is the recipe's, warm-up included, run through T / (steps of the link) times as fast. The decay of the rank
    along the chain is left out.
    """

    aliases = {
        "chain_of_lora": "restart: cola",
    }
    requires = {"adapters", "mergeable", "beside_base", "foldable"}

    config: Config

    class Config(MethodConfig):
        links: int = Field(
            2, gt=0, description="adapters trained one after the other, in equal shares of the run"
        )

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse links without a step."""
            if self.links > total_steps:
                message = f"{self.links} links are more than the run's {total_steps} steps; use at most {total_steps}"
                raise RecipeError(message, "restart.links")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.knots = 0

    def start(self, run: Run) -> None:
        check_renewable(run)
        run.schedule.repeat(_begins(self.config.links, run.total_steps))

    def after_step(self, run: Run) -> None:
        if run.step not in _begins(self.config.links, run.total_steps)[1:-1]:
            return
        fold_all(run)
        run.reset_optimizer()
        self.knots += 1
        run.record(restarts=self.knots)

    def state_dict(self) -> State:
        return {"knots": self.knots}

    def load_state_dict(self, state: State) -> None:
        self.knots = state["knots"]


def _begins(links: int, total: int) -> list[int]:
    """The finished steps at which each link begins, and those of the whole run."""
    return [-(-link * total // links) for link in range(links + 1)]
