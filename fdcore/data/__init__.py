"""Files that travel with the package: embedded weights, example structures, labels; each with a card."""

from importlib.resources import files
from pathlib import Path


def path(*parts: str) -> Path:
    """The path of a shipped file, e.g. path("models", "fd-orb-small-v1.safetensors")."""
    return Path(str(files(__name__).joinpath(*parts)))
