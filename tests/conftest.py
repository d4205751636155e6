"""For all tests."""

import gc
import sys

import pytest
from hypothesis import settings

settings.register_profile("hpcopt", deadline=None)  # times say nothing on a machine that has other work
settings.load_profile("hpcopt")

gc.disable()  # what torch and the tests themselves are made of stays: looking for garbage there takes long


def pytest_collection_finish():
    """From here on garbage is looked for among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs a command line in this process, in the test's directory; its exit code, stdout and stderr."""
    from hpcopt import cli
    from hpcopt.control import signals

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "ignore", signals.release)  # this process goes on

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hpcopt", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capfd.readouterr()

    return run
