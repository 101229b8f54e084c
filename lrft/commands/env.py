"""`lrft env`: what this machine runs on, to paste into a bug report. Nothing secret is read."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.output import Json, result
from lrft.registry.json import Json as Value

PACKAGES = (
    "lrft",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "safetensors",
    "bitsandbytes",
    "peft",
    "pydantic",
    "wandb",
    "flash-attn",
    "numpy",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def env_command(
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Print all installed packages as CycloneDX JSON instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print versions and hardware, to paste into a bug report."""
    if sbom:
        from lrft.commands.sbom import bill_of_materials

        return result(bill_of_materials(), True, _show)
    result(system_facts(), as_json, _show)


def _show(facts: dict[str, Value]) -> None:
    for key, value in facts.items():
        print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def system_facts() -> dict[str, Value]:
    """Versions of Python and the packages that matter, CPU, memory (GiB) and GPUs of this machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in _first_line("/proc/cpuinfo", "flags").split()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def _version(package: str) -> str:
    if package == "lrft":
        from lrft import __version__

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _first_line(file: str, key: str) -> str:
    """The value of the first `key: value` line of a /proc file, empty where there is none."""
    if not Path(file).is_file():
        return ""
    for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _memory_gib() -> float | None:
    kib = _first_line("/proc/meminfo", "MemTotal").partition(" ")[0]
    return round(int(kib) / 2**20, 1) if kib.isdigit() else None


def _gpus() -> list[str]:
    """Names and memory of the GPUs. Importing torch takes seconds, so only where there is a driver."""
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        return []
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices]
