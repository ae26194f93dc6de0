"""What the Dockerfile promises, as far as it can be read off it."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import image_environment, lineage, stages
from tests.docs.blocks import ROOT
from tests.docs.shell import SETTINGS

TARGETS = ("cpu", "nvidia")
LOCKS = {"cpu": "requirements/cpu.txt", "nvidia": "requirements/gpu.txt"}


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_stage_is_the_one_for_a_cpu() -> None:
    *_, (name, last) = stages().items()
    assert (name, last.base, last.instructions) == ("default", "cpu", ())


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_without_privileges(target: str) -> None:
    users = [user for stage in lineage(target) for user in stage.of("USER")]
    assert users == ["10001:10001"], "by number, and nothing after it runs as another"
    last = stages()[target].instructions[-1]
    assert last[0] == "USER"


@pytest.mark.parametrize("target", TARGETS)
def test_it_has_a_health_check_and_starts_the_service(target: str) -> None:
    found = {
        name: [a for stage in lineage(target) for a in stage.of(name)]
        for name in ("HEALTHCHECK", "ENTRYPOINT", "CMD", "EXPOSE")
    }
    (health,) = found["HEALTHCHECK"]
    assert "/livez" in health
    compile(json.loads(health.partition("CMD ")[2])[2], "health check", "exec")
    assert found["ENTRYPOINT"] == ['["requery"]']
    assert found["CMD"] == ['["serve"]']
    assert found["EXPOSE"] == [image_environment(target)["REQUERY_PORT"]]


@pytest.mark.parametrize("target", TARGETS)
def test_its_variables_are_settings_and_write_to_tmp_alone(target: str) -> None:
    given = image_environment(target)
    assert {name for name in given if name.startswith("REQUERY_")} <= SETTINGS
    folders = {n: v for n, v in given.items() if v.startswith("/") and not n.startswith("REQUERY_")}
    assert folders
    assert all(value.split("/")[1] == "tmp" for value in folders.values()), folders
    assert not [stage for stage in lineage(target) if stage.of("VOLUME")]


@pytest.mark.parametrize("target", TARGETS)
def test_everything_is_installed_from_the_locks(target: str) -> None:
    installs = [
        (stage, command)
        for name in (f"libraries-{target}", "code", target)
        for stage in lineage(name)
        for command in stage.of("RUN")
        if "pip install" in command
    ]
    assert installs
    for stage, command in installs:
        for one in re.findall(r"pip install [^&]*", command):
            assert "--no-deps" in one
            # A lock, a line of it, or our own code without any index.
            from_lock = any(file in one for file in (LOCKS[target], "locked.txt", "cpu.txt"))
            assert from_lock or ("--no-index" in one and one.split()[-1] == "."), one
        if "locked.txt" in command:
            assert f"{LOCKS[target]} > locked.txt" in command
        assert re.search(r"requirements/(cpu|gpu)\.txt", " ".join(stage.of("COPY")))


def test_the_base_has_a_digest_and_the_image_of_ray_a_lock() -> None:
    bases = re.findall(r"^ARG BASE_IMAGE=(.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", base) is not None for base in bases] == [True]
    ray = (ROOT / "deploy/ray/Dockerfile").read_text()
    assert re.findall(r"pip install (?:--\S+ )*(.*?) \\", ray) == ["-r /tmp/ray.txt"]
    assert "requirements/ray.txt /tmp/ray.txt" in ray


def test_the_build_finds_in_the_locks_what_it_looks_for() -> None:
    lock = (ROOT / "requirements/cpu.txt").read_text()
    text = (ROOT / "Dockerfile").read_text()
    wanted = re.findall(r"grep -o '\^([\w-]+)==", text)
    assert set(wanted) == {"torch", "setuptools"}
    for package in wanted:
        assert re.search(rf"^{package}==", lock, re.MULTILINE)


def test_the_image_for_a_cpu_has_no_compiler() -> None:
    commands = " ".join(c for stage in lineage("cpu") for c in stage.of("RUN"))
    assert "apt-get install" in commands
    assert not re.search(r"\b(gcc|g\+\+|build-essential)\b", commands)


@pytest.mark.parametrize("target", TARGETS)
def test_what_changes_often_comes_last(target: str) -> None:
    copied = [arguments.split()[0] for arguments in stages()[target].of("COPY")]
    assert copied == [f"--from=libraries-{target}", f"--from=weights-{target}", "--from=code"]


def test_the_context_is_what_is_installed_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {line.removeprefix("!").rstrip("/") for line in rules if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = [p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()]
    needed = {f for f in folders if any(fnmatch.fnmatch(f, pattern) for pattern in packages)}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert kept == needed | {"pyproject.toml", "requirements"}


def test_no_place_is_named_but_the_public_ones() -> None:
    files = [ROOT / "Dockerfile", *(ROOT / "deploy/container").iterdir()]
    hosts = {
        host for file in files if file.is_file()
        for host in re.findall(r"https?://([\w.-]+)", file.read_text())
    }  # fmt: skip
    assert hosts <= {"download.pytorch.org", "127.0.0.1"}
