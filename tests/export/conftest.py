"""What PEFT would leave on the machine while it reads what is written here."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_compiled_extension_stays(monkeypatch, tmp_path):
    """PEFT tries to compile one for BOFT, in the user's cache."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
