"""What of the building machine's pip configuration a build gets."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def host_config() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "host_config", ROOT / "deploy/container/host_config.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variables_count_more_than_files_and_only_places_are_taken(
    host_config: ModuleType,
) -> None:
    listed = """\
:env:.find-links='/wheels'
:env:.disable-pip-version-check='1'
global.find-links='/other'
global.index-url='https://one.example/simple'
install.no-binary='all'
"""
    assert host_config.configuration(listed) == {
        "index-url": "https://one.example/simple",
        "find-links": "/wheels",
    }


def test_local_folders_are_found_with_what_their_pages_point_to(
    host_config: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "my wheels").mkdir()
    (tmp_path / "ca.crt").touch()
    found = host_config.local_paths(
        {
            "index-url": "https://one.example/simple",
            "extra-index-url": f"file://{tmp_path}/index/simple https://two.example/simple",
            "find-links": f"file://{tmp_path}/my%20wheels {tmp_path}/gone",
            "cert": f"{tmp_path}/ca.crt",
        }
    )
    assert found == [tmp_path / "index", tmp_path / "my wheels", tmp_path / "ca.crt"]
