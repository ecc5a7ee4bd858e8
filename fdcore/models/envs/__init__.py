"""Environments of their own, for what cannot live beside our packages: built by uv on first use from a pinned file.

    envs/<name>/requirements.txt    every package with its version, compiled from requirements.in (`make lock`)
    envs/<name>/worker.py           what runs there, see `wire`
    envs/<name>/environment.toml    what else it needs, where that is not what a model on torch needs; see `Needs`

One folder per hash of the pinned file, so an upgrade builds a new one beside the old. It is built under a lock in a temporary folder
and renamed when it is complete: a build that was interrupted leaves nothing that could be taken for an environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdcore import config
from fdcore.errors import BuildError

HERE = Path(__file__).parent
PYTHON = "3.11"
# What a build takes on disk at most (GB): most of it are the CUDA libraries, which uv shares with our own environment where it can.
NEEDED_GB = {"cpu": 2.0, "cuda": 8.0}
# Left out, as in our own environment, where torch is built for CPUs only.
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Library:
    """A C library that a package is compiled against: its header, its name for the linker, and Debian's package."""

    header: str
    name: str
    debian: str


@dataclass(frozen=True)
class Needs:
    """What an environment needs (environment.toml; without one: a model on torch).

    python : version of its interpreter; empty: the same as ours.
    torch : whether it holds torch, built for CUDA or for CPUs as our own is.
    needed_GB : what it takes on disk at most; 0: as much as torch does.
    libraries : what its packages are compiled against; a C compiler and Python's headers are then needed, too.
    variables : set while it is built; each is the path of a file in its folder.
    """

    python: str
    torch: bool = True
    needed_GB: float = 0.0
    libraries: tuple[Library, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def python_of(name: str, progress: Progress | None = None, folder: Path | None = None) -> Path:
    """The interpreter of the environment `name`, built if it is not there yet: minutes, and gigabytes of downloads.

    progress : called with a line of text while it is built; by default lines go to standard error.
    folder : where environments are kept (FDCORE_ENVIRONMENTS, by default in the user's cache).
    Raises BuildError, which says what is missing.
    """
    folder = folder or config.environments_folder()
    target = folder / f"{name}-{_digest(name)}"
    python = _python_in(target)
    if not python.exists():
        tell = progress or _to_stderr
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{name}.lock", tell):
                # Somebody else may have built it while we waited.
                if not python.exists():
                    _build(name, target, tell)
        except OSError as error:
            raise BuildError(
                f"The environment of {name} cannot be built in {folder}: {error.strerror or error}.",
                "Make the folder writable, or set FDCORE_ENVIRONMENTS to another one.",
            ) from error
    return python


def python_path(name: str) -> str:
    """PYTHONPATH of what runs in the environment `name`: its own folder, and this one for the messages."""
    return os.pathsep.join([str(HERE / name), str(HERE)])


def needs(name: str) -> Needs:
    """What the environment `name` needs."""
    file = HERE / name / "environment.toml"
    if not file.exists():
        return Needs(PYTHON)
    found: dict[str, Any] = tomllib.loads(file.read_text())
    return Needs(
        found["python"],
        found["torch"],
        found["needed_GB"],
        tuple(Library(**library) for library in found.get("libraries", ())),
        tuple(found.get("variables", {}).items()),
    )


def is_built(name: str, folder: Path | None = None) -> bool:
    """Whether the environment `name` is there, as it is pinned now."""
    return _python_in((folder or config.environments_folder()) / f"{name}-{_digest(name)}").exists()


def obstacle(name: str, folder: Path | None = None) -> BuildError | None:
    """Why the environment `name` cannot be built, as far as this can be known beforehand; None where it is there already or nothing is
    known to be in the way."""
    if is_built(name, folder):
        return None
    if find_uv() is None:
        return BuildError(
            f"The environment of {name} is built by uv, which is not here.",
            "Install it: `pip install uv`, then try again.",
        )
    return _missing_libraries(name)


def _missing_libraries(name: str) -> BuildError | None:
    wanted = needs(name)
    if not wanted.libraries:
        return None
    compiler = shutil.which("gcc")
    if compiler is None:
        return BuildError(
            f"{name} is compiled on first use, and there is no C compiler (gcc).",
            "On Debian: `apt-get install build-essential`, then try again.",
        )
    missing = []
    if not wanted.python and not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append(Library("Python.h", "", "python3-dev"))
    missing += [library for library in wanted.libraries if not _links(compiler, library)]
    if not missing:
        return None
    return BuildError(
        f"{name} is compiled on first use, and {' and '.join(m.header for m in missing)} cannot be found.",
        f"On Debian: `apt-get install {' '.join(m.debian for m in missing)}`, then try again.",
    )


def _links(compiler: str, library: Library) -> bool:
    """Whether a program that includes the header and names the library can be made."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [compiler, "-x", "c", "-", "-shared", "-o", str(Path(folder) / "probe.so"), f"-l{library.name}"],
            input=f"#include <{library.header}>\n",
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return done.returncode == 0


def find_uv() -> Path | None:
    """uv beside our interpreter, where `make` puts it, or on the PATH."""
    places = (Path(sysconfig.get_path("scripts")), HERE.parents[2] / ".tools" / "bin")
    found = next((p / "uv" for p in places if os.access(p / "uv", os.X_OK)), None) or shutil.which("uv")
    return Path(found) if found else None


def _build(name: str, target: Path, tell: Progress) -> None:
    problem, uv = obstacle(name, target.parent), find_uv()
    if problem is not None:
        raise problem
    assert uv is not None
    wanted = needs(name)
    flavour = _flavour() if wanted.torch else ""
    needed = wanted.needed_GB or NEEDED_GB[flavour]
    free = shutil.disk_usage(target.parent).free / 1e9
    if free < needed:
        raise BuildError(
            f"The environment of {name} may need {needed:.0f} GB in {target.parent}; {free:.1f} GB are free.",
            "Free some space, or set FDCORE_ENVIRONMENTS to a folder on another disk.",
        )
    for left in target.parent.glob(f".{name}-*"):
        # We hold the lock: nobody is building here.
        shutil.rmtree(left, ignore_errors=True)
    unfinished = target.with_name(f".{target.name}")
    tell(f"{name} needs an environment of its own; it is built once, in {target}")
    started = time.monotonic()
    try:
        python = wanted.python or sys._base_executable  # pyright: ignore[reportAttributeAccessIssue]
        _run(uv, ["venv", "--relocatable", "--no-project", "--python", python, str(unfinished)], name, tell)
        packages = [
            line
            for line in (HERE / name / "requirements.txt").read_text().splitlines()
            if flavour != "cpu" or not line.startswith(CUDA_PACKAGES)
        ]
        pinned = unfinished / "requirements.txt"
        pinned.write_text("\n".join(packages) + "\n")
        backend = ["--torch-backend", "cpu"] if flavour == "cpu" and sys.platform == "linux" else []
        # The file is complete, and a package of eqv2 asks for an older torch than it runs with.
        install = ["pip", "install", "--no-deps", "--python", str(_python_in(unfinished)), "-r", str(pinned)]
        _run(uv, [*install, *backend], name, tell)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    tell(f"{name}: built in {time.monotonic() - started:.0f} s")


def _run(uv: Path, arguments: list[str], name: str, tell: Progress) -> None:
    process = subprocess.Popen(
        [str(uv), *arguments, "--color", "never"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Torch alone is hundreds of megabytes: slow lines are not errors.
        env={
            "UV_HTTP_TIMEOUT": "300",
            **os.environ,
            **{key: str(HERE / name / file) for key, file in needs(name).variables},
        },
    )
    said: deque[str] = deque(maxlen=40)
    failing = False
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.strip())
            failing = failing or line.startswith("error:")
            if line.strip() and not failing and not line.startswith((" + ", "warning:")):
                tell(f"{name}: {line.strip()}")
        if process.wait():
            raise _why(name, " ".join(said))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _why(name: str, said: str) -> BuildError:
    text = said[said.find("error:") + 6 :].strip() if "error:" in said else said
    message = f"The environment of {name} could not be built: {text[:300]}"
    low = said.lower()
    if any(s in low for s in ("no interpreter found", "no download found", "managed python")):
        return BuildError(
            message,
            f"It needs Python {needs(name).python}: `uv python install {needs(name).python}`, or install it as your system does.",
        )
    if "no space left" in low or "quota exceeded" in low:
        return BuildError(message, "Free some space, or set FDCORE_ENVIRONMENTS to a folder on another disk.")
    if any(
        s in low for s in ("dns error", "error sending request", "failed to fetch", "network", "timed out", "offline")
    ):
        return BuildError(
            message,
            "Packages are downloaded from PyPI once. Check the network, or name a mirror as uv does (UV_DEFAULT_INDEX, UV_FIND_LINKS).",
        )
    return BuildError(message, "Try again; if it fails in the same way, report it with these lines.")


def _flavour() -> str:
    """As our own torch: built for CUDA or for CPUs only."""
    from torch import version

    return "cuda" if version.cuda else "cpu"


def _digest(name: str) -> str:
    wanted = needs(name)
    parts = [(HERE / name / "requirements.txt").read_bytes()]
    parts.append(f"{wanted.python or sysconfig.get_python_version()} {_flavour() if wanted.torch else ''}".encode())
    parts += [(HERE / name / file).read_bytes() for _, file in wanted.variables]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


@contextmanager
def _locked(path: Path, tell: Progress) -> Iterator[None]:
    """One build at a time; the lock goes with the process that holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another process is building the environment; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _to_stderr(line: str) -> None:
    print(f"fdcore: {line}", file=sys.stderr, flush=True)
