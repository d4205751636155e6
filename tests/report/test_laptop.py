"""`pip install .` in an empty environment reads a run, `.[report]` reports: no MPI, no torch, no compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hpcopt

VERSION2 = Path(__file__).parents[1] / "data" / "version2"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """The interpreter of a fresh environment with nothing but the base installation."""
    home = tmp_path_factory.mktemp("laptop")
    shutil.copytree("hpcopt", home / "source/hpcopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, home / "source" / name)
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True, timeout=300)
    python = home / "env/bin/python"
    install(python, home / "source")
    return python


def install(python, what):
    """Installs without compiling anything but the package itself."""
    no_compiler = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    command = [python, "-m", "pip", "install", "-q", "--only-binary=:all:", what]
    subprocess.run(command, check=True, timeout=600, env=no_compiler)


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


def test_report(laptop, tmp_path):
    """Last, for it adds to the environment."""
    command = [laptop.parent / "hpcopt", "report", VERSION2 / "delayed", VERSION2 / "killed"]
    out = ["--html", tmp_path / "page.html", "--png", tmp_path / "figures"]
    result = subprocess.run([*command, *out], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "pip install 'hpcopt[report]'" in result.stderr
    install(laptop, f"{laptop.parents[2] / 'source'}[report]")
    result = subprocess.run([*command, *out], capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "killed" in result.stdout
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list((tmp_path / "figures").glob("*.png"))
    program = (
        "import sys; from hpcopt import cli\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'mpi4py'} & set(sys.modules))"
    )
    export = ["export", VERSION2 / "delayed", "--tensorboard", tmp_path / "events"]
    command = [laptop, "-c", program, *export]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "set()"
