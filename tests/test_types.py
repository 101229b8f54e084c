"""How much of the package is typed by what a value is: the share of annotations that say `Any`, room by room."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lrft"
LIMIT = 0.02  # of all annotations of the package
ANY = re.compile(r"\bAny\b")


def annotations(tree: ast.Module) -> Iterator[ast.expr]:
    """Annotations of arguments, of what a function returns, and of variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if one is not None and one.annotation is not None:
                    yield one.annotation
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def room(path: Path) -> str:
    """`core`, `methods/optim`; files at the top are their own."""
    parts = path.relative_to(PACKAGE).parts
    return "/".join(parts[: 2 if parts[0] == "methods" else 1])


def counted() -> tuple[Counter[str], Counter[str]]:
    """Annotations of each room, and those that say `Any`."""
    every, untold = Counter(), Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        found = list(annotations(ast.parse(path.read_text(encoding="utf-8"))))
        every[room(path)] += len(found)
        untold[room(path)] += sum(bool(ANY.search(ast.unparse(one))) for one in found)
    return every, untold


def test_few_annotations_are_any():
    every, untold = counted()
    share = untold.total() / every.total()
    rooms = "\n".join(f"{name}: {number} of {every[name]}" for name, number in untold.most_common() if number)
    assert share <= LIMIT, f"{untold.total()} of {every.total()} ({share:.1%}) say Any:\n{rooms}"


def test_what_says_any_would_be_counted():
    tree = ast.parse("def f(a: Any, *b: int, c: dict[str, Any] = {}, **d: Company) -> list[Any]: x: Any = 1")
    found = [ast.unparse(one) for one in annotations(tree)]
    assert len(found) == 6 and [one for one in found if ANY.search(one)] == [
        "Any",
        "dict[str, Any]",
        "list[Any]",
        "Any",
    ]
