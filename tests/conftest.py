"""Tiny models shared by the tests, and what `--fast` leaves out."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Without bytecode every worker rewrites every file of tests anew, and every process that a test starts compiles lrft.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, or they take each other's cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).parents[1]

# Files that train for long, count whole tables or start processes, the longest first. Workers are given them in this
# order, so that no long one is begun last; --fast leaves them out.
LONG = (
    "tests/test_recipes.py",
    "tests/training/test_resume.py",
    "tests/lab/tables/test_reproduce.py",
    "tests/test_full_recipes.py",
    "tests/lab/compare/test_compare.py",
    "tests/commands/test_cli.py",
    "tests/training/test_step.py",
    "tests/training/test_sharded.py",
    "tests/test_stranger.py",
    "tests/lab/compare/test_cluster.py",
    "tests/test_composition.py",
    "tests/test_scripts.py",
    "tests/export/test_merge.py",
    "tests/model/test_trained.py",
    "tests/lab/runs/test_digest.py",
    "tests/export/test_peft_format.py",
    "tests/export/test_reload.py",
    "tests/export/test_export_plain.py",
    "tests/export/test_export_gguf.py",
    "tests/export/test_doctor.py",
    "tests/lab/tables/test_count_tables.py",
    "tests/lab/compare/test_scaled.py",
    "tests/evaluation/test_generate.py",
    "tests/export/test_peft_beside.py",
    "tests/contracts/test_analyses.py",
    "tests/lab/tables/test_tiers.py",
    "tests/methods/optim/test_state_bytes.py",
    "tests/export/test_merged_folder.py",
    "tests/model/test_families.py",
    "tests/model/test_stream.py",
    "tests/model/test_packed.py",
    "tests/commands/test_json.py",
    "tests/test_bed.py",
    "tests/test_models_page.py",
    "tests/training/test_patience.py",
    "tests/training/test_find_lr.py",
    "tests/training/test_best.py",
    "tests/training/test_trackers.py",
    "tests/training/test_earlier.py",
    "tests/training/test_going_on.py",
    "tests/training/test_stop_below.py",
    "tests/training/test_gradient_sum.py",
    "tests/model/test_random_weights.py",
)
# What else --fast leaves out: rooms and files that are quick each and long together, or that start processes.
ASIDE = (
    "tests/test_docs.py::test_what_a_script_writes_is_current",
    "tests/contracts/test_optimizers.py::test_it_lowers_a_quadratic[mezo]",
    "tests/lab/",
    "tests/evaluation/",
    "tests/commands/",
    "tests/test_package.py",
    "tests/test_attention.py",
    "tests/model/test_fused.py",
    "tests/training/test_reads.py",
    "tests/training/test_recomputing.py",
    "tests/training/test_new_tokens_run.py",
    "tests/recipe/test_commands.py",
    "tests/recipe/test_fuzz.py",
    "tests/model/test_probe.py",
    "tests/data/test_order_and_pack.py",
    "tests/methods/adapters/test_xlora.py",
    "tests/methods/allocate/test_dylora.py",
)
# Of those, what --fast runs all the same: one recipe from training to merge, and what no training is needed for.
KEPT = (
    *(f"tests/test_recipes.py::test_{name}" for name in ("a_smoke_recipe_lasts", "every_method_has")),
    "tests/test_recipes.py::test_a_smoke_recipe_learns[dora]",
    "tests/test_recipes.py::test_every_method_resumes_unbroken[dora]",
    "tests/test_recipes.py::test_a_finished_adapter_is_the_trained_function[dora]",
    "tests/test_recipes.py::test_every_method_merges_or_says_that_it_cannot[dora]",
    "tests/commands/test_cli.py::test_there_are_these_options_and_no_others",
    "tests/test_full_recipes.py::test_a_full_recipe_validates",
    "tests/test_scripts.py::test_every_script_has_a_test",
)
# --fast runs each case of a test on the first of these storage formats that it has, or else on its first.
STORAGES = ("nf4_reference", "none")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="leave out long files and all storage formats but one"
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first = (*LONG[:3], "tests/test_docs.py", *LONG[3:])  # whose one long test counts the pages' tables
    order = {file: place for place, file in enumerate(first)}
    items.sort(key=lambda item: order.get(_file(item), len(first)))
    if config.getoption("--fast"):
        storages = _first_storages(items)
        fast = [
            item for item in items if _is_fast(item) and storages.get(_case(item)) in (None, _storage(item))
        ]
        kept = set(fast)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = fast


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    notes = sys.modules.get("lrft.core.notes")
    assert notes is None or not notes.silent(), "notes stay silenced for the tests that come after"


def pytest_collection_finish() -> None:
    """Let `torch.manual_seed` seed what is there: it writes out the stack for each kind of accelerator that is not."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.accelerator.is_available():
        torch.manual_seed = torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def nothing_reaches_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test opens a connection to another machine, or asks for its address: it fails, also where that was caught."""
    tried: list[object] = []

    def refuse(original: Callable[..., Any], host_of: Callable[..., object]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            host = host_of(*arguments)
            if host in (None, "", b"") or _is_here(str(host)):
                return original(*arguments, **named)
            tried.append(host)
            raise OSError(errno.ENETUNREACH, f"a test asked for {host}")

        return call

    def peer(sock: socket.socket, address: Any) -> object:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    monkeypatch.setattr(socket, "getaddrinfo", refuse(socket.getaddrinfo, lambda host, *_: host))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse(getattr(socket.socket, name), peer))
    yield
    assert not tried, f"reached for {tried} outside this machine"


def _is_here(host: str) -> bool:
    return host in ("localhost", "::1", "0.0.0.0", "::", socket.gethostname()) or host.startswith("127.")


def _is_fast(item: pytest.Item) -> bool:
    return item.nodeid.startswith(KEPT) or not item.nodeid.startswith((*LONG, *ASIDE))


def _first_storages(items: list[pytest.Item]) -> dict[str, str]:
    """Case of a test -> the storage format that stands for all that it is run on."""
    found: dict[str, list[str]] = {}
    for item in items:
        if (storage := _storage(item)) is not None:
            found.setdefault(_case(item), []).append(storage)
    return {case: next((s for s in STORAGES if s in names), names[0]) for case, names in found.items()}


def _storage(item: pytest.Item) -> str | None:
    values = _parameters(item)
    found = values.get("storage", values.get("quantization"))
    return found if isinstance(found, str) else None


def _case(item: pytest.Item) -> str:
    """The test with every parameter but its storage format: what takes one format alone keeps that one."""
    others = {k: v for k, v in _parameters(item).items() if k not in ("storage", "quantization")}
    return f"{item.nodeid.partition('[')[0]} {others}"


def _parameters(item: pytest.Item) -> dict[str, Any]:
    given = getattr(item, "callspec", None)
    return {} if given is None else given.params


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "make_tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(family="llama", tied=True, bias=False)` -> folder of a two-layer random model with its tokenizer."""
    made: dict[Any, Path] = {}
    maker = _maker()

    def get(family: str = "llama", tied: bool = True, bias: bool = False) -> Path:
        key = (family, tied, bias)
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"{family}-{tied}-{bias}"
            made[key] = maker.make(folder, family, tied=tied, bias=bias)
        return made[key]

    return get


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging generates four tokens and not 48: whether a merged folder stops as its run has tests of its own."""
    monkeypatch.setattr("lrft.api.stopping.NEW_TOKENS", 4)


@pytest.fixture(scope="session")
def given_adapters(
    tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], list[str]]:
    """`given_adapters()` -> run folders of two adapters trained on the tiny model, for methods that are given some."""
    made: list[str] = []

    def get() -> list[str]:
        from lrft.api.train import train
        from lrft.recipe.load import load_recipe

        for name in ("lora", "rslora")[len(made) :]:
            folder = tmp_path_factory.mktemp("given") / name
            small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
            train(load_recipe(ROOT / "recipes" / "smoke" / f"{name}.yaml", small), folder, resume=False)
            made.append(str(folder))
        return made

    return get


@pytest.fixture(scope="session")
def on_tiny(
    tiny: Callable[..., Path], given_adapters: Callable[[], list[str]]
) -> Callable[[Path], list[str]]:
    """`on_tiny(path)` -> overrides that put a smoke recipe on the tiny model."""

    def overrides(path: Path) -> list[str]:
        from lrft.recipe.load import load_recipe

        found = [f"model.name={tiny()}"]
        adapter = load_recipe(path, ["model.name=x/y"]).recipe.adapter
        if adapter is not None and "adapters" in type(adapter).model_fields:
            found.append(f"adapter.adapters=[{', '.join(given_adapters())}]")
        return found

    return overrides
