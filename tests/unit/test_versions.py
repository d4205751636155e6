"""Runs that were written with each version of the schema are read, exported and resumed, see tests/data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import hpcopt

SAMPLES = Path(__file__).parents[1] / "data"
VERSIONS = ("version1", "version2")
EXPECTED = {version: json.loads((SAMPLES / version / "expected.json").read_text()) for version in VERSIONS}


def samples(what):
    """Each run of each version of which there is something expected."""
    return pytest.mark.parametrize(
        ("run", "expected"),
        [
            pytest.param(SAMPLES / version / name, known, id=f"{version}-{name}")
            for version in VERSIONS
            for name, known in EXPECTED[version][what].items()
        ],
    )


@samples("loaded")
def test_load(run, expected):
    data = hpcopt.load(run)
    for column, values in expected.items():
        assert data[column].values.tolist() == values, column
    about = EXPECTED[run.parent.name]
    assert data["ports/port"].values.tolist() == about["ports"][run.name]
    assert data.attrs["stopped_by"] == about["stopped_by"][run.name]


@samples("exported")
def test_export(tmp_path, run, expected):
    hpcopt.export(run, tmp_path / "weights.npz")
    weights = np.load(tmp_path / "weights.npz")
    for parameter, values in expected.items():
        assert weights[parameter].tolist() == values


@samples("resumed")
def test_resume(tmp_path, run, expected):
    shutil.copytree(run, tmp_path / "run")
    hpcopt.resume(tmp_path / "run", overrides=(f"run.rounds={expected['rounds']}",))
    data = hpcopt.load(tmp_path / "run")
    for column, values in expected["columns"].items():
        np.testing.assert_allclose(data[column], values, rtol=1e-9, err_msg=column)
