"""Ten thousand ranks start this program at once: what is imported when."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "mpi4py.MPI", "xarray", "h5py", "scipy", "sklearn")


def imported_by(code):
    """Which heavy modules a fresh interpreter has loaded after running ``code``."""
    program = f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    return eval(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import hpcopt",
        "from hpcopt.cli import app",
        "from hpcopt.config import from_tables; from_tables({'problem': {'kind': 'network'}}, 'c')",
        "import sys; sys.argv = ['hpcopt', '--help']\n"
        "from hpcopt.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_without_anything_heavy(code):
    assert imported_by(code) == []


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


def test_only_the_tables_that_a_config_needs_are_made():
    """To make all of them takes as long as everything else together."""
    code = "import hpcopt.config; hpcopt.config.template('dpsgd', 'quadratic')"
    program = (
        f"import sys\n{code}\nprint(*[m for m in sys.modules if m.startswith('hpcopt.config.methods.')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert result.stdout.split() == ["hpcopt.config.methods.gossip"]


def test_a_wrong_key_of_any_built_in_method_and_problem_is_told_without_anything_heavy():
    assert imported_by(WRONG) == []


def test_results_without_mpi_and_torch():
    assert not {"torch", "mpi4py.MPI"} & set(imported_by("import hpcopt; hpcopt.export"))
