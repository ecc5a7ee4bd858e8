"""Every file of tests/corpus, alone and all together."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fdcore.structures import Limits, Source, read_paths, read_sources

CORPUS = Path(__file__).parents[1] / "corpus"
MANIFEST: dict[str, list[dict[str, Any]]] = tomllib.loads((CORPUS / "manifest.toml").read_text())
GOOD, BROKEN = MANIFEST["good"], MANIFEST["broken"]


def _name(row: dict[str, Any]) -> str:
    return row["file"]


@pytest.mark.parametrize("row", GOOD, ids=_name)
def test_good_file_gives_the_structures_it_holds(row: dict[str, Any]) -> None:
    parsed = read_paths([CORPUS / "good" / row["file"]])
    assert parsed.failures == ()
    structures = parsed.structures
    assert len(structures) == row["n_structures"]
    assert list(dict.fromkeys(s.formula for s in structures)) == row["formulas"]
    assert [s.n_atoms for s in structures] == row["n_atoms"]
    assert [s.index for s in structures] == list(range(len(structures)))
    for s in structures:
        assert s.pbc == (row["periodic"],) * 3
        assert s.cell.any() == row["periodic"]
        assert (s.charge, s.spin) == (row.get("charge"), row.get("spin"))
        assert s.file.endswith(row["file"])
    assert (set(structures[0].labels) >= {"energy_eV", "forces_eV_per_A"}) == row.get("labels", False)
    warnings = structures[0].warnings
    assert any(row["warning"] in w for w in warnings) if "warning" in row else warnings == ()


@pytest.mark.parametrize("row", BROKEN, ids=_name)
def test_broken_file_gives_its_reason_and_the_next_step(row: dict[str, Any]) -> None:
    parsed = read_paths([CORPUS / "broken" / row["file"]])
    assert len(parsed.structures) == row.get("good", 0)
    assert any(row["error"] in f.error for f in parsed.failures)
    for failure in parsed.failures:
        assert failure.file.endswith(row["file"])
        assert failure.hint
        assert "Traceback" not in failure.error and "could not be read (" not in failure.error


def test_bad_files_never_stop_the_good_ones() -> None:
    # Interleaved, so that each good file follows a broken one.
    paths = [CORPUS / "broken" / row["file"] for row in BROKEN]
    for at, row in enumerate(GOOD):
        paths.insert(2 * at + 1, CORPUS / "good" / row["file"])
    sources = [Source(path.name, path.read_bytes()) for path in paths]
    parsed = read_sources(sources, Limits(max_files=1000))
    assert len(parsed.structures) == sum(r["n_structures"] for r in GOOD) + sum(r.get("good", 0) for r in BROKEN)
    good = {row["file"] for row in GOOD}
    assert [s.file for s in parsed.structures if s.file in good and s.index == 0] == [row["file"] for row in GOOD]
    assert {f.file for f in parsed.failures} == {row["file"] for row in BROKEN}


def test_corpus_and_manifest_agree_and_are_large_enough() -> None:
    for folder, rows, least in (("good", GOOD, 30), ("broken", BROKEN, 60)):
        assert sorted(p.name for p in (CORPUS / folder).iterdir()) == sorted(row["file"] for row in rows)
        assert len(rows) >= least
