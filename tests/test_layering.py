"""Where things may stand: the floors, who may import which library, and that no machinery names a method."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lrft.registry.axes import AXES

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lrft").rglob("*.py"))

# Place (a folder of lrft, or a file at its top) -> floor. A file imports from lower floors and its own place.
FLOORS = {
    "registry": 0,
    "ops": 0,
    "files": 0.5,  # on the registry, whose errors it raises
    "core": 1,
    "methods": 2,
    "data": 2,
    "recipe": 2,
    "model": 3,
    "training": 4,
    "evaluation": 4,
    "export": 4,
    "build": 5,
    "api": 6,
    "lab.models": 7,
    "lab.runs": 8,
    "lab.spectra": 8,
    "lab.compare": 9,
    "lab.sweep": 9,
    "lab.search": 9,
    "lab.report": 9,
    "serve": 9,
    "lab.tables": 10,
    "commands": 11,
    "cli": 11,
    "__main__": 11,
}
SAME_PLACE = {"cli": "commands", "__main__": "commands"}

# Library -> the files and folders that may import it.
LIBRARIES = {
    "transformers": ("lrft/model/", "lrft/data/as_transformers.py", "lrft/evaluation/generate.py"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn"), ("lrft/serve/",)),
    "bitsandbytes": ("lrft/methods/quant/", "lrft/methods/optim/"),
    "datasets": ("lrft/data/sources.py",),
    "flwr": ("lrft/api/flower/",),
    "opacus": ("lrft/training/accountant.py",),
    "ray": ("lrft/lab/runs/on_ray.py",),
    "peft": (),
}
IMPORTED_INSIDE_FUNCTIONS = ("bitsandbytes", "datasets", "opacus")

# The room that writes files, and who else calls what would write one, with the reason.
WRITING_ROOM = "lrft/files/"
WRITERS = {
    "lrft/core/stop.py": {"open": "os.devnull, in the place of a terminal that is gone"},
    "lrft/cli.py": {"open": "os.devnull, where standard error is closed"},
    "lrft/evaluation/confined.py": dict.fromkeys(
        ("open", "write_text", "mkdir", "TemporaryDirectory"),
        "programs in a folder that goes with them",
    ),
    "lrft/data/sources.py": {"TemporaryDirectory": "a cache that a library wants, gone after the call"},
    "lrft/api/exporting/form.py": {"save_pretrained": "within a fresh folder"},
    "lrft/export/delta.py": {"save_pretrained": "within a fresh folder"},
    "lrft/export/gguf_form.py": {"GGUFWriter": "within a fresh folder"},
    "lrft/export/write.py": {"save_pretrained": "within a fresh folder", "chmod": "within a fresh folder"},
    "lrft/model/gguf.py": dict.fromkeys(("save_pretrained", "copy", "rmtree"), "within a fresh folder"),
    "lrft/model/on_disk.py": {"mkdir": "mapped files, within a fresh folder"},
    "lrft/lab/runs/picture.py": {"savefig": "to a fresh file"},
    "lrft/api/planning/rate_plot.py": {"savefig": "to a fresh file"},
    "lrft/api/combining/curve.py": {"savefig": "to a fresh file"},
    "lrft/training/trackers/tensorboard.py": {
        "SummaryWriter": "files of the library's own, which it never ends"
    },
    "lrft/training/profile.py": {"export_chrome_trace": "to a fresh file"},
    "lrft/training/folder.py": {"utime": "a run that is gone on with is the latest"},
}
# Calls that write whatever they are called on, and those that do where they are called on a module of the system.
WRITE = set(
    """write_text write_bytes touch mkdir makedirs rmdir unlink symlink_to hardlink_to save_file savefig save_pretrained
    export_chrome_trace GGUFWriter SummaryWriter TemporaryDirectory NamedTemporaryFile mkstemp mkdtemp rmtree copyfile
    copytree copy2 chmod utime""".split()
)
OF_SYSTEM = {
    "os": set("open write replace rename remove link symlink truncate ftruncate removedirs".split()),
    "shutil": set("copy move copyfileobj".split()),
    "torch": {"save"},
}

BANNED_FILES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "engine", "handler"}
LONGEST_FILE, LONGEST_FUNCTION = 250, 40  # lines

# Registered names that are plain words too: machinery may use these, as it means the word and not the method.
NEUTRAL = {"none", "default", "uniform", "linear", "cosine", "constant", "reward", "calibration"}
# Names of torch's own that a method's file happens to bear, as the dotted expression that is meant.
TORCH = {"torch.int8", "F.cross_entropy"}
# The places outside lrft/methods that must name methods: a recipe has defaults, a format of files bears a name, and so
# does a data set: GLUE's CoLA.
NAMING = {
    "lrft/recipe/schema.py": {"lora", "adamw", "cross_entropy"},
    "lrft/export/targets.py": {"lora", "LoRA"},
    "lrft/evaluation/tasks/glue.py": {"cola", "sst"},
    "lrft/data/formats/classify.py": {"classify", "Classify"},
    "lrft/api/transferring/recipes.py": {"classify", "distillation"},  # what a published procedure trains by
}


def place(path: Path) -> str:
    """`core`, `methods.adapters`, `cli`: the unit within which files may import one another."""
    parts = path.relative_to(ROOT / "lrft").with_suffix("").parts
    if parts[0] in ("methods", "lab") and len(parts) > 1:
        return f"{parts[0]}.{parts[1]}"
    return SAME_PLACE.get(parts[0], parts[0])


def floor(of: str) -> int:
    return FLOORS.get(of, FLOORS.get(of.partition(".")[0], 0))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[int, str, list[str]]]:
    """Those of a file."""
    return list(imports(tree(path)))


def imports(node: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """Line, module and imported names of every import below `node`, wherever it stands."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child.lineno, alias.name, []
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            yield child.lineno, child.module or "", [alias.name for alias in child.names]


def target_place(module: str, names: list[str]) -> str | None:
    """The place an import of lrft leads to; None for `lrft` itself, which holds the version."""
    parts = module.split(".")[1:]
    if not parts and names and names[0] in FLOORS:
        parts = names[:1]
    if not parts:
        return None
    if parts[0] in ("methods", "lab"):
        return f"{parts[0]}.{(parts[1:] or names)[0]}"
    return SAME_PLACE.get(parts[0], parts[0])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_folder_and_file_of_the_package_has_a_floor():
    places = {place(path) for path in FILES if path.stem != "__init__"}
    places = {name if name in FLOORS else name.partition(".")[0] for name in places}
    tops = {path.stem for path in FILES if path.parent == ROOT / "lrft"} - {"__init__"}
    assert places | tops <= FLOORS.keys()


def test_files_import_only_lower_floors_and_their_own_folder():
    wrong = []
    for path in FILES:
        here = place(path)
        if here == "__init__":
            continue
        for line, module, names in imports_of(path):
            there = target_place(module, names) if module.partition(".")[0] == "lrft" else None
            if there is not None and there != here and floor(there) >= floor(here):
                wrong.append(f"{relative(path)}:{line}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "libraries"),
    [
        ("registry", {"pydantic", "pydantic_core"}),
        ("ops", {"torch"}),
        ("files", {"pydantic"}),
        ("core", {"torch"}),
    ],
)
def test_the_lowest_rooms_rest_on_little(room, libraries):
    """The registry never imports torch, so recipes are checked without it; functions on tensors import it alone."""
    allowed = {"lrft", *libraries, *sys.stdlib_module_names}
    for path in (ROOT / "lrft" / room).glob("*.py"):
        for line, module, _ in imports_of(path):
            assert module.partition(".")[0] in allowed, f"{relative(path)}:{line}"


def test_no_two_places_import_each_other():
    """The picture of imports has no circle between folders, wherever they stand."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        here = place(path)
        if here != "__init__":
            for _, module, names in imports_of(path):
                there = target_place(module, names) if module.partition(".")[0] == "lrft" else None
                if there not in (None, here):
                    edges.setdefault(here, set()).add(there)
    assert len(edges) > 15

    def reached(start: str) -> set[str]:
        waiting, found = [start], set()
        while waiting:
            for there in edges.get(waiting.pop(), set()) - found:
                found.add(there)
                waiting.append(there)
        return found

    assert [name for name in edges if name in reached(name)] == []


def test_a_method_imports_only_helpers_and_its_declared_parent():
    wrong = []
    for path in (ROOT / "lrft" / "methods").rglob("[!_]*.py"):
        bases = {
            base.id
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            if isinstance(base, ast.Name)
        }
        for line, module, names in imports_of(path):
            stem = module.rpartition(".")[2]
            if module.startswith("lrft.methods.") and not stem.startswith("_") and not set(names) <= bases:
                wrong.append(f"{relative(path)}:{line}: imports {', '.join(names)} from {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library):
    allowed = LIBRARIES[library]
    for path in FILES:
        for line, module, _ in imports_of(path):
            if module.partition(".")[0] == library:
                assert relative(path).startswith(tuple(allowed)), f"{relative(path)}:{line}"


@pytest.mark.parametrize("library", IMPORTED_INSIDE_FUNCTIONS)
def test_a_heavy_library_is_imported_inside_the_function_that_needs_it(library):
    for path in FILES:
        for node in tree(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If):
                for line, module, _ in imports(node):
                    assert module.partition(".")[0] != library, f"{relative(path)}:{line}"


def writing_calls(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every call that makes, changes or removes a file, as far as a name can tell."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = getattr(called, "attr", getattr(called, "id", ""))
        owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
        if name == "open" and owner != "os":
            texts = [
                arg.value
                for arg in (*node.args, *(k.value for k in node.keywords))
                if isinstance(arg, ast.Constant)
            ]
            if any(
                isinstance(text, str) and re.fullmatch(r"[rwaxbt+]{1,4}", text) and set(text) & set("wax+")
                for text in texts
            ):
                yield node.lineno, name
        elif name in ("rename", "replace") and owner not in ("", "os") and len(node.args) == 1:
            yield (
                node.lineno,
                name,
            )  # of a path: that of a string takes two, that of a dataclass names its changes
        elif name in WRITE or name in OF_SYSTEM.get(owner, ()):
            yield node.lineno, name


def test_files_are_written_in_one_room():
    """No file of lrft opens for writing, renames or removes, or lets a library do so, but through `lrft/files/`."""
    wrong = []
    for path in FILES:
        where = relative(path)
        if not where.startswith(WRITING_ROOM):
            allowed = WRITERS.get(where, {})
            wrong += [f"{where}:{n}: {call}" for n, call in writing_calls(tree(path)) if call not in allowed]
    assert not wrong, "\n".join(wrong)


def test_every_allowance_to_write_is_used():
    for where, allowed in WRITERS.items():
        assert allowed.keys() <= {name for _, name in writing_calls(tree(ROOT / where))}, where


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='x')",
        "os.replace(a, b)",
        "a.rename(b)",
        "path.write_text(text)",
        "save_file(tensors, path)",
        "model.save_pretrained(folder)",
        "figure.savefig(path)",
        "torch.save(x, path)",
        "os.open(path, flags)",
    ],
)
def test_a_file_written_elsewhere_would_be_found(code):
    assert list(writing_calls(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "path.open()",
        "open(path, 'rb')",
        "text.replace('a', 'b')",
        "replace(plan, rank=1)",
        "file.open(about)",
    ],
)
def test_reading_is_no_writing(code):
    assert not list(writing_calls(ast.parse(code)))


def method_names() -> set[str]:
    """Registered names and class names of every method, less the words that mean nothing particular."""
    names = set()
    for registry in AXES.values():
        for name in registry.names():
            names |= {name, registry.declared(name).class_name} if name not in NEUTRAL else set()
    return names


def spoken(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and word of every identifier and of every word in a string, docstrings left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in TORCH:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            for word in re.findall(r"\w+", node.value):
                yield node.lineno, word
        for field in ("id", "attr", "name", "arg", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield getattr(node, "lineno", 0), word.rpartition(".")[2]


def test_no_machinery_names_a_method():
    names = method_names()
    wrong = []
    for path in FILES:
        where = relative(path)
        if not where.startswith("lrft/methods/"):
            allowed = NAMING.get(where, set())
            wrong += [f"{where}:{n}: {w}" for n, w in spoken(tree(path)) if w in names - allowed]
    assert not wrong, "\n".join(wrong)


def test_every_allowance_to_name_a_method_is_used():
    for where, allowed in NAMING.items():
        assert allowed <= {word for _, word in spoken(tree(ROOT / where))}


@pytest.mark.parametrize(
    "code",
    ["if name == 'dora': pass", "import lrft.methods.adapters.lora", "LoRA(config)", "f'needs {x} nf4'"],
)
def test_a_named_method_would_be_found(code):
    assert {word for _, word in spoken(ast.parse(code))} & method_names()


def test_no_file_is_called_after_nothing():
    assert not [relative(path) for path in FILES if path.stem.lstrip("_") in BANNED_FILES]


def test_no_file_is_longer_than_a_reader_holds():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines after the signature and the docstring: a Typer command's options are its signature."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    before = first.end_lineno if documented else first.lineno - 1
    return function.end_lineno - before


def test_no_function_is_longer_than_a_reader_holds():
    """Functions inside a function count within it."""
    wrong = [
        f"{relative(path)}:{node.lineno}: {node.name} has {lines_of_body(node)} lines"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of_body(node) > LONGEST_FUNCTION
    ]
    assert not wrong, "\n".join(wrong)


def test_the_lines_of_a_function_are_those_after_its_signature_and_docstring():
    text = "def f(\n    a,\n):\n    'One.'\n" + "    a += 1\n" * 41
    (function,) = ast.parse(text).body
    assert lines_of_body(function) == 41


def test_every_package_init_is_free_of_lists_to_maintain():
    for path in FILES:
        if path.name == "__init__.py" and path.parent != ROOT / "lrft":
            body = [node for node in tree(path).body if not isinstance(node, ast.Expr)]
            assert not body, f"{relative(path)} holds code"
