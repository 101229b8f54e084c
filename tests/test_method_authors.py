"""What a method author forgets is told by a dry run, in one sentence: file, line, what is wrong and what to write."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lrft.methods.adapters
from lrft.api.planning.plan import plan
from lrft.registry import registry
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import LrftError

ROOT = Path(__file__).parents[1]
GOOD = (ROOT / "tests" / "strangers" / "row_gains.py").read_text(encoding="utf-8")
FACTORS = GOOD.replace("import Adapter\n", "import Branch, LowRank\n").replace("(Adapter)", "(LowRank)")
GAIN = "self.g = nn.Parameter(torch.zeros(site.out_features))"
FORMULA = "return self.config.strength * self.g[:, None] * weight"
FACTORS = FACTORS.replace("def delta_weight(self, weight: Tensor) -> Tensor", "def branch(self) -> Branch")
FACTORS = FACTORS.replace(GAIN, "{made}").replace(FORMULA, "return Branch({factors})")
PAIR = "self.A, self.g = nn.Parameter(torch.ones(2, site.in_features)), nn.Parameter(torch.zeros(site.out_features, 2))"
COUNT = "return site.out_features"
PAIR_COUNT = "return 2 * (site.in_features + site.out_features)"


def without(*lines: str) -> str:
    """The good file without lines that hold one of these texts."""
    return "\n".join(line for line in GOOD.splitlines() if not any(text in line for text in lines))


def factors(made: str, given: str) -> str:
    return FACTORS.replace("{made}", made).replace("{factors}", given).replace(COUNT, PAIR_COUNT)


# Name -> the file with one mistake, the text of the line that is named, and what is said.
MISTAKES = {
    "no_provides": (without("provides ="), "class RowGains", r'says no provides; write provides = \{"adapters"\}'),
    "no_count": (without("@staticmethod", "def count", COUNT), "class RowGains", r"says no count; write count\(config"),
    "no_docstring": (
        re.sub(r'    """A gain on every.*?"""\n', "", GOOD, flags=re.DOTALL),
        "class RowGains",
        r"has no docstring; write one under its class line",
    ),
    "plain_config": (
        GOOD.replace("class Config(AdapterConfig)", "class Config"),
        "class Config",
        r"Config is no AdapterConfig, .* write class Config\(AdapterConfig\)",
    ),
    "bad_field": (
        GOOD.replace("strength: float =", "strength: Nothing ="),
        "class Config",
        r"Config uses Nothing, which cannot be read",
    ),
    "not_registered": (without("@ADAPTERS"), '"""An adapter', r"no class .* registered as an adapter; write @ADAPTERS"),
    "no_python": (GOOD.replace("def reset(self)", "def reset(self"), "def reset", r"this is no Python"),
    "wrong_count": (
        GOOD.replace(COUNT, "return site.in_features + 1"),
        "def count",
        r"count says [\d,]+ numbers and [\d,]+ train \(g \(\d+,\)\); write the count",
    ),
    "count_of_nothing": (GOOD.replace(COUNT, "return None"), "def count", r"gives None; write one that returns an int"),
    "plain_tensor": (
        GOOD.replace(GAIN, "self.g = torch.zeros(site.out_features)"),
        "self.g = torch",
        r"self\.g is a plain tensor, .* write self\.g = nn\.Parameter",
    ),
    "hidden_list": (
        GOOD.replace(GAIN, "self.g = [nn.Parameter(torch.zeros(4))]"),
        "self.g = [nn",
        r"self\.g hides its parameters from torch; write it as nn\.ParameterList",
    ),
    "no_init": (without("super().__init__"), "self.g = nn", r"raised AttributeError .*; mend this line"),
    "wrong_delta": (
        GOOD.replace("self.g[:, None] * weight", "(self.g[:, None] * weight).T"),
        "def delta_weight",
        r"delta_weight gives shape \(\d+, \d+\); write it as \(out, in\), here \(\d+, \d+\)",
    ),
    "no_delta": (
        GOOD.replace("def delta_weight", "def delta"),
        "class RowGains",
        r'provides mergeable and says no change of the weight; write delta_weight\(self, weight\)',
    ),
    "cut_off": (
        GOOD.replace("self.g[:, None] *", "self.g.detach()[:, None] *"),
        "self.g = nn",
        r"g trains and has no part in the output; use it in the formula without \.data",
    ),
    "raises": (GOOD.replace("self.g[:, None]", "self.gain[:, None]"), "return self.config", r"has no attribute 'gain'"),
    "swapped_factors": (factors(PAIR, "self.g, self.A"), "def branch", r"write them as \(k, in\), here"),
    "no_branch": (
        factors(PAIR, "self.A, self.g").replace("def branch", "def term"),
        "class RowGains",
        r"declares no branch; write it",
    ),
    "branch_of_a_pair": (
        factors(PAIR, "self.A, self.g").replace("return Branch(self.A, self.g)", "return self.A, self.g"),
        "def branch",
        r"branch gives tuple; write return Branch",
    ),
}  # fmt: skip
SHORT = ["train.max_steps=4", "train.device=cpu", "data.train.limit=4", "data.eval.limit=2"]
RIGHT = {"right": GOOD, "right_factors": factors(PAIR, "self.A, self.g")}


@pytest.fixture(scope="module")
def told(tmp_path_factory, tiny) -> Iterator[Callable[[str], str]]:
    """`told(name)` -> what a dry run of the method answers, empty where it is content."""
    folder = tmp_path_factory.mktemp("authors")
    files = {name: text for name, (text, _, _) in MISTAKES.items()} | RIGHT
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    package = "lrft.methods.adapters"
    known = dict(registry._files(package))
    all_files = registry._files

    def dry_run(name: str) -> str:
        known.clear()
        known.update(all_files(package), **{name: (f"{package}.{name}", folder / f"{name}.py")})
        try:
            plan(
                ROOT / "recipes" / "smoke" / "_base.yaml",
                overrides=[f"model.name={model}", *SHORT, f"adapter={name}"],
            )
        except LrftError as error:
            return str(error)
        return ""

    model = tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_files", lambda asked: known if asked == package else all_files(asked))
        patch.setattr(lrft.methods.adapters, "__path__", [*lrft.methods.adapters.__path__, str(folder)])
        yield dry_run
    for name in files:
        ADAPTERS._classes.pop(name, None)
        sys.modules.pop(f"{package}.{name}", None)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_line_and_remedy(told, name):
    text, line, message = MISTAKES[name]
    number = next(place for place, one in enumerate(text.splitlines(), 1) if line in one)
    found = told(name)
    assert re.search(message, found), found
    assert re.match(rf"\S*/{name}\.py:{number}: ", found), found
    assert "\n" not in found and "; " in found


@pytest.mark.parametrize("name", RIGHT)
def test_a_method_without_a_mistake_is_planned(told, name):
    assert told(name) == ""
