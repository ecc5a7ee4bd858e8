"""What an attack gives to take away."""

from __future__ import annotations

from functools import partial
from pathlib import PurePath

import streamlit as st

from fdcore import adversarial_files, validation
from fdcore.adversarial import Adversarial
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from pages.parts import attack_truth
from pages.parts.attack_settings import FOR_AND_NOT_FOR
from pages.parts.run_parts import Download, dft_inputs, dft_set, download_buttons, repeat


def show(run: runs.Run, found: Adversarial) -> None:
    st.caption(FOR_AND_NOT_FOR)
    with st.container(horizontal=True, key="attack-downloads", vertical_alignment="bottom"):
        download_buttons(_files(run, found, dft_set("attack-dft-set")), "attack")
        if found.selected.rows and any(s.periodic for s in found.structures):
            dft_inputs("attack-dft-set")
    names = list(dict.fromkeys(s.file for s in found.structures))[:8]
    repeat(attacks.command_line(names, run.spec))
    with st.container(horizontal=True):
        st.page_link("pages/score.py", label="Score this structure", icon=":material/speed:")
        st.page_link("pages/dynamics.py", label="Dynamics", icon=":material/animation:")
        st.page_link("pages/runs.py", label="All runs", icon=":material/history:")


def _files(run: runs.Run, found: Adversarial, inputs: str) -> list[Download]:
    compared, reference = attack_truth.compared(run, found)
    known = validation.by_content(compared)
    provenance = runs.provenance_of(run)
    name = f"{PurePath(run.title).stem or 'attack'}-adversarial"
    document = Download(
        "JSON",
        partial(adversarial_files.document_json, found, runs.refusals(run), provenance, compared, reference),
        f"{name}.json",
        "Every start, the dataset, its origins, and how it was made.",
    )
    if not found.selected.rows:
        return [document]
    files = [
        Download(
            "extXYZ",
            partial(adversarial_files.dataset_extxyz, found, known),
            f"{name}.extxyz",
            "The dataset with U_Delta, u_i, both forces, origin, step, seed and model.",
        ),
        Download(
            "ASE database",
            partial(adversarial_files.dataset_db, found, known),
            f"{name}.db",
            "As orb-models and fairchem-core read it.",
        ),
        Download("CIF", partial(adversarial_files.dataset_cif, found), f"{name}.cif", "One block per structure."),
        Download("CSV", partial(adversarial_files.dataset_csv, found, known), f"{name}.csv", "One row per structure."),
        Download(
            "All as zip",
            partial(adversarial_files.dataset_zip, found, provenance, compared, reference, inputs),
            f"{name}.zip",
            "All of these, the origins, VASP inputs per structure, provenance and a README.",
        ),
        document,
    ]
    return files if any(s.periodic for s in found.structures) else [f for f in files if f.label != "CIF"]
