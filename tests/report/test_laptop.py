"""`pip install .` in an empty environment reads a run, `.[report]` reports: no MPI, no torch, no compiler."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

import hpcopt

VERSION2 = Path(__file__).parents[1] / "data" / "version2"
PROGRAM = """
import sys, hpcopt
data = hpcopt.load(sys.argv[1])
hpcopt.export(sys.argv[1], sys.argv[2])
assert not {"torch", "mpi4py"} & set(sys.modules)
print(data["metrics/loss"].values.tolist())
"""
COMMANDS = """
import json, sys
from hpcopt import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["hpcopt", *words]
    try: cli.main()
    except SystemExit as end: assert not end.code
print({"torch", "mpi4py"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """The interpreter of a fresh environment with nothing but the base installation."""
    home = tmp_path_factory.mktemp("laptop")
    shutil.copytree("hpcopt", home / "source/hpcopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, home / "source" / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True, timeout=300)
    python = home / "env/bin/python"
    pip(python, "wheel", "--no-deps", "--wheel-dir", home, home / "source")
    (wheel,) = home.glob("hpcopt-*.whl")
    pip(python, "install", "--no-compile", wheel)
    return python, wheel


def pip(python, command, *words):
    """For another interpreter, without compiling anything but the package itself; what it says."""
    no_compiler = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    line = [sys.executable, "-m", "pip", "--python", python, command, "-q", "--only-binary=:all:", *words]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, timeout=600, env=no_compiler)
    return done.stdout


def add(python, what):
    """Puts there what pip would install, from here, where all of it is: unpacking takes longer."""
    wanted = json.loads(pip(python, "install", "--dry-run", "--report", "-", what))["install"]
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    for name in {one["metadata"]["name"] for one in wanted} - {"hpcopt"}:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))


def started(*command, cwd):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


def test_load_and_export(laptop, tmp_path):
    hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.1),
        hpcopt.Quadratic(2, eigenvalues=[1.0, 2.0]),
        out=tmp_path / "r",
        rounds=20,
    )
    result = started(laptop[0], "-c", PROGRAM, tmp_path / "r", tmp_path / "w.npz", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(hpcopt.load(tmp_path / "r")["metrics/loss"].values.tolist())
    assert np.load(tmp_path / "w.npz")["x"].shape == (2,)


def test_there_is_no_torch_and_no_mpi_there(laptop):
    for name in ("torch", "mpi4py"):
        result = subprocess.run([laptop[0], "-c", f"import {name}"], capture_output=True, check=False)
        assert result.returncode != 0


def test_report(laptop, tmp_path):
    """Last, for it adds to the environment."""
    python, wheel = laptop
    report = ["report", str(VERSION2 / "delayed"), str(VERSION2 / "killed")]
    report += ["--html", str(tmp_path / "page.html"), "--png", str(tmp_path / "figures")]
    result = started(python.parent / "hpcopt", *report, cwd=tmp_path)
    assert result.returncode == 2
    assert "pip install 'hpcopt[report]'" in result.stderr
    add(python, f"{wheel}[report]")
    test_there_is_no_torch_and_no_mpi_there(laptop)
    export = ["export", str(VERSION2 / "delayed"), "--tensorboard", str(tmp_path / "events")]
    result = started(python, "-c", COMMANDS, json.dumps([report, export]), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "killed" in result.stdout
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list((tmp_path / "figures").glob("*.png"))
    assert result.stdout.splitlines()[-1] == "set()"
