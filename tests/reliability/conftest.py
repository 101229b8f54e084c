"""Runs that the tests of failing disks start from, made once."""

from __future__ import annotations

import pytest

from tests.reliability.full_disk import Bench


@pytest.fixture(scope="session")
def bench(tiny, tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("disk"), tiny())
