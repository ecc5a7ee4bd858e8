"""Building an environment: what stands in the way is said, and nothing half-built is ever taken for one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from fdcore.config import environments_folder
from fdcore.errors import BuildError
from fdcore.models import envs


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> str:
    """An environment that needs no network: no packages, our own Python."""
    uv = envs.find_uv()
    assert uv is not None, "`make` puts it into .tools/bin"
    monkeypatch.setattr(envs, "HERE", tmp_path / "envs")
    monkeypatch.setattr(envs, "PYTHON", sys.executable)
    monkeypatch.setattr(envs, "find_uv", lambda: uv)
    (tmp_path / "envs" / "tiny").mkdir(parents=True)
    (tmp_path / "envs" / "tiny" / "requirements.txt").write_text("# nothing\n")
    return "tiny"


def test_it_is_built_once(tiny, tmp_path):
    said: list[str] = []
    python = envs.python_of(tiny, said.append, tmp_path / "kept")
    assert subprocess.run([python, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout == "42\n"
    assert "needs an environment of its own" in said[0]
    assert "built in" in said[-1]
    said.clear()
    assert envs.python_of(tiny, said.append, tmp_path / "kept") == python
    assert said == []


def test_another_pinned_file_is_another_environment(tiny, tmp_path):
    first = envs.python_of(tiny, print, tmp_path / "kept")
    (tmp_path / "envs" / "tiny" / "requirements.txt").write_text("# something else\n")
    second = envs.python_of(tiny, print, tmp_path / "kept")
    assert first != second
    assert first.exists() and second.exists()


def test_two_at_once_build_one(tiny, tmp_path):
    said: list[str] = []
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(envs.python_of(tiny, said.append, tmp_path / "kept")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 3
    assert sum("needs an environment" in line for line in said) == 1
    assert any("waiting for it" in line for line in said)


def test_a_failed_build_leaves_nothing(tiny, tmp_path):
    (tmp_path / "envs" / "tiny" / "requirements.txt").write_text(
        "no-such-package-of-force-delta @ file:///nowhere.whl\n"
    )
    with pytest.raises(BuildError, match="could not be built"):
        envs.python_of(tiny, print, tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["tiny.lock"]


def test_what_an_interrupted_build_left_is_removed(tiny, tmp_path):
    left = tmp_path / "kept" / ".tiny-0123"
    left.mkdir(parents=True)
    envs.python_of(tiny, print, tmp_path / "kept")
    assert not left.exists()


def test_without_uv(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "find_uv", lambda: None)
    with pytest.raises(BuildError, match=r"pip install uv"):
        envs.python_of(tiny, print, tmp_path / "kept")


def test_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=r"(?s)could not be built.*Check the network.*UV_FIND_LINKS") as caught:
        envs.python_of("eqv2", print, tmp_path / "kept")
    assert "error:" not in caught.value.message


def test_without_the_python_that_it_needs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "PYTHON", "3.99")
    with pytest.raises(BuildError, match=r"uv python install"):
        envs.python_of(tiny, print, tmp_path / "kept")


def test_without_disk_space_or_rights(tiny, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 10_000_000))
    with pytest.raises(BuildError, match=r"(?s)0\.0 GB are free.*FDCORE_ENVIRONMENTS"):
        envs.python_of(tiny, print, tmp_path / "kept")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"cannot be built in .*Not a directory"):
        envs.python_of("eqv2", print, tmp_path / "file" / "kept")


def test_where_they_are_kept():
    assert environments_folder({"FDCORE_ENVIRONMENTS": "/x/y"}) == Path("/x/y")
    assert environments_folder({"FDCORE_ENVIRONMENTS": "", "HOME": "/h", "XDG_CACHE_HOME": "/c"}).is_absolute()
    assert environments_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/force-delta/environments")


@pytest.mark.parametrize(("name", "package"), [("eqv2", "fairchem-core==1.10.0"), ("mace", "mace-torch==0.3.16")])
def test_the_pinned_file_names_versions_and_no_addresses(name, package):
    lines = (envs.HERE / name / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert all("==" in line for line in packages)
    assert any(line.startswith(package) for line in packages)
    assert "://" not in "\n".join(lines)
