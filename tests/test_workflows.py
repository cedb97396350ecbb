"""The workflows and the Dockerfile, as far as they can be checked without running them."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EVERYWHERE = {
    *("ubuntu-24.04", "ubuntu-24.04-arm"),
    *("macos-14", "macos-15-intel"),
    *("windows-2022", "windows-11-arm"),
}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def read(file: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_has_the_form_that_github_reads(file: Path) -> None:
    workflow = read(file)
    # YAML 1.1 reads the key "on" as true.
    assert set(workflow) <= {"name", True, "permissions", "concurrency", "env", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in file.read_text(encoding="utf-8")
    for name, job in workflow["jobs"].items():
        needs = job.get("needs", [])
        assert set(needs if isinstance(needs, list) else [needs]) <= set(workflow["jobs"]), name
        assert job["runs-on"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            if "uses" in step:
                # A commit, which nobody can move.
                assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])
            used = re.findall(r"\${{ *matrix\.(\w+)", str(step))
            assert set(used) <= set(job.get("strategy", {}).get("matrix", {})), (name, step)


def test_every_platform_is_tested_and_gets_wheels() -> None:
    tests, publish = (
        read(ROOT / ".github" / "workflows" / f"{n}.yml") for n in ("tests", "publish")
    )
    for job in (tests["jobs"]["wheel"], tests["jobs"]["test"], publish["jobs"]["wheels"]):
        assert set(job["strategy"]["matrix"]["os"]) == EVERYWHERE
    published = publish["jobs"]["publish"]
    assert published["permissions"] == {"id-token": "write"}
    assert published["environment"] == "pypi" and set(published["needs"]) == {"wheels", "sdist"}


def test_files_and_packages_that_they_name_exist() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    for name in re.findall(r"(?:tests|\.github)/[\w/.]+\.py", text + DOCKERFILE):
        assert (ROOT / name).is_file(), name
    for name in set(re.findall(r"requirement\.py ([\w-]+)", text)):
        found = subprocess.run(
            [sys.executable, ".github/requirement.py", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.startswith(name)


def test_the_image_copies_what_is_there_and_runs_as_nobody() -> None:
    sent = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    assert len(stages) == 2
    for line in re.findall(r"^COPY (?!--from)(.+)$", stages[0], flags=re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in sent), source
    last = stages[1]
    assert re.search(r"^USER (?!root)\w+$", last, flags=re.M)
    for word in (
        "HEALTHCHECK",
        "VOLUME /model",
        "EXPOSE 8080",
        'ENTRYPOINT ["tenp-edge", "serve"]',
    ):
        assert word in last
    assert "build-essential" not in last


def test_the_image_installs_what_pyproject_names() -> None:
    names = re.search(r"for name in (.+?); do", DOCKERFILE.replace("\\\n", " "))
    assert names is not None
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in names[1].split():
        assert re.search(rf'"{name}[>=<]', project), name
