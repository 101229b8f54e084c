"""The body of a method's `Config`, executed over literals of its file and a few harmless modules, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

from pydantic.errors import PydanticUserError

from lrft.registry.config import MethodConfig
from lrft.registry.errors import Problem, RecipeError

# Modules a `Config` may draw on. Anything else a method file imports (torch first of all) is not needed to check
# a recipe and is not executed by `declared`.
CONFIG_MODULES = (
    "__future__",
    "fnmatch",
    "lrft.registry.axes",
    "lrft.registry.config",
    "lrft.registry.errors",
    "lrft.registry.pattern_cost",
    "math",
    "pydantic",
    "re",
    "typing",
)


def config_of(
    node: ast.ClassDef, path: Path, holder: ModuleType, base_config: type[MethodConfig]
) -> type[MethodConfig]:
    """The `Config` of a method's source.

    Raises:
        RecipeError: it rests on a name that only running the file would give, or is no `base_config`.
    """
    try:
        execute(node, path, holder)
        config: type[MethodConfig] = holder.__dict__.pop("Config")
        if not issubclass(config, base_config):
            base = base_config.__name__
            written = f"derives from it; write class Config({base}), with {base} from lrft.registry.config"
            raise fault(
                path, node.lineno, f"Config is no {base}, and the settings of every method here {written}"
            )
        if not config.__pydantic_complete__:  # an annotation that pydantic could not look up yet
            config.model_rebuild()
    except NameError as error:
        message = (
            f"Config uses {error.name}, which cannot be read without running the file; write the value itself, "
            "make it a literal of this file, or import it from lrft.registry.config"
        )
        raise fault(path, node.lineno, message) from error
    except (TypeError, ValueError, AttributeError, PydanticUserError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise fault(
            path, node.lineno, f"Config cannot be made ({what}); mend the field that is named"
        ) from error
    return config


def fault(path: Path, line: int, message: str) -> RecipeError:
    """What is wrong with a method's source, with its line and what to write."""
    return RecipeError(Problem("", message, str(path), line))


def execute(node: ast.stmt, path: Path, holder: ModuleType) -> None:
    """Run one statement of a file in `holder`, annotations postponed."""
    postponed = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*postponed, node], []), str(path), "exec"), holder.__dict__)
