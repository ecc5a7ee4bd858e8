"""A spec is one text and one hash for one question."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdcore.errors import UsageError
from fdcore.records import Failure
from fdcore.screening.chunks import Chunk, list_chunks
from fdcore.screening.reading import read_chunk
from fdcore.spec import ModelChoice, Spec
from fdcore.structures import Limits
from fdcore.structures.pool import Pool
from fdcore.tasks.stability import StabilityParameters

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
choices = st.builds(
    ModelChoice,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True),
    st.sampled_from(["float32", "float64"]),
    st.text(),
    st.none() | st.text(min_size=1),
)
specs = st.builds(
    Spec,
    task=st.text(),
    model=st.none() | choices,
    inputs_sha256=st.text(),
    n_structures=st.integers(0, 10**6),
    parameters=st.dictionaries(st.text(), plain | st.lists(plain, max_size=3), max_size=4),
    seed=st.integers(0, 2**63 - 1),
    versions=st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(specs)
def test_text_round_trip(spec):
    again = Spec.from_json(spec.to_json())
    assert again.to_json() == spec.to_json() and again.sha256 == spec.sha256
    assert again.model == spec.model and dict(again.parameters) == json.loads(json.dumps(dict(spec.parameters)))


@given(specs, st.integers(0, 2**63 - 1))
def test_other_seed_is_another_spec(spec, seed):
    other = Spec.from_json(json.dumps({**json.loads(spec.to_json()), "seed": seed}))
    assert (other.sha256 == spec.sha256) == (seed == spec.seed)


def test_order_of_parameters_does_not_matter():
    a = Spec("t", None, "", 0, {"x": 1, "y": [1, 2]})
    b = Spec("t", None, "", 0, {"y": [1, 2], "x": 1})
    assert a.sha256 == b.sha256


def test_versions_are_not_part_of_the_question():
    a, b = Spec("t", None, "", 0, versions={"torch": "1"}), Spec("t", None, "", 0, versions={"torch": "2"})
    assert a.sha256 != b.sha256 and a.work_sha256 == b.work_sha256


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "model": 3}'])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(UsageError, match="cannot be read"):
        Spec.from_json(text)


def test_spec_of_another_version_is_refused_by_name():
    text = Spec("t", None, "", 0).to_json().replace('"format":1', '"format":7')
    with pytest.raises(UsageError, match="format 7"):
        Spec.from_json(text)


def test_a_spec_cannot_be_changed():
    spec = Spec("t", None, "", 0, {"x": 1})
    with pytest.raises(TypeError):
        spec.parameters["x"] = 2  # pyright: ignore
    with pytest.raises(UsageError, match="precision"):
        Spec("t", ModelChoice("m", dtype="float16"), "", 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_parameters_that_are_no_json_are_refused_in_words(value):
    with pytest.raises(UsageError, match="parameter x of t"):
        Spec("t", None, "", 0, {"x": value})


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/b", "", "x\ny", ".", "a b"])
def test_a_run_names_models_and_never_files(name):
    with pytest.raises(UsageError, match="not the name of a model"):
        ModelChoice(name)
    with pytest.raises(UsageError, match="not the name of a model"):
        StabilityParameters(models=(name,))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.ckpt", "a/b.pt", ""])
def test_runs_of_several_models_name_no_files_either(name):
    """What is unpickled is named on a command line or by the operator: no description of a run leads to a file."""
    from fdcore.tasks.reproduce import ReproduceParameters
    from fdcore.tasks.validate import ValidateParameters

    with pytest.raises(UsageError, match="not the name of a model"):
        ReproduceParameters(targets=("fig1",), models=(name,))
    for field in ("further", "ensemble"):
        with pytest.raises(UsageError, match="not the name of a model"):
            ValidateParameters(**{field: (name, "orb-v2")})


def test_a_screening_reads_structures_of_its_folder_and_nothing_else(tmp_path):
    """Its paths lead to readers of structures, which unpickle nothing, and not out of the folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (tmp_path / "in" / "model.ckpt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for outside in (str(tmp_path / "model.ckpt"), "../model.ckpt"):
        [refused] = list_chunks([outside], root=tmp_path / "in")
        assert isinstance(refused, Failure) and "outside" in refused.error
    [chunk] = list_chunks(["model.ckpt"], root=tmp_path / "in")
    assert isinstance(chunk, Chunk)
    pool = Pool(1)
    [item] = read_chunk(chunk, Limits(), pool).items
    pool.close()
    assert isinstance(item, Failure)
