"""Tiny models shared by the tests, and how tests are chosen."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# As many programs of oneDNN as it keeps by itself: hundreds of small trainings in a process meet the same shapes again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1024")

# Without bytecode every worker rewrites every file of tests anew, and every process that a test starts compiles lrft.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, or they take each other's cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from tests.selected import ASIDE, KEPT, LONG, ON_DEMAND, STORAGES

ROOT = Path(__file__).parents[1]
OUTSIDE: list[object] = []  # other machines that the test at work asked for, also where that was caught


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="leave out long files and all storage formats but one"
    )


def pytest_configure(config: pytest.Config) -> None:
    os.fsync = _no_power_is_cut
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite that nohup started would ignore it
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as of a shell's background, and so would every child
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _stay_on_this_machine()
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--fast`, files of which nothing is run are not imported."""
    if not config.getoption("--fast") or not collection_path.is_relative_to(ROOT):
        return None
    path = collection_path.relative_to(ROOT).as_posix() + "/" * collection_path.is_dir()
    left_out = path.startswith((*LONG, *(one for one in ASIDE if "::" not in one)))
    return True if left_out and not any(one.startswith(path) for one in KEPT) else None


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _mark_on_demand(items)
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
    reached, OUTSIDE[:] = list(OUTSIDE), []
    assert not reached, f"reached for {reached} outside this machine"


def pytest_collection_finish() -> None:
    """Let `torch.manual_seed` seed what is there: it writes out the stack for each kind of accelerator that is not."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.accelerator.is_available():
        torch.manual_seed = torch.default_generator.manual_seed
    gc.collect()
    gc.freeze()  # modules and twelve thousand tests last to the end; without this each collection looks at them all


def _no_power_is_cut(descriptor: int) -> None:
    """In place of `os.fsync`, for which each save would wait some tens of times; what is about it patches it itself."""


def _mark_on_demand(items: list[pytest.Item]) -> None:
    """Mark what tests/selected.py lists as slow, and refuse a line there that no test of its file begins with."""
    met: dict[str, set[str]] = {}
    for item in items:
        file, _, name = item.nodeid.partition("::")
        met.setdefault(file, set())
        for start in ON_DEMAND.get(file, {}):
            if name.startswith(start):
                met[file].add(start)
                item.add_marker(pytest.mark.slow)
    chosen = any("::" in argument for argument in sys.argv)  # a part of a file does not meet all of its lines
    unmet = [
        f"{file}::{start}" for file in met for start in ON_DEMAND.get(file, {}) if start not in met[file]
    ]
    if unmet and not chosen:
        raise pytest.UsageError(f"tests/selected.py: no test begins with {', '.join(unmet)}")


def _stay_on_this_machine() -> None:
    """Refuse connections to other machines, and questions for their addresses, and remember them."""

    def refuse(original: Callable[..., Any], host_of: Callable[..., object]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            host = host_of(*arguments)
            if host in (None, "", b"") or _is_here(str(host)):
                return original(*arguments, **named)
            OUTSIDE.append(host)
            raise OSError(errno.ENETUNREACH, f"a test asked for {host}")

        return call

    def peer(sock: socket.socket, address: Any) -> object:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    socket.getaddrinfo = refuse(socket.getaddrinfo, lambda host, *_: host)
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, refuse(getattr(socket.socket, name), peer))


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


@pytest.fixture(scope="session", autouse=True)
def _kernels_of_this_machine() -> None:
    """Found before a test breaks the disk or hides the compiler, as what was found is kept for the whole process."""
    from lrft.build.native import native_kernels
    from lrft.model.gguf import cache_root

    native_kernels(cache_root().parent / "compiled")


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
    monkeypatch.setattr("lrft.api.opening.stopping.NEW_TOKENS", 4)


@pytest.fixture(scope="session")
def given_adapters(
    tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], list[str]]:
    """`given_adapters()` -> run folders of two adapters trained on the tiny model, for methods that are given some."""
    made: list[str] = []

    def get() -> list[str]:
        from lrft.api.training.train import train
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
        recipe = load_recipe(path, ["model.name=x/y"]).recipe
        adapter = recipe.adapter
        if getattr(recipe.objective, "teacher", None) is not None:
            found.append(f"objective.teacher={tiny(bias=True)}")
        if adapter is not None and "adapters" in type(adapter).model_fields:
            found.append(f"adapter.adapters=[{', '.join(given_adapters())}]")
        return found

    return overrides
