import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def _name(requirement):
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _pins():
    lock = (ROOT / "requirements.lock").read_text()
    return {_name(line): line for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)}


def test_every_requirement_of_pyproject_is_pinned_within_its_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = _pins()
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        bound = tuple(map(int, requirement.split(">=")[1].split(".")))
        pinned = re.search(r"==([0-9.]+)", pins[_name(requirement)])[1]
        assert tuple(map(int, pinned.strip(".").split("."))) >= bound, requirement


def test_every_pin_has_a_hash_and_no_address_is_written_down():
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock.strip())
    assert len(entries) > 50 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in lock and "index-url" not in lock


def test_conda_users_get_the_same_lock_and_a_python_that_the_project_takes():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert pip == ["-r requirements.lock"]
    assert python.removeprefix("python=") == project["requires-python"].removeprefix(">=")
