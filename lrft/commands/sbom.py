"""The installed packages as a software bill of materials: CycloneDX 1.6 as JSON, from what Python knows of them."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from importlib import metadata

from lrft import __version__
from lrft.registry.json import Json

FORMAT, VERSION = "CycloneDX", "1.6"


def bill_of_materials() -> dict[str, Json]:
    """Every installed distribution with its version, licence and dependencies; nothing is looked up elsewhere."""
    found = {_name(d): d for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "bomFormat": FORMAT,
        "specVersion": VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "name": "lrft", "version": __version__, "bom-ref": "lrft"},
        },
        "components": [_component(name, found[name]) for name in sorted(found) if name != "lrft"],
        "dependencies": [
            {"ref": _ref(name, found), "dependsOn": _below(found[name], found)} for name in sorted(found)
        ],
    }


def _component(name: str, distribution: metadata.Distribution) -> dict[str, Json]:
    component: dict[str, Json] = {
        "type": "library",
        "name": name,
        "version": distribution.version,
        "purl": _purl(name, distribution),
        "bom-ref": _purl(name, distribution),
    }
    given = distribution.metadata
    licence = given["License"].strip() if "License" in given else ""
    if "License-Expression" in given:
        component["licenses"] = [{"expression": given["License-Expression"]}]
    elif licence and "\n" not in licence and len(licence) < 100:  # some hold the whole text
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _below(distribution: metadata.Distribution, found: dict[str, metadata.Distribution]) -> list[Json]:
    """References to the installed ones among its requirements, extras left out."""
    names = set()
    for line in distribution.requires or []:
        requirement, _, marker = line.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and "extra" not in marker:
            names.add(_normal(match.group()))
    return [_ref(name, found) for name in sorted(names & found.keys())]


def _ref(name: str, found: dict[str, metadata.Distribution]) -> str:
    return "lrft" if name == "lrft" else _purl(name, found[name])


def _purl(name: str, distribution: metadata.Distribution) -> str:
    return f"pkg:pypi/{name}@{distribution.version.replace('+', '%2B')}"


def _name(distribution: metadata.Distribution) -> str:
    return _normal(distribution.metadata["Name"] or "")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
