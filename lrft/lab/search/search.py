"""A search from start to report: arms proposed, trained, kept, and the best of them as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrft.core import stop
from lrft.core.notes import say
from lrft.core.search import Genes, Known, Search, best_first
from lrft.files.fresh_folder import remove_folder
from lrft.files.write import write_file
from lrft.lab.runs.judged import Metric, metric_of
from lrft.lab.runs.local import Progress, run_all
from lrft.lab.runs.outcome import finished, result, seconds_a_step, value, why_without
from lrft.lab.runs.planned import Arm, PlannedRun, plan_run
from lrft.lab.search.arms import Arms
from lrft.lab.search.front import COSTS, front, trial_of
from lrft.lab.search.record import Found
from lrft.lab.search.settings import Settings
from lrft.lab.search.space import read_space
from lrft.lab.search.state import BEST, Line, State
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash, resolved
from lrft.registry.axes import SEARCHES
from lrft.registry.errors import OutOfMemory, UsageError
from lrft.registry.json import Json


def search(
    recipe: str, overrides: Sequence[str], space: Path, settings: Settings, command: str = ""
) -> Found:
    """Train arms until the budget is used up or there is no other; those of an earlier call are not run again.

    Raises:
        RecipeError: the recipe, the space or one of its values is not valid.
        UsageError: the folder holds another search, its arms were trained with other code or data, or none of
            them can be.
        LrftError, Interrupted: see `lrft.lab.runs.local.run_all`.
    """
    with stop.listening(f"what is finished in {settings.out} is kept; the same command goes on"):
        arms = Arms(recipe, overrides, read_space(space), settings.metric, settings.trust_remote_code)
        arms.check()
        return _Search(arms, settings).run(command)


class _Search:
    """A search at work in its folder."""

    def __init__(self, arms: Arms, settings: Settings) -> None:
        self.arms, self.settings = arms, settings
        base = load_recipe(arms.source, arms.overrides).recipe
        self.metric: Metric = metric_of([base], settings.metric)
        method = SEARCHES.get(settings.method.method)
        self.method: Search = method(settings.method, arms.space.genes, settings.seed)
        self.asked: dict[str, Json] = {
            "recipe": recipe_hash(base),
            "space": arms.space.record(),
            "method": settings.method.model_dump(mode="json"),
            "metric": settings.metric,
            "against": settings.against,
            "seed": settings.seed,
        }
        self.exhausted = False

    def run(self, command: str) -> Found:
        """Every arm, from the first that is not over yet."""
        state = State(self.settings.out, self.asked)
        try:
            chosen = [tuple(line.genes) for line in state.lines]
            for line in state.lines:
                self._compare(line)
            progress = Progress(self.settings.budget, self.settings.jobs, len(chosen))
            while planned := self._propose(chosen, state.lines):
                self._train(planned, state, progress)
            if not state.lines:
                raise UsageError(
                    f"{self.settings.out}: nothing of the space can be trained; {self.arms.first_refusal()}"
                )
            return self._found(state.lines, command)
        finally:
            state.close()

    def _propose(self, chosen: list[Genes], lines: Sequence[Line]) -> list[tuple[Genes, PlannedRun]]:
        """The arms that need to know nothing but the lines; their configurations are added to `chosen`."""
        found = []
        while len(chosen) < self.settings.budget and self.method.known(len(chosen)) <= len(lines):
            stop.poll()
            seen = lines[: self.method.known(len(chosen))]
            trials = [trial_of(line, self.metric, self.settings.against) for line in seen]
            genes = self.method.propose(len(chosen), Known(tuple(chosen), trials, self.arms.possible))
            if genes is None:
                self.exhausted = True
                break
            arm = self.arms.take(genes)
            found.append((genes, self._planned(arm)))
            say(f"arm {len(chosen)}: {arm.label}, {self.arms.cost(arm)['trainable']:,} trainable")
            chosen.append(genes)
        return found

    def _train(self, planned: Sequence[tuple[Genes, PlannedRun]], state: State, progress: Progress) -> None:
        """Finish runs, and keep a line of each as soon as all before it have one."""
        waiting = list(planned)

        def keep(run: PlannedRun | None = None) -> None:
            if run is not None and not self.settings.keep_checkpoints:
                remove_folder(run.folder / "checkpoints")
            while waiting and finished(waiting[0][1]):
                state.add(self._line(len(state.lines), *waiting.pop(0)))

        runs = [run for _, run in planned]
        excused = (OutOfMemory.exit_code,)  # some arms are larger than others
        run_all(runs, self.settings.jobs, progress, self.settings.cluster, after=keep, excused=excused)
        keep()

    def _planned(self, arm: Arm) -> PlannedRun:
        of = self.settings
        return plan_run(arm, arm.recipe.optimizer.lr, arm.recipe.train.seed, of.out, of.trust_remote_code)

    def _compare(self, line: Line) -> None:
        """Refuse an arm that would be another run today.

        Raises:
            UsageError: code, data or the recipe's files changed since.
        """
        run = self._planned(self.arms.take(tuple(line.genes)))
        if str(run.folder.relative_to(self.settings.out)) != line.run:
            raise UsageError(
                f"--out {self.settings.out}: arm {line.arm} was trained as {line.run} and would be "
                f"{run.folder.name} now, as lrft or a file that the recipe names has changed; choose another folder"
            )

    def _line(self, index: int, genes: Genes, run: PlannedRun) -> Line:
        found, arm = result(run), self.arms.arm(genes)
        cost, seconds = self.arms.cost(arm), found.get("seconds")

        def last(key: str) -> float | None:
            return value(run, key) if found else None

        score = last(self.metric.name)
        return Line(
            arm=index,
            label=arm.label,
            genes=list(genes),
            values=dict(self.arms.values(genes)),
            failure=why_without(run) or ("the score is no finite number" if score is None else None),
            score=score,
            loss=last("loss"),
            eval_loss=last("eval_loss") if arm.recipe.data.holds_out else None,
            trainable=cost["trainable"],
            bytes=cost["weight_bytes"]
            + cost["trainable_bytes"]
            + cost["gradient_bytes"]
            + cost["optimizer_bytes"],
            step_seconds=seconds_a_step(run),
            seconds=float(seconds) if isinstance(seconds, int | float) else None,
            run=str(run.folder.relative_to(self.settings.out)),
        )

    def _found(self, lines: Sequence[Line], command: str) -> Found:
        """The record, and the best recipe beside it."""
        settings = self.settings
        trials = {cost: [trial_of(line, self.metric, cost) for line in lines] for cost in COSTS}
        fronts = {cost: set(front(of_cost)) for cost, of_cost in trials.items()}
        order = {trial.genes: place for place, trial in enumerate(best_first(trials[settings.against]))}
        rows: list[Any] = [
            {**line.model_dump(), "front": [cost for cost in COSTS if line.arm in fronts[cost]]}
            for line in sorted(lines, key=lambda line: order[tuple(line.genes)])
        ]
        best = rows[0]["arm"] if rows and rows[0]["score"] is not None else None
        if best is not None:
            run = self._planned(self.arms.arm(tuple(rows[0]["genes"])))
            write_file(settings.out / BEST, resolved(run.recipe), f"--out {settings.out}: {BEST}")
        refusals = list(self.arms.refused.values())
        method: dict[str, Json] = settings.method.model_dump(mode="json")
        return {
            "command": command,
            "recipe": self.arms.source,
            "method": method,
            "metric": self.metric.name,
            "higher": self.metric.higher,
            "against": settings.against,
            "seed": settings.seed,
            "budget": settings.budget,
            "keys": [one.key for one in self.arms.space.dimensions],
            "best": best,
            "best_recipe": None if best is None else BEST,
            "refused": len(refusals),
            "refusal": refusals[0] if refusals else None,
            "exhausted": self.exhausted,
            "rows": rows,
        }
