"""`pip install .` in an empty environment reads a run: no MPI, no torch, no compiler."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import hpcopt


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """The interpreter of a fresh environment with nothing but the base installation."""
    home = tmp_path_factory.mktemp("laptop")
    shutil.copytree("hpcopt", home / "source/hpcopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, home / "source" / name)
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True, timeout=300)
    python = home / "env/bin/python"
    install = [python, "-m", "pip", "install", "-q", "--only-binary=:all:", home / "source"]
    no_compiler = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    subprocess.run(install, check=True, timeout=600, env=no_compiler)
    return python


def test_load_and_export(laptop, tmp_path):
    hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.1),
        hpcopt.Quadratic(2, eigenvalues=[1.0, 2.0]),
        out=tmp_path / "r",
        rounds=20,
    )
    program = (
        "import sys, hpcopt\n"
        "data = hpcopt.load(sys.argv[1])\n"
        "hpcopt.export(sys.argv[1], sys.argv[2])\n"
        "assert not {'torch', 'mpi4py'} & set(sys.modules)\n"
        "print(data['metrics/loss'].values.tolist())\n"
    )
    command = [laptop, "-c", program, tmp_path / "r", tmp_path / "w.npz"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(hpcopt.load(tmp_path / "r")["metrics/loss"].values.tolist())
    assert np.load(tmp_path / "w.npz")["x"].shape == (2,)


def test_there_is_no_torch_and_no_mpi_there(laptop):
    for name in ("torch", "mpi4py"):
        result = subprocess.run([laptop, "-c", f"import {name}"], capture_output=True, check=False)
        assert result.returncode != 0
