"""A report from end to end: known fields through the task, the readers and the words; the embedded model; the command line."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fdcore import (
    data,
    drift_report,
    html_page,
    report,
    report_files,
    report_pdf,
    report_plots,
    report_verdict,
    report_words,
    services,
)
from fdcore.errors import ComputeError, UsageError
from fdcore.examination import Examination, copy_of, find_molecule, neighbour_set
from fdcore.records import Evaluation, Failure, Structure
from fdcore.services import report as reports
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.tasks.run import execute
from tests.doubles import Double

# Soft, so that atoms stay where they are while NVE is looked at.
K, W, JUMP = 0.02, 0.003, 0.003
QUICK = {"loops": 3, "lines": 2, "line_points": 21, "copies": 3, "picoseconds": 0.03, "equilibrate_ps": 0.01}


class Turning(Double):
    """F_c = -k r and F_nc = F_c + w z x r, both of every atom from the origin: every measure has a value known by hand."""

    bytes_per_edge = 1.0

    def _edge_count(self, structure):
        return 1.0

    def _evaluate(self, structures):
        return [self._one(s.positions) for s in structures]

    def _one(self, r):
        conservative = -K * r
        return Evaluation(0.5 * K * float((r**2).sum()), conservative + W * np.cross([0, 0, 1], r), conservative)

    def _displaced(self, structure, displacements):
        return [self._one(structure.positions + d) for d in displacements]


class Derived(Turning):
    """The same with derivatives."""

    pulls_back = True

    def _pull_back(self, structure, vectors, force):
        turn = W * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 0]]) if force == "direct" else np.zeros((3, 3))
        return vectors @ (turn - K * np.eye(3))


class Jumping(Turning):
    """Its energy jumps where the first atom crosses a plane."""

    def _one(self, r):
        found = super()._one(r)
        return replace(found, energy=found.energy + JUMP * (r[0, 0] > EDGE))


class Broken(Turning):
    """It can evaluate, and nothing else."""

    def _displaced(self, structure, displacements):
        raise ComputeError("The differences went wrong.", "Try another model.")


class Refusing(Turning):
    def _evaluate(self, structures):
        if any(79 in s.numbers for s in structures):
            raise ComputeError("No gold here.", "Leave it out.")
        return super()._evaluate(structures)


def molecule(n: int = 6, seed: int = 1) -> Structure:
    """Bonded atoms in a row, centred."""
    r = np.cumsum(np.random.default_rng(seed).normal(size=(n, 3)) * 0.1 + [1.6, 1.0, 0.6], axis=0)
    return Structure(np.array([11, 17] * (n // 2)), r - r.mean(0), np.zeros((3, 3)), (False,) * 3, file="row.xyz")


EDGE = molecule().positions[0, 0] - 0.004


def examine(folder: Path, kind=Turning, structures=None, dtype="float64", **parameters) -> report.Report:
    structures = structures or [molecule()]
    choice = ModelChoice(services.default_model_id(), dtype)
    spec = Spec("report", choice, stored.inputs_sha256(structures), len(structures), {**QUICK, **parameters}, seed=4)
    model = kind(services.card(choice.id), "cpu", dtype)
    outcome = execute(spec, structures, lambda _: model, folder / "1")
    assert outcome.state == "done", outcome
    return report.read(folder / "1", spec, structures)


EXACT = math.sqrt(2 * W**2 / (3 * K**2 + 2 * W**2))


@pytest.mark.parametrize("kind", [Turning, Derived])
def test_a_known_field_has_its_known_values(tmp_path, kind):
    found = examine(tmp_path, kind)
    [one] = found.examined
    s, r = one.structure, one.structure.positions
    assert not one.missing and found.complete
    # U_Delta: |w z x r|.
    assert one.evaluation.force_delta == pytest.approx(W * math.sqrt((r[:, :2] ** 2).sum() / (3 * len(r))))
    # lambda, exact, of both forces.
    assert one.asymmetry["direct"].value == pytest.approx(EXACT, rel=1e-8) and one.asymmetry["direct"].exact
    assert one.asymmetry["conservative"].value < 1e-10
    assert one.asymmetry_by == ("derivatives" if kind is Derived else "differences")
    assert one.by_atom[1] == pytest.approx(np.full(len(r), 1 / len(r)))
    # The structure is centred: no net force; the torque is w sum (x^2 + y^2) about z and more across.
    assert one.net_force("direct") < 1e-12 and one.net_force("conservative") < 1e-12
    torque = np.cross(r, W * np.cross([0, 0, 1], r)).sum(0)
    assert one.net_torque("direct") == pytest.approx(np.linalg.norm(torque) / len(r))
    assert one.net_torque("conservative") < 1e-12
    # Loops: Stokes is exact for a linear force; F_c does no work.
    from fdcore import conservativity

    j = np.kron(np.eye(len(r)), W * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 0]]) - K * np.eye(3))
    works = one.works("random", "direct")
    assert len(works) == 3
    for number, value in enumerate(works):
        plane = conservativity.directions(3 * len(r), 2, [4, 0, 3, number])
        assert value == pytest.approx(conservativity.small_loop_work(j, plane, 0.1), rel=1e-9)
    assert max(abs(w) for w in one.works("random", "conservative") + one.works("molecule", "conservative")) < 1e-12
    assert len(one.works("molecule", "direct")) == 1
    assert one.mean_work("random", "direct").value == pytest.approx(1000 * np.mean(np.abs(works)))
    # A smooth energy does not jump; the same atoms in another order are the same thing.
    assert one.largest_jump_meV < 1e-9
    permuted = one.noise("permutation")
    assert permuted.direct < 1e-14 and permuted.conservative < 1e-14 and permuted.copies == 3
    # A turned copy: F_c turns with it, F_nc does not.
    turned = one.noise("rotation")
    assert turned.conservative < 1e-12 and turned.direct > 0.1 * one.evaluation.force_delta
    assert one.check["passed"] and one.check["error"] < 1e-7
    assert set(one.drifts) == {"direct", "conservative"}
    assert set(one.seconds) == set(Examination().parts)
    assert s.n_atoms == 6


@pytest.mark.parametrize("kind", [Turning, Derived])
def test_a_sample_has_the_exact_value_within_its_error(tmp_path, kind):
    structures = [molecule(30)]
    found = examine(tmp_path, kind, structures, parts=["asymmetry"], exact_atoms=0, precision=0.1)
    [one] = found.examined
    a = one.asymmetry["direct"]
    assert not a.exact and 6 <= a.probes <= 60 and a.standard_error > 0
    assert abs(a.value - EXACT) < 4 * a.standard_error
    assert one.asymmetry["conservative"].value < 1e-7
    assert not one.jacobians and one.by_atom is None
    text = next(w for w in report_words.said_of(one, found)[0] if w.name == "Jacobian asymmetry").text
    assert f"{a.probes} random directions of 90" in text


def test_a_jump_of_the_energy_is_reported(tmp_path):
    found = examine(tmp_path, Jumping, parts=["lines"], lines=6)
    [one] = found.examined
    assert one.largest_jump_meV == pytest.approx(1000 * JUMP, rel=1e-3)
    line = next(w for w in report_words.said_of(one, found)[0] if w.part == "lines")
    assert line.status == "look" and "3.00 meV" in line.figure


def test_what_cannot_be_done_is_missing_with_its_reason(tmp_path):
    found = examine(tmp_path, Broken)
    [one] = found.examined
    assert set(one.missing) == {"gradient", "asymmetry"}
    assert not one.asymmetry and one.check is None
    said, uses = report_words.said_of(one, found)
    line = next(w for w in said if w.part == "asymmetry")
    assert line.status == "unknown" and "went wrong" in line.text and line.figure == "–"
    phonons = next(u for u in uses if u.name.startswith("Phonons"))
    assert phonons.answer == "not known"
    document = json.loads(report_files.as_json(found))
    assert document["results"][0]["jacobian_asymmetry"] is None
    assert "went wrong" in document["results"][0]["missing"]["asymmetry"]
    # The others are there.
    assert one.loops and one.lines and one.noises and one.drifts


def test_single_precision_has_no_check_by_differences(tmp_path):
    found = examine(tmp_path, dtype="float32", parts=["gradient"])
    assert "single precision" in found.examined[0].missing["gradient"]


def test_a_bad_structure_never_stops_the_others(tmp_path):
    bad = replace(molecule(), numbers=np.full(6, 79), file="gold.xyz")
    second = replace(molecule(seed=2), file="second.xyz")
    found = examine(tmp_path, Refusing, [molecule(), bad, second], parts=["symmetry"])
    assert [e.structure.file for e in found.examined] == ["row.xyz", "second.xyz"]
    [failure] = found.failures
    # No model here knows gold: the check of the base class says so before the model is asked.
    assert failure.file == "gold.xyz" and "Au" in failure.error
    assert all(len(e.noises) == 3 for e in found.examined)


def test_what_was_not_reached_is_not_zero(tmp_path):
    """Stopped in the middle: done parts are there, the others say that they were not done."""
    structures = [molecule()]
    choice = ModelChoice(services.default_model_id(), "float64")
    spec = Spec("report", choice, stored.inputs_sha256(structures), 1, QUICK, seed=4)
    model = Turning(services.card(choice.id), "cpu", "float64")
    looks = iter(range(10_000))
    outcome = execute(spec, structures, lambda _: model, tmp_path / "1", should_stop=lambda: next(looks) > 150)
    assert outcome.state == "cancelled"
    found = report.read(tmp_path / "1", spec, structures)
    assert not found.complete
    [one] = found.examined
    assert one.asymmetry and not one.drifts
    line = next(w for w in report_words.said_of(one, found)[0] if w.part == "dynamics")
    assert line.status == "unknown" and line.text == report_verdict.NOT_DONE
    assert "stopped before its end" in report_files.html(found)
    # It goes on, and ends as if nothing had happened.
    again = execute(spec, structures, lambda _: model, tmp_path / "2", previous=[tmp_path / "1"])
    assert again.state == "done"
    whole = report.read(tmp_path / "2", spec, structures)
    untouched = examine(tmp_path / "other")
    assert _unclocked(whole) == _unclocked(untouched)


def _unclocked(found: report.Report) -> dict:
    document = report_files.document(found)
    for row in document["results"]:
        row.pop("seconds")
    return document


# ---- the parts of it -----------------------------------------------------------------------------------------------


def test_molecules_are_found_across_faces_and_networks_are_none():
    [ice] = services.read_paths([str(data.path("examples", "ice_XI.cif"))]).structures
    found = find_molecule(ice)
    assert found is not None and sorted(ice.numbers[list(found.members)]) == [1, 1, 8]
    lengths = np.linalg.norm(found.arms[:, None] - found.arms[None], axis=-1)
    assert lengths.max() < 1.8 and np.allclose(found.arms.mean(0), 0)
    [metal] = services.read_paths([str(data.path("examples", "Mg17Al12.cif"))]).structures
    assert find_molecule(metal) is None


def test_neighbours_come_and_go():
    s = Structure(
        np.array([11, 11, 11]), np.array([[0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]]), np.zeros((3, 3)), (False,) * 3
    )
    assert len(neighbour_set(s, 2.5, None)) == 2
    assert len(neighbour_set(s, 5.0, None)) == 6
    # Of each the nearest one only.
    assert len(neighbour_set(s, 5.0, 1)) == 3
    cell = replace(s, cell=4 * np.eye(3), pbc=(True,) * 3)
    moved = replace(cell, positions=cell.positions + np.array([0.01, 0, 0]))
    assert (neighbour_set(cell, 5.0, None) == neighbour_set(moved, 5.0, None)).all()


@pytest.mark.parametrize("kind", ["rotation", "permutation", "translation"])
def test_forces_of_a_copy_come_back(kind):
    """Forces that belong to the atoms: the distance from the mean position."""
    s = molecule()
    copy = copy_of(s, kind, 0, [3])
    forces = copy.structure.positions - copy.structure.positions.mean(0)
    assert np.allclose(copy.back(forces), s.positions - s.positions.mean(0), atol=1e-12)
    assert (copy.structure.numbers[copy.order] == s.numbers).all()


def test_a_turned_crystal_is_the_same_crystal():
    [salt] = services.read_paths([str(data.path("examples", "NaCl.cif"))]).structures
    copy = copy_of(salt, "rotation", 1, [0])
    before, after = (neighbour_set(s, 4.1, None) for s in (salt, copy.structure))
    assert len(before) == len(after) > 0
    assert copy.structure.cell @ copy.structure.cell.T == pytest.approx(salt.cell @ salt.cell.T)


@pytest.mark.parametrize(
    "wrong",
    [
        {"parts": ["dance"]},
        {"exact_atoms": -1},
        {"precision": 0},
        {"loops": 0},
        {"loop_radius_A": 3.0},
        {"line_points": 2},
        {"picoseconds": -1.0},
        {"timestep_fs": 100.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        Examination(**wrong)


# ---- words and files -----------------------------------------------------------------------------------------------


def test_words_follow_the_figures(tmp_path):
    found = examine(tmp_path)
    [one] = found.examined
    said, uses = report_words.said_of(one, found)
    by = {w.name: w for w in said}
    assert by["Jacobian asymmetry"].status == "fail" and "0.12" in by["Jacobian asymmetry"].figure
    assert "ORB-v2 0.015" in by["Jacobian asymmetry"].published
    assert by["Asymmetry of F_c (control)"].status == "pass"
    assert by["Work of F_c (control)"].status == "pass"
    assert by["Confidence head"].status == "unknown" and "no confidence head" in by["Confidence head"].text
    answers = {u.name: u.answer for u in uses}
    assert answers["Phonons and Hessians of F_nc"] == "no"
    sentence = report_verdict.sentence(uses)
    assert "not for" in sentence and "phonons and Hessians of F_nc" in sentence


def test_a_limit_has_three_sides():
    limit = report_verdict.Limit(1.0, 2.0)
    assert [limit.status(v) for v in (0.5, 1.0, 1.5, 2.0, 2.5)] == ["pass", "pass", "look", "look", "fail"]


def test_files_read_back(tmp_path):
    import pandas as pd

    found = examine(tmp_path)
    archive = zipfile.ZipFile(io.BytesIO(report_files.archive(found, (), {"seed": 4})))
    names = archive.namelist()
    assert {"report.html", "report.json", "lines.csv", "1-row/loops.csv", "1-row/pairs.svg", "1-row/drift.png"} <= set(
        names
    )
    loops = pd.read_csv(archive.open("1-row/loops.csv"))
    assert loops["work_direct_meV"].tolist() == pytest.approx(
        [1000 * k.direct.value for k in found.examined[0].loops], rel=1e-9
    )
    pairs = pd.read_csv(archive.open("1-row/pairs.csv"))
    weights = np.where(pairs["first_atom"] == pairs["second_atom"], 1, 2)
    total = math.sqrt((weights * pairs["antisymmetric_norm_eV_per_A2"] ** 2).sum())
    assert total == pytest.approx(found.examined[0].asymmetry["direct"].antisymmetric_norm)
    page = archive.read("report.html").decode()
    assert "http" not in page.replace("http://www.w3.org", "") and "@media print" in page
    assert page.count("<svg") == 6 and "Jacobian asymmetry" in page
    assert archive.read("1-row/loops.png")[:8] == b"\x89PNG\r\n\x1a\n"


def read_pdf(content: bytes) -> tuple[int, int, str]:
    """Pages, pictures that are drawn, and the text of a PDF in the order it is written, its lines joined."""
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    pages, drawn, said = len(re.findall(rb"/Type /Page\b", content)), 0, []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.S):
        # Of a picture it is none of the two.
        with contextlib.suppress(zlib.error):
            shown = zlib.decompress(stream)
            drawn += len(re.findall(rb"/I\d+ Do\b", shown))
            pieces = re.findall(rb"\(((?:\\.|[^\\)])*)\) Tj", shown, re.S)
            said += [re.sub(rb"\\(.)", rb"\1", piece).decode("latin-1") for piece in pieces]
    return pages, drawn, " ".join(" ".join(said).split())


def test_the_pdf_says_what_the_page_says(tmp_path):
    found = examine(tmp_path)
    [one] = found.examined
    named = replace(one, structure=replace(one.structure, file="/home/me/Å Δ λ ± x₂ 水.xyz"))
    found = replace(found, examined=(named,))
    lost = Failure("lost.xyz", "It cannot be read.", "Look at line 3.")
    pages, pictures, text = read_pdf(report_pdf.pdf(found, (lost,), {"seed": 4, "spec": {"a": 1}}))
    assert 1 <= pages <= 3 and pictures == len(report_plots.charts(one)) == 6
    assert "Is fd-orb-small-v1 conservative here?" in text
    assert "Å Delta lambda ± x2 ?.xyz, frame 0" in text and "/home/me" not in text
    said, uses = report_words.said_of(one, found)
    assert report_pdf.latin(report_verdict.sentence(uses)) in text
    for line in said:
        for part in (line.name, line.figure, line.text, line.published):
            assert " ".join(report_pdf.latin(part).split()) in text, part
    for use in uses:
        assert use.name in text and report_pdf.latin(use.why) in text
    assert "lost.xyz" in text and "It cannot be read. Look at line 3." in text
    assert "seed: 4" in text and "lambda = |(J - J^T)/2|" in text
    in_zip = zipfile.ZipFile(io.BytesIO(report_files.archive(found))).read("report.pdf")
    assert read_pdf(in_zip)[:2] == (pages, pictures)


def test_a_pdf_of_missing_parts_says_why(tmp_path):
    found = examine(tmp_path, Broken)
    [one] = found.examined
    assert one.missing
    pages, pictures, text = read_pdf(report_pdf.pdf(replace(found, complete=False)))
    assert pages >= 1 and pictures == len(report_plots.charts(one)) < 6
    assert "The differences went wrong. Try another model." in text and "missing" in text
    assert "stopped before its end" in text


def test_a_page_leaves_room_to_draw_in(tmp_path):
    """Streamlit fits title, legend and axes into the height of a chart: about 120 pixels that are not drawn in."""
    [one] = examine(tmp_path / "1").examined
    drawn = report_plots.charts(one)
    assert {"pairs", "loops", "jumps", "copies", "drift"} <= set(drawn)
    for name in ("pairs", "loops", "jumps", "drift"):
        assert drawn[name].height - 120 >= 180, name
    assert (drawn["copies"].height - 120) / 3 >= 40, "a row for each kind of copies"


def test_pages_share_their_skeleton():
    assert html_page.CSS in html_page.page("x", "y") and "<title>a &lt; b</title>" in html_page.page("a < b", "")
    assert drift_report.page is html_page.page


def test_the_command_line_repeats_what_was_asked():
    spec = reports.spec_of(
        [molecule()], ModelChoice(services.default_model_id(), "float64"), {"loops": 3, "parts": ["loops"]}
    )
    words = reports.command_line(["a b.cif"], spec)
    assert words == "fdcore report 'a b.cif' --model fd-orb-small-v1 --parts forces,loops --loops 3"
    single = reports.spec_of([molecule()], ModelChoice(services.default_model_id(), "float32"), {})
    assert reports.command_line(["x.cif"], single).endswith("--dtype float32")
    assert reports.estimate(spec, [molecule()]).seconds > 0


# ---- the embedded model, and the command line ----------------------------------------------------------------------


def test_cli_prints_one_document(tmp_path, capfd):
    from fdcore.cli import main

    good = str(data.path("examples", "NaCl.cif"))
    bad = tmp_path / "bad.cif"
    bad.write_text("this is no structure")
    arguments = [
        "report",
        good,
        str(bad),
        "--json",
        "-",
        "--html",
        str(tmp_path / "x.html"),
        "--pdf",
        str(tmp_path / "x.pdf"),
        "--parts",
        "asymmetry,loops",
        "--loops",
        "2",
    ]
    code = main(arguments)
    document = json.loads(capfd.readouterr().out)
    assert code == 1, "one file could not be read, the other is there"
    [error] = document["errors"]
    assert "bad.cif" in error["file"]
    [row] = document["results"]
    assert row["n_atoms"] == 8 and row["jacobian_by"] == "derivatives"
    assert row["jacobian_asymmetry"]["conservative"]["lambda"] < 1e-12
    assert 0.01 < row["jacobian_asymmetry"]["direct"]["lambda"] < 0.2
    assert all(abs(k["work_conservative_meV"]) < 1e-3 for k in row["loops"]) and len(row["loops"]) == 2
    assert row["drift"] is None and row["largest_jump_meV"] is None
    assert document["dtype"] == "float64" and document["provenance"]["seed"] == 0
    assert "Jacobian asymmetry" in (tmp_path / "x.html").read_text()
    _, drawn, text = read_pdf((tmp_path / "x.pdf").read_bytes())
    assert drawn == 3 and "Jacobian asymmetry" in text and "bad.cif Not examined" in text


def test_cli_refuses_what_cannot_be(capfd):
    from fdcore.cli import main

    assert main(["report", str(data.path("examples", "NaCl.cif")), "--parts", "dance"]) == 2
    assert "parts are" in capfd.readouterr().err
    assert main(["report", str(data.path("examples", "NaCl.cif")), "--pdf", "-"]) == 2
    assert "--pdf needs a path" in capfd.readouterr().err
