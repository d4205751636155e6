"""Ten thousand ranks start this program at once: what is imported when."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "mpi4py.MPI", "xarray", "h5py", "scipy", "sklearn")

WRONG = """
from hpcopt.config import from_tables
from hpcopt.config.methods import METHODS
from hpcopt.config.problems import PROBLEM_TABLES
from hpcopt.errors import UserError
for method in METHODS:
    for kind in PROBLEM_TABLES:
        tables = {"run": {"method": method, "rownds": 1}, "method": {"learning": 1}}
        try:
            from_tables(tables | {"problem": {"kind": kind, "dims": 1}}, "c")
        except UserError as error:
            for key in ("[run] rownds", "[method] learning", "[problem] dims"):
                assert f"c: {key}: unknown key" in str(error), (method, kind, str(error))
        else:
            raise AssertionError((method, kind))
"""
HELP = """
import sys; sys.argv = ["hpcopt", *{!r}, "--help"]
from hpcopt.cli import main
try: main()
except SystemExit as end: assert not end.code
"""
# One process after the other of these: what one has loaded is there for all that follow.
STEPS = {
    "the package": "import hpcopt",
    "the command line": "from hpcopt.cli import app",
    "help": HELP.format([]),
    "help of a report": HELP.format(["report"]),
    "a template": "import hpcopt.config; hpcopt.config.template('dpsgd', 'quadratic')",
    "a config": "from hpcopt.config import from_tables; from_tables({'problem': {'kind': 'network'}}, 'c')",
    "a wrong key of any built-in method and problem": WRONG,
    "mixing": "from hpcopt.math.mixing import check, mixing",
    "a mixing matrix": "check(mixing('one_peer_exponential', 'uniform', 6))",
    "a data set": "import hpcopt.problems.data as d; d.array_dataset(([[1.0]], [0]))",
    "results": "hpcopt.export",
}


@pytest.fixture(scope="module")
def loaded():
    """The modules that a fresh interpreter has after each of the steps."""
    program = (
        "import json, sys\nfound = {}\n"
        f"for name, code in {STEPS!r}.items():\n"
        "    exec(code, globals())\n"
        "    found[name] = list(sys.modules)\n"
        "print(json.dumps(found))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("step", list(STEPS)[:7])
def test_without_anything_heavy(step, loaded):
    assert not set(HEAVY) & set(loaded[step])


def test_help_of_a_report_needs_next_to_nothing(loaded):
    nothing = ("numpy", "h5py", "xarray", "pandas", "scipy", "torch", "mpi4py", "jinja2")
    assert not set(nothing) & set(loaded["help of a report"])


def test_only_the_tables_that_a_config_needs_are_made(loaded):
    """To make all of them takes as long as everything else together."""
    tables = [name for name in loaded["a template"] if name.startswith("hpcopt.config.methods.")]
    assert tables == ["hpcopt.config.methods.gossip"]


def test_networkx_is_imported_when_it_is_used(loaded):
    assert not {"networkx", "scipy"} & set(loaded["mixing"])
    assert "networkx" not in loaded["a mixing matrix"]


def test_opening_data_by_name_imports_neither_torch_nor_mpi(loaded):
    assert not {"torch", "mpi4py", "h5py", "sklearn"} & set(loaded["a data set"])


def test_results_without_mpi_and_torch(loaded):
    assert not {"torch", "mpi4py.MPI"} & set(loaded["results"])
