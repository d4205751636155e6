"""Runs that were written with schema version 1 are read, exported and resumed, see tests/data/version1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import hpcopt

SAMPLES = Path(__file__).parents[1] / "data" / "version1"
EXPECTED = json.loads((SAMPLES / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED["loaded"])
def test_load(name):
    data = hpcopt.load(SAMPLES / name)
    for column, values in EXPECTED["loaded"][name].items():
        assert data[column].values.tolist() == values, column
    assert data["ports/port"].values.tolist() == EXPECTED["ports"][name]
    assert data.attrs["stopped_by"] == EXPECTED["stopped_by"][name]


@pytest.mark.parametrize("name", EXPECTED["exported"])
def test_export(tmp_path, name):
    hpcopt.export(SAMPLES / name, tmp_path / "weights.npz")
    weights = np.load(tmp_path / "weights.npz")
    for parameter, values in EXPECTED["exported"][name].items():
        assert weights[parameter].tolist() == values


@pytest.mark.parametrize("name", EXPECTED["resumed"])
def test_resume(tmp_path, name):
    expected = EXPECTED["resumed"][name]
    shutil.copytree(SAMPLES / name, tmp_path / name)
    hpcopt.resume(tmp_path / name, overrides=(f"run.rounds={expected['rounds']}",))
    data = hpcopt.load(tmp_path / name)
    for column, values in expected["columns"].items():
        np.testing.assert_allclose(data[column], values, rtol=1e-9, err_msg=column)
