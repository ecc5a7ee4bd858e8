"""A page with the 3D view and nothing else: ?repeat=11 shows 8 * 11^3 atoms. Run by the browser tests."""

import numpy as np
import streamlit as st
from ase.build import bulk

from fdcore.records import Evaluation, Score, Structure, Verdict
from pages.parts import session
from pages.parts.viewer import viewer

repeat = int(st.query_params.get("repeat", "1"))
atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, repeat, repeat)
noise = np.random.default_rng(0)
conservative = noise.normal(size=(len(atoms), 3))
direct = conservative + 0.1 * noise.normal(size=(len(atoms), 3))
viewer(Score(Structure.from_atoms(atoms), "none", Evaluation(0.0, direct, conservative), Verdict("unknown", "", ())))
st.text(f"selected {session.selected_atom()}")
