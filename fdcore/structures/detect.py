"""Which format a file is in: by its content first, by its name second. And what is not read here, in so many words."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal, NoReturn

from fdcore.errors import FormatError
from fdcore.structures.text import number, quote

Format = Literal["cif", "poscar", "xyz", "vasprun", "outcar", "json", "jsonl"]

SAVE_AS = "Save it as CIF or extxyz"
CONVERT = SAVE_AS + ", e.g. with `ase convert {name} structure.extxyz`."
FROM_PROGRAM = SAVE_AS + " from the program that wrote it."
CHOICES = "CIF, POSCAR/CONTCAR, xyz, extxyz, JSON and JSONL (pymatgen, OPTIMADE, ASE), vasprun.xml, OUTCAR and ASE databases (.db) are read here."

_NAMES: dict[str, Format] = {
    "cif": "cif",
    "mcif": "cif",
    "poscar": "poscar",
    "contcar": "poscar",
    "vasp": "poscar",
    "xyz": "xyz",
    "extxyz": "xyz",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}

# First bytes -> (what it is, what to do).
_UNPACK = "Unpack it and bring the structure files inside."
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"(\xb5/\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89PNG", "a picture (PNG)", f"A picture holds no coordinates. {SAVE_AS} from the program that drew it."),
    (b"\xff\xd8\xff", "a picture (JPEG)", f"A picture holds no coordinates. {SAVE_AS} from the program that drew it."),
    (b"GIF8", "a picture (GIF)", f"A picture holds no coordinates. {SAVE_AS} from the program that drew it."),
    (b"%PDF", "a PDF document", "Look for the CIF in the supporting information and bring that."),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Copy the coordinates into a plain-text file."),
    (b"- of Ulm", "an ASE trajectory or database (.traj)", CONVERT),
    (b"\x89HDF", "an HDF5 file", FROM_PROGRAM),
    (b"CDF\x01", "a NetCDF trajectory", CONVERT),
    (b"CDF\x02", "a NetCDF trajectory", CONVERT),
    (b"\x93NUMPY", "a NumPy array", "Write the atoms with `ase.io.write('structure.extxyz', atoms)`."),
    (b"\x80\x04", "a Python pickle", "Pickles can run code and are never opened. Write the atoms with `ase.io.write`."),
    (b"\x80\x05", "a Python pickle", "Pickles can run code and are never opened. Write the atoms with `ase.io.write`."),
    (b"\x7fELF", "a program", CHOICES),
)
_ZIP_PARTS = ((b"word/", "a Word document"), (b"xl/", "an Excel sheet"), (b"ppt/", "a PowerPoint file"))

# A pattern in the head of the text -> a program's output that is read here.
_OUTPUTS: tuple[tuple[re.Pattern[str], Format], ...] = (
    (re.compile(r"\A\s*<[\s\S]{0,5000}<modeling\b|\A\s*<modeling\b"), "vasprun"),
    (
        re.compile(r"\A\s*vasp\.\d|^ running on +\d+ +(total cores|nodes)|^ executed on .*\bdate \d", re.MULTILINE),
        "outcar",
    ),
)
# A pattern in the head of the text -> what it is.
_TEXTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), what, hint)
    for pattern, what, hint in (
        (r"\A\s*(<!doctype html|<html|<head|<body)", "a web page", "Use the page's download button instead of saving the page."),
        (r"\A\s*<", "an XML file", CONVERT),
        (r"\A(.*\n){4,12}\s*Direct configuration=", "an XDATCAR trajectory", CONVERT),
        (r"^@<TRIPOS>", "a mol2 file", FROM_PROGRAM),
        (r"\A(.*\n){3}.*V[23]000", "a mol or sdf file", CONVERT),
        (r"^(ATOM  |HETATM)[ \d]{5} .{11}", "a PDB file", CONVERT),
        (r"\A(HEADER|CRYST1|COMPND|REMARK) ", "a PDB file", CONVERT),
        (r"\A\s*ITEM: ", "a LAMMPS dump", CONVERT),
        (r"\A.*lammps|^[ \t]*\d+[ \t]+atom types[ \t]*$", "a LAMMPS data file", CONVERT.replace("convert", "convert -i lammps-data")),
        (r"^[ \t]*&(control|system)\b", "a Quantum ESPRESSO input", CONVERT),
        (r"^[ \t]*lattice_vector\s", "an FHI-aims geometry", CONVERT),
        (r"^[ \t]*%block\s+(lattice|positions)", "a CASTEP cell file", CONVERT),
        (r"^[ \t]*(primvec|convvec)\b", "an XSF file", CONVERT),
        (r"\A\s*\$coord", "a Turbomole coord file", CONVERT.replace("convert", "convert -i turbomole")),
        (r"\ATITL .*\n(.*\n){0,3}CELL ", "a SHELX file", CONVERT),
        (r"\A\s*(%\w+=.*\n)*\s*#[pnt]? ?\w+/", "a Gaussian input", CONVERT),
        (r"\A.*\n *\d+ *\n +\d+[A-Z]\w* +[A-Z]\w* +\d+ +-?\d+\.\d{3} ", "a GROMACS gro file", CONVERT),
        (r"\A(import |from [\w.]+ import |#!)", "a program", CHOICES),
    )
)  # fmt: skip


def refuse_binary(data: bytes, name: str) -> None:
    """Raise FormatError for an empty file and for the known binary formats, by their first bytes."""
    if not data.strip(b"\x00 \t\r\n\xef\xbb\xbf"):
        raise FormatError("The file is empty.", "Save the structure again, and check that the upload was complete.")
    if data.startswith(b"PK\x03\x04"):
        what = next((w for part, w in _ZIP_PARTS if part in data[:20_000]), "a zip archive")
        hint = _UNPACK if what == "a zip archive" else "Copy the coordinates into a plain-text file."
        raise FormatError(f"This is {what}, which is not read here.", hint)
    for magic, what, hint in _MAGIC:
        if data.startswith(magic):
            _refuse(what, hint, name)


def detect(text: str, name: str) -> Format:
    """The format of a text. Raises FormatError, with the next step, for everything that is not read here."""
    # One slice bounds every search below, whatever the file's size and the length of its lines.
    head = text[:100_000]
    if re.search(r"^[ \t]*_(atom_site[_.]|cell[_.]length_a\b)", head, re.IGNORECASE | re.MULTILINE):
        return "cif"
    lines = [line[:500] for line in islice(head.split("\n"), 12)]
    if _looks_like_poscar(lines) and not re.match(
        r"\s*Direct configuration=", lines[7] if len(lines) > 7 else "", re.I
    ):
        return "poscar"
    if _looks_like_xyz(lines):
        return "xyz"
    short = "\n".join(line[:500] for line in islice(head.split("\n"), 400))
    for pattern, form in _OUTPUTS:
        if pattern.search(short):
            return form
    if re.match(r"\s*[\[{]", text):
        return "jsonl" if _lines_of_json(text, name) else "json"
    for pattern, what, hint in _TEXTS:
        if pattern.search(short):
            _refuse(what, hint, name)
    if re.search(r"^[ \t]*data_", short, re.IGNORECASE | re.MULTILINE):
        return "cif"
    by_name = format_of_name(name)
    if by_name is not None:
        return by_name
    if _bare_atom_lines(lines):
        raise FormatError(
            "These are atom lines without a head.",
            "Put the number of atoms on the first line and a comment (it may be empty) on the second: that is the xyz format.",
        )
    raise FormatError(f"The format was not recognised; the text starts with {quote(text)}.", CHOICES)


def format_of_name(name: str) -> Format | None:
    """The format a file name speaks of: x.cif, POSCAR_mp-1234, CONTCAR, relaxed.vasp, run.extxyz."""
    base = PurePosixPath(name.replace("\\", "/")).name.lower()
    extension = base.rsplit(".", 1)[-1]
    if extension in _NAMES:
        return _NAMES[extension]
    if re.match(r"(poscar|contcar)\b|(poscar|contcar)[_\-.]", base):
        return "poscar"
    if re.match(r"outcar\b|outcar[_\-.]", base):
        return "outcar"
    if re.match(r"vasprun.*\.xml$", base):
        return "vasprun"
    return None


def _refuse(what: str, hint: str, name: str) -> NoReturn:
    shown = PurePosixPath(name.replace("\\", "/")).name
    # A command that a user may copy carries only a tame name.
    shown = shown if re.fullmatch(r"[\w.\-]{1,60}", shown, re.ASCII) else "FILE"
    raise FormatError(f"This is {what}, which is not read here.", hint.replace("{name}", shown))


def _floats(line: str) -> list[float]:
    """The numbers a line starts with."""
    out: list[float] = []
    for token in line.split()[:8]:
        try:
            out.append(number(token))
        except ValueError:
            break
    return out


def _looks_like_poscar(lines: list[str]) -> bool:
    if len(lines) < 6 or len(_floats(lines[1])) not in (1, 3):
        return False
    vectors = [_floats(line) for line in lines[2:5]]
    if not all(len(v) >= 3 for v in vectors):
        return False
    # An xyz whose atoms are atomic numbers has four numbers a line from the third line on.
    return not (re.fullmatch(r"\s*\d+\s*", lines[0]) and all(len(v) >= 4 for v in vectors))


def _looks_like_xyz(lines: list[str]) -> bool:
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None or not re.fullmatch(r"\s*[+-]?\d+\s*", lines[first]):
        return False
    rest = [line for line in lines[first + 2 :] if line.strip()]
    return not rest or len(rest[0].split()) >= 4


def _lines_of_json(text: str, name: str) -> bool:
    """Whether each line is an object of its own: by the name, since the first line may be broken; else by that line's end."""
    if format_of_name(name) == "jsonl":
        return True
    first, _, rest = text.lstrip().partition("\n")
    return first.rstrip().endswith("}") and re.match(r"\s*\{", rest) is not None


def _bare_atom_lines(lines: list[str]) -> bool:
    rows = [line.split() for line in lines if line.strip()]
    return bool(rows) and all(len(r) >= 4 and len(_floats(" ".join(r[1:4]))) == 3 for r in rows)
