"""A new adapter for every task of a sequence, put on what the tasks before have left."""

from __future__ import annotations

from typing import TypedDict

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.methods.restart._unload import check_renewable, fold_all
from lrft.registry.axes import RESTARTS
from lrft.registry.config import Field, Iterator, Literal, MethodConfig, Problem, RecipeView


class State(TypedDict):
    """What a resume needs."""

    tasks: int


@RESTARTS.register
class EachTask(TimedMethod):
    """Every task of `data.mix.order: in_turn` begins as a run of its own, on the weights that the others left.

        at the border of two tasks:  W <- W + delta W,  delta W <- 0, started as on a pretrained W

    with delta W the adapter's change. The optimizer's state is forgotten, and the recipe's schedule, warm-up included,
    is run through in every task. An adapter that keeps directions of W takes those of the new one: with `adapter: osf`
    this is the sequence of tasks of its paper, what was learnt being protected as what was pretrained is. `change:
    kept` leaves W and delta W as they are, and renews optimizer and schedule alone: one adapter for all tasks.

    Shapes: W, delta W (out, in). Changes nothing at step 0, and at a border leaves the function as it was.
    Trains: what the adapter trains, a new one in every task. What was moved is kept in float32 beside the stored weight
    and never rounded into it: as factors as long as these are smaller than the weight, else 4 in out bytes.
    State: the number of borders that were passed.
    Source: the sequence of tasks of Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for
    Continual Learning", 2025, arXiv 2504.07097 (decompose again the weight that a task left), carried to every adapter
    that can start anew.
    Departures: none of that step; the paper's runs one after the other are one run here.
    """

    aliases = {
        "continual_learning sequential_fine_tuning": "data: {train: [owner/a, owner/b], eval: [owner/a, owner/b], "
        "mix: {order: in_turn}}\nrestart: each_task",
    }
    requires = {"adapters", "mergeable", "beside_base", "foldable"}

    config: Config

    class Config(MethodConfig):
        change: Literal["moved", "kept"] = Field(
            "moved",
            description="moved: the adapter's goes into the base and the adapter starts again; kept: it goes on",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Tasks that nobody tells apart."""
            if recipe["data.mix.order"] != "in_turn":
                message = "there is one task; write data.mix.order: in_turn beside a list in data.train, or remove this"
                yield Problem("restart.method", message)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tasks = 0

    def start(self, run: Run) -> None:
        check_renewable(run)
        run.schedule.repeat([0, *run.tasks.values()])

    def after_step(self, run: Run) -> None:
        if not run.at_a_border:
            return
        if self.config.change == "moved":
            fold_all(run, renew=True)
        run.reset_optimizer()
        self.tasks += 1
        run.record(restarts=self.tasks)

    def state_dict(self) -> State:
        return {"tasks": self.tasks}

    def load_state_dict(self, state: State) -> None:
        self.tasks = state["tasks"]
