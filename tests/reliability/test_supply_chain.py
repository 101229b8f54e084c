"""What is installed is known by its hash and can be listed, nothing is counted, and no test leaves this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from importlib.metadata import distributions

import pytest

import lock
from lrft.commands.sbom import bill_of_materials
from tests.reliability.outcome import ROOT

REPORT = {
    "install": [
        {
            "metadata": {"name": "PyYAML", "version": "6.0.4"},
            "download_info": {"archive_info": {"hashes": {"sha256": "a" * 64}}},
        },
        {
            "metadata": {"name": "torch", "version": "2.13.0+cpu"},
            "download_info": {"archive_info": {"hashes": {"sha256": "b" * 64}}},
        },
        {"metadata": {"name": "bare", "version": "1"}, "download_info": {"archive_info": {}}},
    ]
}
PINS = "# pins\npyyaml==6.0.4\ntorch==2.13.0\n"


def test_every_pinned_version_is_locked_by_its_hash():
    pins = (ROOT / "constraints.txt").read_text()
    assert lock.faults(pins, (ROOT / "requirements.lock").read_text()) == []


def test_a_lock_has_a_line_for_every_file_and_names_those_without_a_hash():
    text, without = lock.lock(REPORT)
    assert f"pyyaml==6.0.4 --hash=sha256:{'a' * 64}\n" in text and without == ["bare"]
    assert lock.faults(PINS, text) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("pyyaml==6.0.4", "pyyaml==6.0.3", "pyyaml: 6.0.3 is locked, 6.0.4 is pinned"),
        (" --hash=sha256:" + "a" * 64, "", "pyyaml: has no hash"),
        ("a" * 64, "a" * 63, "pyyaml: has no hash"),
        ("pyyaml==", "other==", "pyyaml: is not in requirements.lock"),
    ],
)
def test_what_a_lock_lacks_is_named(old, new, problem):
    text, _ = lock.lock(REPORT)
    assert lock.faults(PINS, text.replace(old, new))[0] == problem


def _item(name, version, *wants):
    return {"metadata": {"name": name, "version": version, "requires_dist": list(wants)}}


def test_versions_that_cannot_stand_beside_one_another_are_named(tmp_path, capsys):
    wants = ("Typer<0.21,>=0.13", 'ray==2.55.1; extra == "simulation"', 'absent>1; extra == "rest"')
    report = {"install": [_item("flwr", "1.42.0", *wants), _item("typer", "0.29.2"), _item("ray", "2.60.0")]}
    asked = lock.extras(
        '[project]\ndependencies = []\n[project.optional-dependencies]\nfed = ["flwr[simulation]"]'
    )
    assert asked == {"flwr": {"simulation"}}
    found = lock.conflicts(report, asked)
    assert found == [
        "flwr 1.42.0 wants Typer<0.21,>=0.13, 0.29.2 is pinned",
        "flwr 1.42.0 wants ray==2.55.1, 2.60.0 is pinned",
    ]
    assert len(lock.conflicts(report, {})) == 1
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    before = lock.LOCK.read_bytes()
    assert lock.main(["--report", str(file)]) == 1 and lock.LOCK.read_bytes() == before
    assert capsys.readouterr().err.splitlines()[-1] in found


def test_the_pins_of_what_is_installed_can_stand_beside_one_another():
    pins = dict(lock.versions((ROOT / "constraints.txt").read_text()))
    found = {lock.normal(of.name): of for of in distributions()}
    there = [
        _item(name, version, *(found[name].requires or ())) for name, version in pins.items() if name in found
    ]
    assert len(there) > 50
    assert lock.conflicts({"install": there}, lock.extras((ROOT / "pyproject.toml").read_text())) == []


def test_the_bill_of_materials_has_what_its_format_requires():
    """CycloneDX 1.6: the required fields, references that lead somewhere, and purls of every component."""
    found = json.loads(json.dumps(bill_of_materials()))
    assert (found["bomFormat"], found["specVersion"], found["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["metadata"]["timestamp"])
    names = [component["name"] for component in found["components"]]
    assert len(names) == len(set(names)) and {"torch", "transformers", "safetensors", "pydantic"} <= set(
        names
    )
    for component in found["components"]:
        assert component["type"] == "library" and component["version"]
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@\S+", component["purl"]) and "+" not in component["purl"]
        assert all(set(licence) <= {"expression", "license"} for licence in component.get("licenses", []))
    known = {component["bom-ref"] for component in found["components"]} | {"lrft"}
    assert {entry["ref"] for entry in found["dependencies"]} <= known
    assert {ref for entry in found["dependencies"] for ref in entry["dependsOn"]} <= known
    below = {entry["ref"]: entry["dependsOn"] for entry in found["dependencies"]}
    assert any(ref.startswith("pkg:pypi/torch@") for ref in below["lrft"])


def test_a_test_that_reaches_outside_fails_though_it_catches_the_error(tmp_path):
    """Three tests under this suite's conftest, in a process of their own."""
    lines = {
        "connect": "socket.socket().connect(('192.0.2.1', 9))",
        "connect_ex": "socket.socket().connect_ex(('192.0.2.1', 9))",
        "getaddrinfo": "socket.getaddrinfo('example.invalid', 80)",
    }
    text = "import contextlib, socket\n"
    for name, line in lines.items():
        text += f"def test_{name}():\n    with contextlib.suppress(OSError):\n        {line}\n"
    (tmp_path / "test_reach.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "test_reach.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "3 passed, 3 errors" in done.stdout
    assert done.stdout.count("outside this machine") >= 3


def test_this_machine_may_be_reached():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5):
            pass


def test_nothing_is_counted_unless_somebody_asks_for_it():
    code = "import lrft, os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    for given, expected in (({}, "1 1"), ({"DO_NOT_TRACK": "0"}, "1 0")):
        environment = {
            k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == expected.split()


def test_trackers_are_off_by_default():
    from lrft.recipe.sections import LoggingSection

    section = LoggingSection()
    assert not any((section.wandb, section.tensorboard, section.mlflow, section.trackio))


def test_huggingface_hub_is_told(monkeypatch):
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY
