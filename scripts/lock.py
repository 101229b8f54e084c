"""Write `requirements.lock`: every version of constraints.txt with the SHA-256 of its file for this platform.

    python scripts/lock.py                 write it; pip is asked what it would install, and installs nothing;
                                           versions that cannot stand beside one another are named, and refused
    python scripts/lock.py --check         is it complete: a hash for every version of constraints.txt, and no other?
    python scripts/lock.py --report R.json use what `pip install --dry-run --report R.json` wrote before

`pip install --require-hashes --no-deps -r requirements.lock` then installs these files and no others. Files of another
platform have other hashes: make the lock where it is used. A package whose index gives no hash is named, and left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
PINS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
HEAD = """# Made by scripts/lock.py from constraints.txt, for {platform}: versions with the SHA-256 of their files.
# Install with: pip install --require-hashes --no-deps -r requirements.lock
"""


def main(arguments: list[str] | None = None) -> int:
    """Write the lock, or check it; exit code 1 where a version lacks its hash."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--report", type=Path, help="a report of pip's, instead of asking it")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        problems = faults(PINS.read_text(encoding="utf-8"), LOCK.read_text(encoding="utf-8"))
        print("\n".join(problems) or f"{LOCK.name} has a hash for every version", file=sys.stderr)
        return int(bool(problems))
    report = json.loads(chosen.report.read_text(encoding="utf-8")) if chosen.report else asked()
    if problems := conflicts(report, extras(PROJECT.read_text(encoding="utf-8"))):
        print("\n".join(problems), file=sys.stderr)
        return 1
    text, without = lock(report)
    LOCK.write_text(text, encoding="utf-8")
    if without:
        print(f"the index gives no hash for {', '.join(without)}; left out", file=sys.stderr)
    return int(bool(without))


def asked() -> dict[str, Any]:
    """What pip would install for constraints.txt, and from which files."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        subprocess.run([*command, "--report", str(report), "-r", str(PINS)], check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def lock(report: dict[str, Any]) -> tuple[str, list[str]]:
    """The lock file of a report, and the packages that have no hash in it."""
    lines, without = {}, []
    for item in report["install"]:
        name, version = normal(item["metadata"]["name"]), item["metadata"]["version"]
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            without.append(name)
        else:
            lines[name] = f"{name}=={version} --hash=sha256:{digest}"
    body = "\n".join(lines[name] for name in sorted(lines))
    python = ".".join(platform.python_version_tuple()[:2])
    where = f"{sys.platform} {platform.machine()}, Python {python}"
    return f"{HEAD.format(platform=where)}{body}\n", sorted(without)


def extras(project: str) -> dict[str, set[str]]:
    """The extras of other packages that ours ask for, such as `simulation` of flwr."""
    table = tomllib.loads(project)["project"]
    lists = [table["dependencies"], *table.get("optional-dependencies", {}).values()]
    found: dict[str, set[str]] = {}
    for wanted in (Requirement(line) for lines in lists for line in lines):
        found.setdefault(normal(wanted.name), set()).update(wanted.extras)
    return found


def conflicts(report: dict[str, Any], asked_for: dict[str, set[str]]) -> list[str]:
    """What a pinned package wants of another that is pinned in a version it cannot use: `pip -c` would refuse both."""
    pinned = {normal(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    problems = []
    for item in report["install"]:
        name = normal(item["metadata"]["name"])
        for line in item["metadata"].get("requires_dist", ()):
            wanted = Requirement(line)
            chosen = {"", *asked_for.get(name, ())}
            here = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in chosen)
            version = pinned.get(normal(wanted.name))
            if here and version and not wanted.specifier.contains(version, prereleases=True):
                problems.append(
                    f"{name} {pinned[name]} wants {wanted.name}{wanted.specifier}, {version} is pinned"
                )
    return sorted(problems)


def faults(pins: str, locked: str) -> list[str]:
    """What a lock lacks of the pinned versions, has beside them, or holds in another version."""
    wanted = dict(versions(pins))
    found = dict(versions(locked))
    with_hash = [line for line in locked.splitlines() if re.search(r"sha256:[0-9a-f]{64}$", line)]
    hashed = {normal(line.partition("==")[0]) for line in with_hash}
    problems = [f"{name}: is not in {LOCK.name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name}: is not in {PINS.name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name].partition("+")[0] != wanted[name]:  # torch has a build suffix
            problems.append(f"{name}: {found[name]} is locked, {wanted[name]} is pinned")
        elif name not in hashed:
            problems.append(f"{name}: has no hash")
    return problems


def versions(text: str) -> list[tuple[str, str]]:
    """Name and version of every `name==version` line."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, flags=re.MULTILINE)
    return [(normal(name), version) for name, version in found]


def normal(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
