"""The Fine-tune page as a person with a browser meets it: labelled files in, a model with a name out."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from tests.browser.conftest import settled, violations

pytestmark = pytest.mark.browser


def labelled(path) -> None:
    """Six displaced frames of rock salt with made-up labels."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(6):
        atoms = bulk("NaCl" if k % 2 else "MgO", "rocksalt", a=5.64 if k % 2 else 4.21, cubic=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        pull = rng.normal(0, 0.3, atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, forces=pull - pull.mean(axis=0), energy=-25.0 - k)
        frames.append(atoms)
    ase.io.write(path, frames)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_model_is_made_from_a_file_and_is_in_the_picker_of_the_score_page(server, open_page, tmp_path, scheme):
    page = open_page(f"{server.url}/finetune", scheme=scheme)
    page.get_by_text("Close the loop").wait_for()
    settled(page)
    assert not violations(page)
    labelled(tmp_path / "salt.extxyz")
    page.locator("input[type=file]").last.set_input_files(tmp_path / "salt.extxyz")
    page.get_by_role("button", name="Fine-tune on 6").click()
    page.get_by_text("More settings").last.click()
    epochs = page.get_by_role("spinbutton", name="Epochs at most")
    epochs.fill("2")
    epochs.press("Tab")
    settled(page)
    assert not violations(page)
    page.get_by_role("button", name="Fine-tune on 6 structures").click()
    page.get_by_text("You find it by this name on all pages").wait_for()
    settled(page)
    assert not violations(page)
    # A reload finds the run by its address.
    page.reload()
    page.get_by_text("You find it by this name on all pages").wait_for()
    name = page.locator(".st-key-tune-model strong").first.inner_text()
    assert name.startswith("ft-fd-orb-small-v1-")
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.get_by_role("button", name="Use it on all pages").click()
    settled(page)
    page.get_by_role("link", name="Score").first.click()
    page.get_by_text("Can this model be trusted").wait_for()
    page.wait_for_function(
        "name => [...document.querySelectorAll('[data-testid=stSelectbox] input')].some(i => i.value.startsWith(name))",
        arg=name,
    )


@pytest.mark.timeout(400)
def test_from_an_attack_to_a_model(server, open_page):
    """Ten structures made on the Adversarial page, labelled by CHGNet, learnt from; what is held out are whole climbs."""
    page = open_page(f"{server.url}/adversarial?example=NaCl")
    page.locator(".st-key-attack-start button").click()
    page.locator(".st-key-attack-downloads").wait_for()
    settled(page)
    page.get_by_test_id("stTopNavSection").filter(has_text="Model").click()
    page.get_by_test_id("stTopNavDropdownLink").filter(has_text="Fine-tune").click()
    page.get_by_text("From an attack").wait_for()
    page.get_by_role("button", name="Use its structures").click()
    page.get_by_role("button", name="Label them").click()
    page.get_by_text("Let a reference label them").wait_for()
    settled(page)
    assert not violations(page)
    # Left and found again before anything runs: the address names the attack.
    page.reload()
    page.get_by_text("Let a reference label them").wait_for()
    page.get_by_role("button", name="Label 10 structures with CHGNet").click()
    page.get_by_role("button", name="Fine-tune on 10 labelled structures").click()
    page.get_by_text("More settings").last.click()
    epochs = page.get_by_role("spinbutton", name="Epochs at most")
    epochs.fill("2")
    epochs.press("Tab")
    settled(page)
    page.get_by_text("those of one climb are alike and are held out together").wait_for()
    page.get_by_role("button", name="Fine-tune on 10 structures").click()
    page.get_by_text("You find it by this name on all pages").wait_for()
    settled(page)
    assert not violations(page)
    made = page.locator(".st-key-tune-model strong").first.inner_text()
    assert made.startswith("ft-fd-orb-small-v1-")
