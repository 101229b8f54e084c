"""One cell of the grid of adapters and storages: a run of three steps on a tiny model, and what was asked of it.

A cell is what really happened: a word where all that it asserts held, the sentence of the refusal that a user reads, or
a fault, which is anything else.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

import make_tiny_model  # noqa: E402
from lrft.api.exporting.export import export  # noqa: E402
from lrft.api.exporting.form import Options  # noqa: E402
from lrft.api.merging.merge import merge  # noqa: E402
from lrft.api.opening.open_run import open_run  # noqa: E402
from lrft.api.training.train import train  # noqa: E402
from lrft.core.adapted import adapters_off  # noqa: E402
from lrft.model.causal_lm import CausalLM  # noqa: E402
from lrft.recipe.load import LoadedRecipe, load_recipe  # noqa: E402
from lrft.recipe.schema import Recipe  # noqa: E402
from lrft.registry.axes import ADAPTERS  # noqa: E402
from lrft.registry.errors import Interrupted, LrftError, NotMergeable, RecipeError, UsageError  # noqa: E402
from lrft.training.folder import METRICS, RunFolder  # noqa: E402
from lrft.training.opened import ADAPTER  # noqa: E402

SMOKE = ROOT / "recipes" / "smoke"
STORAGES = ("none", "nf4", "fp4", "int8")
WHATS = ("train", "merge", "export", "resume", "compile")
REFUSALS = (RecipeError, UsageError, NotMergeable)  # what a user can mend, or is told to do in another way
DONE, PEFT, PLAIN, REFUSED, FAULT = "done", "peft", "lora", "refused", "fault"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
RAISED = re.compile(
    r"\b[A-Z][a-z]\w*(Error|Exception)\b"
)  # no sentence for a user: the code's own fault, passed on
CUT = 2  # the step after which a run is cut off
RATE = 0.02  # or what the smoke recipe has, where that is more: three steps have to move the logits
STILL = 0.002  # where losses are compared, so that what rounding tips over, such as a choice of experts, stays small
SMALL = [
    *("model.dtype=float32", "schedule=constant", "train.max_steps=3", "train.save_every=1"),
    *("train.keep_last=9", "train.packing=true", "train.device=cpu", "data.train.limit=30", "data.eval.limit=2"),
    *("eval.tasks=[]", "eval.at_end=false"),
]  # fmt: skip
IDS = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
# Largest difference of two logits that should be one, in float32, as a share of how far training moved them; and in
# shares of the logits' own size, for what rounding alone does; and how far training has to move them, in such shares.
OF_MOVE, OF_SIZE, LEAST = 1e-3, 1e-5, 1e-3
ERROR = 1e-4  # asked of a plain LoRA form: share of a layer's change that may be left out
SAME_LOSS = 1e-3  # of a compiled step, whose sums are in another order


@dataclass(frozen=True)
class Cell:
    """What happened.

    Attributes:
        outcome: `done`, or of an export which form it has (`peft`, `lora`), `refused` or `fault`.
        said: the sentence of a refusal or what the fault was.
        found: what was measured.
        version: of lrft, under which it happened.
        libraries: and of what it stands on.
    """

    adapter: str
    storage: str
    what: str
    outcome: str
    said: str
    found: dict[str, float]
    seconds: float
    version: str
    libraries: str = ""

    @property
    def trains(self) -> bool:
        """Whether there is a run to ask more of; said of the cell `train`."""
        return self.outcome == DONE

    def record(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


class Broken(AssertionError):
    """What a cell asserts does not hold."""


@dataclass
class Bench:
    """A folder with tiny models, made when first asked for, and adapters for methods that are given some."""

    scratch: Path
    given: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> Path:
        """Two layers."""
        return make_tiny_model.make(self.scratch / "model")

    @cached_property
    def shallow(self) -> Path:
        """One layer: tracing is what takes long of compiling."""
        shape = partial(_one_layer, make_tiny_model._shape)
        with mock.patch.object(make_tiny_model, "_shape", shape):
            return make_tiny_model.make(self.scratch / "shallow")

    def recipe(self, adapter: str, storage: str, model: Path, *more: str) -> LoadedRecipe:
        """The adapter's smoke recipe on the storage.

        Raises:
            RecipeError: the two do not go together.
        """
        path = SMOKE / f"{adapter}.yaml"
        own = load_recipe(path).recipe
        rate, tasks = max(RATE, own.optimizer.lr), isinstance(own.data.train, list)
        small = [one for one in SMALL if not (tasks and one.startswith("data.train."))]
        overrides = [f"model.name={model}", *small, f"optimizer.lr={rate}", f"quantization={storage}", *more]
        if "adapters" in ADAPTERS.declared(adapter).config.model_fields:
            overrides.append(f"adapter.adapters=[{', '.join(self._given(model))}]")
        return load_recipe(path, overrides)

    def _given(self, model: Path) -> list[str]:
        folders = [self.scratch / "given" / f"{model.name}-{name}" for name in ("lora", "rslora")]
        for folder in folders:
            if not folder.exists():
                recipe = load_recipe(
                    SMOKE / f"{folder.name.rpartition('-')[2]}.yaml",
                    [f"model.name={model}", *SMALL, f"optimizer.lr={RATE}"],
                )
                train(recipe, folder, resume=False)
        return [str(folder) for folder in folders]


def _one_layer(shape: Callable[[int], dict[str, object]], hidden: int) -> dict[str, object]:
    return {**shape(hidden), "num_hidden_layers": 1}


class Row:
    """An adapter on a storage: one run, and what is asked of it."""

    def __init__(self, bench: Bench, adapter: str, storage: str) -> None:
        self.bench, self.adapter, self.storage = bench, adapter, storage
        self.folder = bench.scratch / "runs" / f"{adapter}-{storage}"
        self.asked: dict[str, Callable[[], tuple[str, dict[str, float]]]] = {
            "train": self.train,
            "merge": self.merge,
            "export": self.export,
            "resume": self.resume,
            "compile": self.compile,
        }

    def cells(self, wanted: Sequence[str], version: str) -> list[Cell]:
        """The cells that are wanted; where it does not train, that alone."""
        if set(wanted) - {"compile"}:  # the others need the run
            first = self.cell("train", version)
            if first.outcome != DONE:
                return [first]
        found = [first if what == "train" else self.cell(what, version) for what in wanted]
        shutil.rmtree(self.folder, ignore_errors=True)
        return found

    def cell(self, what: str, version: str) -> Cell:
        """Ask for one thing."""
        began = time.perf_counter()
        said = ""
        found: dict[str, float] = {}
        try:
            outcome, found = self.asked[what]()
        except Interrupted:  # by whoever runs the script, and nothing that happened to the cell
            raise
        except REFUSALS as error:
            said = self._sentence(error)
            outcome = FAULT if RAISED.search(said) else REFUSED
        except Exception as error:  # whatever else is no answer to a user
            outcome, said = FAULT, f"{type(error).__name__}: {self._sentence(error)}"
        seconds = round(time.perf_counter() - began, 1)
        return Cell(self.adapter, self.storage, what, outcome, said, found, seconds, version, libraries())

    def train(self) -> tuple[str, dict[str, float]]:
        """Three steps: finite losses, and the adapter is another one after the last than after the first."""
        train(self._recipe, self.folder / "run", resume=False)
        losses = losses_of(self.folder / "run")
        if not (len(losses) == 3 and all(map(math.isfinite, losses))):
            raise Broken(f"losses {losses}")
        first, last = (load_file(self._checkpoint(step) / ADAPTER) for step in (1, 3))
        same = (
            first[name].shape == tensor.shape and torch.equal(first[name], tensor)
            for name, tensor in last.items()
        )
        if all(same):
            raise Broken("no tensor of the adapter moved")
        return DONE, {"loss": losses[-1]}

    def merge(self) -> tuple[str, dict[str, float]]:
        """The merged folder in plain transformers gives the adapted logits."""
        from transformers import AutoModelForCausalLM

        merge(self._run, self.folder / "merged", None, dtype="float32")
        plain = AutoModelForCausalLM.from_pretrained(self.folder / "merged", dtype=torch.float32).eval()
        return DONE, self._as_trained(plain(input_ids=IDS).logits)

    def export(self) -> tuple[str, dict[str, float]]:
        """PEFT loads its own form of the method, or plain LoRA, on the decoded base and gives the adapted logits."""
        out = self.folder / "exported"
        try:
            export(self._run, "peft", out)
            outcome, found = PEFT, {}
        except UsageError:
            record = export(self._run, "lora", out, Options(error=ERROR))
            outcome, found = PLAIN, {"relative_error": float(record["relative_error"])}
        return outcome, found | self._as_trained(self._in_peft(out))

    def resume(self) -> tuple[str, dict[str, float]]:
        """Cut off after step 2 as a power cut leaves it, it goes on to the same losses and the same bytes."""
        from tests.training.unbroken import cut_off, files_of, losses

        whole = self.folder / "run"
        broken = cut_off(whole, CUT, self.folder / "broken")
        train(self._recipe, broken, resume=True)
        if losses(broken) != losses(whole):
            raise Broken(f"losses {losses_of(broken)}, uncut {losses_of(whole)}")
        found, expected = files_of(broken), files_of(whole)
        if other := [name for name in expected | found if expected.get(name) != found.get(name)]:
            raise Broken(f"not the same bytes: {', '.join(other)}")
        return DONE, {}

    def compile(self) -> tuple[str, dict[str, float]]:
        """`compile: true` has graphs, forward and backward, and the losses of the run without it."""
        import torch._dynamo as dynamo

        try:
            found = [self._still(self.bench.shallow, compiled=False)]
            model = self.bench.shallow
        except REFUSALS:  # the adapter goes on layers that one layer has not
            found = [self._still(self.bench.model, compiled=False)]
            model = self.bench.model
        dynamo.reset()  # or what one adapter has used up of torch's patience the next one goes without
        dynamo.utils.counters.clear()
        found.append(self._still(model, compiled=True))
        graphs = dynamo.utils.counters["stats"]["unique_graphs"]
        dynamo.reset()
        worst = max(abs(a - b) / abs(a) for a, b in zip(*found, strict=True))
        if not graphs:
            raise Broken("nothing was compiled")
        if not worst <= SAME_LOSS:
            raise Broken(f"losses {found[1]}, not compiled {found[0]}")
        return DONE, {"graphs": float(graphs), "loss_difference": worst}

    def _still(self, model: Path, compiled: bool) -> list[float]:
        """The losses of a run at a low rate on this model."""
        more = [f"model.compile={json.dumps(compiled)}", f"optimizer.lr={STILL}", *self._two_layers()]
        folder = self.folder / f"{model.name}-{compiled}"
        with mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
            train(self.bench.recipe(self.adapter, self.storage, model, *more), folder, resume=False)
        return losses_of(folder)

    @cached_property
    def _recipe(self) -> LoadedRecipe:
        return self.bench.recipe(self.adapter, self.storage, self.bench.model)

    @property
    def _run(self) -> RunFolder:
        return RunFolder(self.folder / "run")

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "run" / "checkpoints" / f"step-{step}"

    @cached_property
    def _opened(self) -> tuple[Recipe, CausalLM]:
        recipe, _, adaptation = open_run(self._run)
        return recipe, adaptation.model

    @torch.no_grad()
    def _as_trained(self, theirs: Tensor) -> dict[str, float]:
        """How far logits are from those of the run.

        Raises:
            Broken: further than rounding explains.
        """
        from tests.export.reloaded import logits

        model = self._opened[1]
        ours = logits(model, IDS)
        with adapters_off(model.hf):
            bare = logits(model, IDS)
        theirs = theirs[:, -IDS.shape[1] :]  # after virtual tokens, where there are some
        error, moved = (float((other - ours).abs().max()) for other in (theirs, bare))
        size = float(ours.abs().max())
        if not moved >= LEAST * size:
            raise Broken(f"training moved the logits by {moved:.2g}, too little to tell anything")
        if not error <= OF_MOVE * moved + OF_SIZE * size:
            raise Broken(f"logits are {error:.2g} from the run's, which training moved by {moved:.2g}")
        return {"logit_error": error, "moved": moved}

    @torch.no_grad()
    def _in_peft(self, folder: Path) -> Tensor:
        from peft import PeftModel

        from tests.export.reloaded import pretrained

        peft = PeftModel.from_pretrained(pretrained(*self._opened), folder).eval()
        logits: Tensor = peft(input_ids=IDS).logits
        return logits

    def _two_layers(self) -> list[str]:
        """Two maps of different shape are enough to trace; what a smoke recipe chooses itself, or is given, stays."""
        linear = ADAPTERS.get(self.adapter).site_kinds == ("linear",)
        chosen = self._recipe.recipe.adapter
        assert chosen is not None, "a smoke recipe of an adapter"
        fields = type(chosen).model_fields
        free = chosen.targets == fields["targets"].default and "adapters" not in fields
        return ["adapter.targets=[q_proj, down_proj]"] if linear and free else []

    def _sentence(self, error: Exception) -> str:
        """The message without the places of this machine and the lines of the recipe."""
        text = (
            (str(error).strip().splitlines() or ["no message"])[0]
            if not isinstance(error, LrftError)
            else str(error)
        )
        for path, word in ((self.folder, "RUN"), (self.bench.scratch, "SCRATCH"), (SMOKE, "recipes/smoke")):
            text = text.replace(str(path), word)
        return re.sub(r"^recipes/smoke/\w+\.yaml(:\d+)?: |^override \S+: ", "", " ".join(text.split()))[:400]


@cache
def libraries() -> str:
    """The versions of what a cell stands on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)


def losses_of(run: Path) -> list[float]:
    """The loss of every step."""
    return [json.loads(line)["loss"] for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
