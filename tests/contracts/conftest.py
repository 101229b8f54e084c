"""Settings of the contract suites."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On CPU a paged optimizer says that it does not page, which is no news here."""
    for item in items:
        if "test_optimizers" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"))
