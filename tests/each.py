"""A check of one thing made for every thing of a list, as one test: hundreds of quick checks cost more as tests."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

Check = Callable[..., None]


def each(names: str | tuple[str, ...], cases: Sequence[Any]) -> Callable[[Check], Check]:
    """As `pytest.mark.parametrize`, in one test that names every case that fails.

    Args:
        names: the arguments of the test that a case is given as; its others are fixtures.
        cases: a value, or a tuple of values, for each.
    """
    given = (names,) if isinstance(names, str) else names
    assert cases, "nothing is checked"

    def one_test(check: Check) -> Check:
        @functools.wraps(check)
        def test(**fixtures: Any) -> None:
            wrong = []
            for case in cases:
                values = (case,) if isinstance(names, str) else case
                try:
                    check(**dict(zip(given, values, strict=True)), **fixtures)
                except Exception as error:
                    wrong.append(f"{', '.join(map(str, values))}: {type(error).__name__}: {error}")
            assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)} fail", *wrong])

        asked = inspect.signature(check)
        kept = [parameter for name, parameter in asked.parameters.items() if name not in given]
        test.__signature__ = asked.replace(parameters=kept)  # type: ignore[attr-defined]
        return test

    return one_test
