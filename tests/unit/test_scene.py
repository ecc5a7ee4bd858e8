"""What the 3D view and the small pictures of tables are given."""

from __future__ import annotations

import base64
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore.records import Structure
from fdcore.scene import SCALE, colour, trajectory_scene
from fdcore.thumbnail import MOST_ATOMS, svg, thumbnails

SVG = "{http://www.w3.org/2000/svg}"


def salt() -> Structure:
    return Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.6, cubic=True), file="<script>alert(1)</script>.cif")


# ---- trajectories --------------------------------------------------------------------------------------------------


def test_frames_of_a_strained_climb_have_their_own_cells():
    s = salt()
    # An atom outside of the cell is drawn inside, also where the cell has changed meanwhile.
    s = replace(s, positions=s.positions + np.eye(8, 3) * 5.6)
    deformations = [np.eye(3), np.diag([1.02, 1.0, 0.97]), np.eye(3) + 0.03 * np.eye(3, k=1)]
    cells = [s.cell @ d for d in deformations]
    positions = [s.positions @ d for d in deformations]
    u = [np.full(8, 0.1 * (k + 1)) for k in range(3)]
    drawn = trajectory_scene(s, "climb", positions, u, ["a", "b", "c"], cells=cells)
    np.testing.assert_allclose(drawn["frames"]["cell"], cells, atol=1e-3)
    for frame, cell in zip(drawn["frames"]["positions"], cells, strict=True):
        fractions = np.linalg.solve(cell.T, np.reshape(frame, (8, 3)).T).T
        assert fractions.min() > -1e-3 and fractions.max() < 1 + 1e-3
        # A strain changes no fraction.
        first = np.linalg.solve(cells[0].T, np.reshape(drawn["frames"]["positions"][0], (8, 3)).T).T
        np.testing.assert_allclose(fractions, first, atol=1e-3)
    np.testing.assert_allclose(drawn["cell"], cells[0])
    assert drawn["values"]["force_delta"]["top"] == pytest.approx(0.3)


def test_a_cell_that_stays_is_sent_once():
    s = salt()
    twice = [s.positions, s.positions + 0.1]
    u = [np.zeros(8)] * 2
    for cells in (None, [s.cell, s.cell]):
        assert "cell" not in trajectory_scene(s, "x", twice, u, ["a", "b"], cells=cells)["frames"]
    water = Structure.from_atoms(molecule("H2O"))
    drawn = trajectory_scene(water, "w", [water.positions] * 2, [np.zeros(3)] * 2, ["a", "b"])
    np.testing.assert_allclose(drawn["frames"]["positions"][1], water.positions.ravel(), atol=1e-3)
    assert drawn["cell"] is None


# ---- small pictures ------------------------------------------------------------------------------------------------


def parts(picture: str) -> tuple[list[ElementTree.Element], list[ElementTree.Element]]:
    root = ElementTree.fromstring(picture)
    return list(root.iter(f"{SVG}circle")), list(root.iter(f"{SVG}line"))


def test_colours_are_those_of_the_scale():
    assert [colour(0.0), colour(1.0), colour(1 / 9)] == [SCALE[0], SCALE[-1], SCALE[1]]


def test_picture_has_every_atom_in_the_colour_of_its_value():
    values = np.linspace(0.0, 0.7, 8)
    circles, lines = parts(svg(salt(), values, 0.7))
    assert len(circles) == 8 and len(lines) == 12
    assert sorted(c.get("fill") for c in circles) == sorted(colour(v / 0.7) for v in values)
    for c in circles:
        x, y, r = (float(c.get(n)) for n in ("cx", "cy", "r"))
        assert x - r >= -0.2 and x + r <= 100.2 and y - r >= -0.2 and y + r <= 100.2
    radii = {round(float(c.get("r")), 1) for c in circles}
    assert len(radii) == 2
    # Beyond the top is the end of the scale.
    circles, _ = parts(svg(salt(), np.full(8, 9.0), 0.7))
    assert {c.get("fill") for c in circles} == {SCALE[-1]}


def test_picture_of_a_molecule_has_no_box_and_of_one_atom_fills_it():
    circles, lines = parts(svg(Structure.from_atoms(molecule("H2O")), np.zeros(3), 1.0))
    assert len(circles) == 3 and not lines
    [alone], _ = parts(svg(Structure([1], [[0, 0, 0]], np.zeros((3, 3)), (False,) * 3), [0.1], 1.0))
    assert (float(alone.get("cx")), float(alone.get("r"))) == (50.0, 50.0)


def test_picture_is_light_and_holds_no_text_of_a_user():
    many = Structure.from_atoms(bulk("Cu", cubic=True) * (8, 8, 8), file="x")
    picture = svg(many, np.zeros(many.n_atoms), 1.0)
    assert len(parts(picture)[0]) == MOST_ATOMS and len(picture) < 25_000
    assert "script" not in svg(salt(), np.zeros(8), 1.0)


def test_pictures_of_a_table_share_a_scale():
    s = salt()
    low, high = (
        base64.b64decode(p.split(",")[1]).decode() for p in thumbnails([(s, np.full(8, 0.1)), (s, np.full(8, 1.0))])
    )
    assert {c.get("fill") for c in parts(high)[0]} == {SCALE[-1]}
    assert {c.get("fill") for c in parts(low)[0]} == {colour(0.1)}
    [calm] = thumbnails([(s, np.full(8, 0.1))], at_least=1.0)
    assert base64.b64decode(calm.split(",")[1]).decode() == low
    assert thumbnails([]) == []
