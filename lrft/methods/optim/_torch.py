"""How torch itself types what an optimizer holds: settings and tensors beside each other, by name."""

from __future__ import annotations

from typing import Any, TypeAlias

Group: TypeAlias = dict[str, Any]
"""Parameters under `params`, and their settings."""

State: TypeAlias = dict[str, Any]
"""Of one parameter: tensors, counts and flags."""
