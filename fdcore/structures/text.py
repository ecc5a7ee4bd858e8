"""Bytes to text, and text that is safe to show."""

from __future__ import annotations

import codecs
import math
import re
import unicodedata

from ase.data import atomic_numbers

from fdcore.errors import FormatError

MAX_NAME = 100
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x19\x1b-\x1f\x7f-\x9f\ufffd]")
_FORTRAN_EXPONENT = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)")
HEAVY_HYDROGEN = {"D": 1, "T": 1}


def clean(text: str, length: int, tail: int = 0) -> str:
    """One line without control, bidirectional or unassigned characters; beyond `length` only its end of `tail` is kept."""
    # Only a little more than is shown is looked at: names and snippets can be megabytes long.
    text = text if len(text) <= 8 * length else text[: 4 * length] + text[-4 * length :]
    text = "".join(" " if c in "\t\r\n" else c for c in text if c in "\t\r\n" or unicodedata.category(c)[0] != "C")
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    return f"{text[: length - tail - 1]}…{text[len(text) - tail :]}"


def clean_name(name: str) -> str:
    """The display name of a source; never empty, at most MAX_NAME characters, plain text."""
    return clean(name, MAX_NAME, tail=MAX_NAME // 2) or "unnamed"


def quote(text: str, length: int = 40) -> str:
    """A snippet of the file for an error message."""
    return f"“{clean(text, length)}”"


def plural(n: int, word: str) -> str:
    """1 atom, 2 atoms, 20,000 atoms."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def decode(data: bytes) -> str:
    """Text of a file with Unix line ends: UTF-8, any Unicode with a byte order mark, else Latin-1.

    Raises FormatError where the bytes are not text.
    """
    text = _decoded(data)
    if "\x00" in text or _share_of_control_characters(text) > 0.02:
        raise FormatError("This is not a text file.", "Save the structure as CIF, POSCAR or extxyz.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return data[len(bom) :].decode(encoding)
            except UnicodeDecodeError as error:
                raise FormatError(
                    f"The file starts like {encoding.upper()} text but is damaged.", "Save it again as UTF-8 text."
                ) from error
    # UTF-16 without its mark: in a text of Latin letters every second byte is zero.
    head = data[:4000]
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if len(head) >= 4 and zeros.count(0) > 0.9 * len(zeros):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                break
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _share_of_control_characters(text: str) -> float:
    head = text[:20_000]
    return len(_CONTROL.findall(head)) / max(1, len(head))


def number(token: str) -> float:
    """A float as Python, Fortran (1.0D-3) or a crystallographer (0.123(4)) writes it; NaN and inf pass, ValueError otherwise."""
    try:
        # Python's float also takes 1_000, which no file means as a number.
        if "_" in token:
            raise ValueError(token)
        return float(token)
    except ValueError:
        bare = token.split("(", 1)[0] if token.endswith(")") else token
        return float(_FORTRAN_EXPONENT.sub("e", bare).replace("_", "?"))


def whole(token: str, what: str) -> int:
    """A whole number, 2 or 2.0 or +2. Raises FormatError."""
    try:
        value = number(token)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value != round(value) or abs(value) > 1e6:
        raise FormatError(
            f"{capital(what)} is {quote(token)}, not a whole number.", f"Correct {what} in the file or leave it out."
        )
    return round(value)


def element(symbol: str) -> int | None:
    """The atomic number for a symbol in any case, D and T as hydrogen; None where there is no such element."""
    name = symbol.strip().capitalize()
    if name in HEAVY_HYDROGEN:
        return HEAVY_HYDROGEN[name]
    z = atomic_numbers.get(name)
    return z if z else None
