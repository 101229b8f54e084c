"""From a recipe to objects: the only place that sees everything below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor

from lrft.core.axes import ADAPTERS, ALLOCATORS, FORMATS, INITS, OBJECTIVES, OPTIMIZERS, QUANTIZERS
from lrft.core.batch import Batch
from lrft.core.errors import DataError, RecipeError
from lrft.core.frozen import FrozenLinear
from lrft.core.objective import Objective
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.core.stages import Init, Plan, Signals
from lrft.data.gate import GateReport
from lrft.data.prepare import prepare
from lrft.data.sources import Rows, read_rows
from lrft.data.steps import StepBatches, TrainData, eval_batches
from lrft.data.tokenize import Encoded, Renderer, encode_all
from lrft.evaluate.loss import held_out_loss
from lrft.evaluate.subject import EvaluationStopped, Progress, Subject
from lrft.model.attach import adapter_tensors, attach, make_plan, parameter_infos, starts_in
from lrft.model.calibrate import calibrate
from lrft.model.causal_lm import CausalLM
from lrft.model.load import configure, load_model, load_tokenizer, pad_id
from lrft.model.sites import TargetRow, choose, linear_sites
from lrft.recipe.schema import Recipe
from lrft.train import schedule
from lrft.train.checkpoint import Identity
from lrft.train.folder import METRICS, RunFolder
from lrft.train.keepers import GradientCheck, LossScale, Saver, Scorer, StopOnSignal
from lrft.train.metrics import Bar, MetricsFile, Wandb


def silent(what: str, done: int, total: int) -> None:
    """No progress display."""


@dataclass
class Text:
    """Tokenizer and rows of a recipe, rendered and checked.

    Attributes:
        train: encoded training rows; empty where only evaluation is wanted.
        report: what the data gate found in them.
        held_out: rows of `data.eval`, or None.
    """

    tokenizer: Any
    stop_ids: set[int]
    pad_id: int
    renderer: Renderer
    train: list[Encoded] = field(default_factory=list)
    report: GateReport | None = None
    held_out: Rows | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def held_out_encoded(self, limit: int | None = None) -> list[Encoded]:
        """The held-out rows, encoded; rows that are too long are left out."""
        if self.held_out is None:
            return []
        kept = min(limit or len(self.held_out), len(self.held_out))
        rows = replace(self.held_out, rows=[self.held_out[i] for i in range(kept)])
        return [e for e in encode_all(rows, self.renderer) if not e.dropped and e.targets]


@dataclass
class Adaptation:
    """A base model with a recipe's adapter on it, and how it came about."""

    model: CausalLM
    plan: Plan
    targets: list[TargetRow]


@dataclass
class Job:
    """Everything `train` needs."""

    run: Run
    steps: Callable[[], Iterable[StepBatches]]
    objective: Objective
    text: Text
    adaptation: Adaptation
    identity: Identity
    folder: RunFolder


def read_text(
    recipe: Recipe, *, training: bool = True, trust_remote_code: bool = False, progress: Progress = silent
) -> Text:
    """Tokenizer and data; with `training`, the gate runs over the training rows.

    Raises:
        DataError: the rows cannot be read, or the gate stops them (exit code 3, with the numbers).
    """
    tokenizer, stops = load_tokenizer(recipe.model, trust_remote_code)
    form = FORMATS.get(recipe.data.format.method)(recipe.data.format)
    renderer = Renderer(tokenizer, form, stops, recipe.train.max_length, recipe.data.too_long)
    text = Text(tokenizer, stops, pad_id(tokenizer, stops), renderer)
    if recipe.data.eval is not None:
        text.held_out = read_rows(recipe.data.eval, "eval")
        text.fingerprints["eval"] = text.held_out.fingerprint
    if training:
        rows = read_rows(recipe.data.train, "train")
        text.fingerprints["train"] = rows.fingerprint
        prepared = prepare(rows, renderer, partial(progress, "tokenizing rows"))
        prepared.report.check(recipe.data.allow_empty_targets, recipe.data.too_long)
        text.train, text.report = prepared.encoded, prepared.report
        if recipe.train.eval_every is not None and not text.held_out_encoded(recipe.eval.limit):
            raise DataError("data.eval: no held-out row has a token to score within train.max_length")
    return text


def quantizer(recipe: Recipe) -> Callable[..., FrozenLinear]:
    """The recipe's storage format, ready to take (weight, bias)."""
    return partial(QUANTIZERS.get(recipe.quantization.method), config=recipe.quantization)


def adapt(
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    meta: bool = False,
    text: Text | None = None,
    saved: dict[str, Tensor] | None = None,
    progress: Progress = silent,
) -> Adaptation:
    """Load the base model and put the recipe's adapter on it; with `meta`, only plan it.

    Args:
        text: the training rows, for inits that calibrate.
        saved: adapter tensors of a checkpoint: its starts are used as they are, and nothing is calibrated again.

    Raises:
        RecipeError: the model cannot be loaded, or a target pattern matches nothing.
    """
    model = load_model(recipe.model, device=device, trust_remote_code=trust_remote_code, meta=meta)
    _check_length(recipe, model)
    sites, table = choose(linear_sites(model), recipe.adapter.targets)
    init = INITS.get(recipe.init.method)(recipe.init)
    plan = make_plan(sites, recipe.adapter)
    for planner in (ALLOCATORS.get(recipe.allocate.method)(recipe.allocate), init):
        plan = planner.plan(plan, {})
    if not meta:
        signals = {}
        if init.needs and saved is None:
            assert text is not None, "calibration needs the training rows"
            signals = _signals(recipe, model, sites, init, text, device, progress)
        attach(
            model,
            plan,
            adapter=ADAPTERS.get(recipe.adapter.method),
            config=recipe.adapter,
            init=init,
            quantize=quantizer(recipe),
            signals=signals,
            starts=None if saved is None else starts_in(saved),
            device=device,
            seed=recipe.train.seed,
            progress=partial(progress, "preparing layers"),
        )
        configure(model, recipe.model)
    return Adaptation(model, plan, table)


def _signals(
    recipe: Recipe,
    model: CausalLM,
    sites: dict[str, Site],
    init: Init,
    text: Text,
    device: torch.device | str,
    progress: Progress,
) -> Signals:
    """What the init needs measured, over the first micro-batches that training would see."""
    wanted = init.config.batches
    data = train_data(recipe, text)
    stream = chain.from_iterable(data.at(step).micro_batches for step in count())
    objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
    model.hf.to(device)
    torch.manual_seed(recipe.train.seed)
    show = partial(progress, "calibrating")
    return calibrate(
        model, sites, islice(stream, wanted), objective, init.needs, lambda done: show(done, wanted)
    )


def _check_length(recipe: Recipe, model: CausalLM) -> None:
    positions = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and recipe.train.max_length > positions:
        raise RecipeError(
            f"{recipe.train.max_length} tokens are more than the model has positions; use at most {positions}",
            "train.max_length",
        )


def assemble(
    recipe: Recipe, folder: RunFolder, text: Text, adaptation: Adaptation, accelerator: Any, recipe_hash: str
) -> Job:
    """Optimizer, schedule, callbacks and data order around an adapted model. Nothing is trained yet."""
    model, settings = adaptation.model, recipe.train
    data = train_data(recipe, text, accelerator.num_processes, accelerator.process_index)
    total = data.total_steps(settings.max_steps, settings.epochs)
    infos = parameter_infos(model)
    optimizer = OPTIMIZERS.get(recipe.optimizer.method).build(infos, recipe.optimizer)
    run = Run(
        model,
        infos,
        optimizer,
        schedule.build(optimizer, recipe.schedule, total),
        total,
        seed=settings.seed,
        clip=settings.clip,
        folder=folder.path,
        accelerator=accelerator,
        recipe=recipe,
    )
    identity = Identity(recipe_hash, model.fingerprint)
    run.callbacks = _callbacks(recipe, run, text, folder, identity)
    objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)

    def steps() -> Iterable[StepBatches]:
        return (data.at(step) for step in range(run.step, total))

    return Job(run, steps, objective, text, adaptation, identity, folder)


def train_data(recipe: Recipe, text: Text, world: int = 1, rank: int = 0) -> TrainData:
    """The training rows cut into steps, for process `rank` of `world`."""
    settings = recipe.train
    return TrainData(
        text.train,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        max_length=settings.max_length,
        packing=settings.packing,
        seed=settings.seed,
        pad_id=text.pad_id,
        world=world,
        rank=rank,
    )


def subject(recipe: Recipe, text: Text, model: CausalLM, **watching: Any) -> Subject:
    """What the evaluation tasks score."""
    return Subject(
        model=model,
        tokenizer=text.tokenizer,
        renderer=text.renderer,
        rows=text.held_out,
        stop_ids=text.stop_ids,
        pad_id=text.pad_id,
        batch_tokens=recipe.eval.batch_tokens,
        **watching,
    )


def _callbacks(recipe: Recipe, run: Run, text: Text, folder: RunFolder, identity: Identity) -> list[Any]:
    """In the order they act after a step: score, write the line, show it, save.

    The line comes before the checkpoint, so that a kill between the two cannot lose a step's record.
    """
    settings, logging = recipe.train, recipe.logging
    scorer = None
    if settings.eval_every is not None:
        encoded = text.held_out_encoded(recipe.eval.limit)
        batches = partial(eval_batches, encoded, recipe.eval.batch_tokens, text.pad_id)
        # Longest rows come first, so the first batch asks for the most memory.
        scorer = Scorer(
            partial(_score, batches), partial(_score, lambda: islice(batches(), 1)), settings.eval_every
        )
    saver = Saver(
        partial(adapter_tensors, run.model),
        folder.checkpoints,
        identity,
        every=settings.save_every,
        keep_last=settings.keep_last,
        scorer=scorer,
    )
    wandb = (
        Wandb(logging.wandb, folder.path.name, folder.path, recipe.model_dump()) if logging.wandb else None
    )
    scale = LossScale(run.device.type) if recipe.model.dtype == "float16" else None
    found = [
        GradientCheck(),
        scale,
        scorer,
        MetricsFile(folder.path / METRICS),
        Bar(logging.every),
        wandb,
        StopOnSignal(),
        saver,
    ]
    return [callback for callback in found if callback is not None]


def _score(batches: Callable[[], Iterable[Batch]], run: Run) -> dict[str, float]:
    try:
        result = held_out_loss(run.model, batches(), lambda: run.stop_signal is not None)
    except EvaluationStopped:
        return {}
    return {"eval_loss": result.loss, "eval_perplexity": result.perplexity}
