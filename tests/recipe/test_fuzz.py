"""Whatever a recipe or an override says, loading it ends in a recipe or in a list of sentences."""

from __future__ import annotations

from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrft.recipe.fields import Slot, known_keys, slot_at
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.resolved import resolved, with_origins
from lrft.registry.errors import RecipeError
from tests.recipe.valid_recipe import VALID

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

LINES = VALID.splitlines()
KEYS = "model adapter train data eval tasks format method rank targets lr seed x".split()
scalars = st.sampled_from(
    "|null|true|no|-1|0|1e999|.nan|-.inf|999999999999999999999|'|\"|[]|{}|[[1], {a: 2}]|*a|&a|!!map"
    "|!x|>|? |- |---|...|%|@|`|\\|a: b|$X|~|~/x|./|/|\x85|\u2028|\ud7ff|\U0001f600|lora|dora|chat|columns|a=b"
    "|{method: lora, rank_pattern: {a: {b: 1}}}".split("|")
)
values = scalars | st.text(max_size=8)


def load(path, *overrides: str) -> None:
    """Load, and demand a usable answer of either kind."""
    try:
        loaded = load_recipe(path, overrides)
    except RecipeError as error:
        assert error.problems and all("\n" not in str(p) and p.message for p in error.problems)
        str(error).encode("utf-8")
        return
    assert isinstance(loaded, LoadedRecipe)
    assert resolved(loaded.recipe) and with_origins(loaded)


def write(folder, data: bytes):
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    return path


@quick
@given(st.lists(st.tuples(st.integers(0, len(LINES) - 1), values), min_size=1, max_size=4))
def test_changed_values(folder, changes):
    lines = list(LINES)
    for number, value in changes:
        lines[number] = lines[number].partition(":")[0] + ": " + value
    load(write(folder, "\n".join(lines).encode()))


@quick
@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES)), st.integers(0, 6), st.sampled_from(KEYS), values), max_size=5
    )
)
def test_inserted_lines(folder, insertions):
    lines = list(LINES)
    for number, indent, key, value in insertions:
        lines.insert(number, f"{' ' * indent}{key}: {value}")
    load(write(folder, "\n".join(lines).encode()))


@quick
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=3)), min_size=1, max_size=6),
    st.data(),
)
def test_changed_bytes(folder, changes, data):
    text = bytearray(VALID.encode())
    for position, replacement in changes:
        text[position : position + data.draw(st.integers(0, 30))] = replacement
    load(write(folder, bytes(text)))


@quick
@given(st.binary(max_size=60))
def test_any_bytes(folder, data):
    load(write(folder, data))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inside, max_size=3)
    ),
    max_leaves=12,
)


@quick
@given(
    st.sampled_from(KEYS[:6]),
    st.sampled_from(["", ".method", ".rank", ".tasks", ".train", ".format", ".x"]),
    plain,
)
def test_any_override(folder, section, key, value):
    load(write(folder, VALID.encode()), f"{section}{key}={yaml.safe_dump(value, default_flow_style=True)}")


@quick
@given(
    st.text(max_size=20)
    | st.builds("{}={}".format, st.sampled_from(KEYS), values)
    | st.builds("~{}".format, values)
)
def test_any_text_as_override(folder, text):
    load(write(folder, VALID.encode()), text)


# What no machine can mean: where a number stands, none of these is taken, and what is said names a bound.
ABSURD = ("1e299", "-1e299", "1e31", "1e-320", "-0.0", str(10**31), str(-(10**31)), str(10**40))
PLAIN = yaml.safe_load(VALID)


def takes_numbers(slot: Slot) -> bool:
    """Whether a number may stand there, alone or among other things; bool is none."""
    kinds = get_args(slot.annotation) or (slot.annotation,)
    return any(kind in (int, float) for kind in kinds)


NUMBERS = [k for k in known_keys(PLAIN) if (slot := slot_at(k, PLAIN)) is not None and takes_numbers(slot)]


@pytest.mark.parametrize("keys", NUMBERS, ids=".".join)
def test_numbers_that_no_machine_can_mean_are_refused_by_key(folder, keys):
    path = write(folder, VALID.encode())
    for value in ABSURD:
        with pytest.raises(RecipeError) as refused:
            load_recipe(path, [f"{'.'.join(keys)}={value}"])
        assert any(problem.key.startswith(".".join(keys[:1])) for problem in refused.value.problems), value
        assert "Traceback" not in str(refused.value) and len(str(refused.value)) < 2000


@pytest.mark.parametrize("key", ["train.max_steps", "train.batch_size", "train.save_every", "eval.limit"])
def test_counts_end_far_below_what_numbers_may_be(folder, key):
    with pytest.raises(RecipeError, match=rf"{key}: must be .*at most 1[0,]+"):
        load_recipe(write(folder, VALID.encode()), [f"{key}={10**18}"])
