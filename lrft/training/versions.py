"""Versions and the machine: what the last digits of a training depend on beside the recipe, the rows and the base."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lrft import __version__
from lrft.training.commit import commit_of
from lrft.training.records import Environment

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "pydantic",
)
# Of those, what computes: the others read and write, and what they read is compared itself. Threads are left out, as
# sums do not follow their number.
COMPUTING = ("lrft", "torch", "transformers", "bitsandbytes", "processor", "kernels")


def versions_of_numbers(device: torch.device, kernels: bool | None = None) -> dict[str, str | None]:
    """What a checkpoint keeps of where it was made: versions, and the processor that computes on this device.

    Args:
        kernels: whether those of lrft's own are there; None where nothing trains.
    """
    import torch

    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    packages = {
        name: package_versions()[name]
        for name in PACKAGES
        if name in (*COMPUTING, "tokenizers", "safetensors")
    }
    found = {"python": platform.python_version(), "lrft": __version__, **packages, "processor": processor}
    return found if kernels is None else {**found, "kernels": "built" if kernels else None}


def differing(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    """`torch 2.12.0 -> 2.13.0` of everything that computes and is another now; what was not written down is not."""
    return [
        f"{name} {before[name] or 'absent'} -> {now[name] or 'absent'}"
        for name in COMPUTING
        if name in before and name in now and before[name] != now[name]
    ]


@cache
def package_versions() -> dict[str, str | None]:
    """Package -> its version, None where it is not installed; each is looked for in every folder of imports."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@cache
def cpu_name() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def environment() -> Environment:
    """Versions, hardware and git commit, for run.json. Holds no environment variable."""
    import torch

    hardware: dict[str, str | int | None] = {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {
        "versions": {"python": platform.python_version(), "lrft": __version__, **package_versions()},
        "hardware": hardware,
        "git": commit_of(Path.cwd()),
        "command": Path(sys.argv[0]).name,
    }
