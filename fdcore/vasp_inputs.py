"""The input of a static calculation with VASP, by pymatgen's sets. The potentials are licensed: named, never in here."""

from __future__ import annotations

import json

from fdcore.errors import UsageError
from fdcore.records import Structure

# Sets of pymatgen for a static calculation, by the reference method that they belong to.
DFT_SETS = {
    "MPStaticSet": "PBE and PBE+U as the Materials Project used it (MPtrj, Alexandria-like data)",
    "MatPESStaticSet": "PBE of the MatPES data",
    "MPScanStaticSet": "r2SCAN of the Materials Project",
}
DEFAULT_SET = "MPStaticSet"


def vasp_folder(structure: Structure, dft_set: str = DEFAULT_SET) -> dict[str, str]:
    """The input of a static calculation: file names and their text. The potentials are named in POTCAR.spec, as pymatgen writes it.
    UsageError for a set that is not one of DFT_SETS, and for a molecule."""
    if dft_set not in DFT_SETS:
        raise UsageError(f"There is no DFT input set {dft_set!r}.", f"Known are {', '.join(DFT_SETS)}.")
    if not structure.periodic:
        raise UsageError(f"{structure.formula} is a molecule: VASP needs a cell.", "Use the extended xyz.")
    # Heavy, and only wanted by whoever exports.
    import pymatgen.io.vasp.sets as sets
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as PymatgenStructure

    wanted = PymatgenStructure(
        Lattice(structure.cell),
        list(structure.symbols),
        structure.positions,
        coords_are_cartesian=True,
        site_properties={"atom": list(range(structure.n_atoms))},
    )
    made = getattr(sets, dft_set)(wanted.get_sorted_structure())
    order = [int(site.properties["atom"]) for site in made.structure]
    kpoints = made.kpoints
    files = {
        "POSCAR": made.poscar.get_str(significant_figures=16),
        "INCAR": made.incar.get_str(pretty=True),
        "POTCAR.spec": "\n".join([f"# {made.user_potcar_functional}", *made.potcar_symbols]) + "\n",
        "order.json": json.dumps(order) + "\n",
    }
    if kpoints is not None:
        # Otherwise INCAR says KSPACING.
        files["KPOINTS"] = str(kpoints)
    return files
