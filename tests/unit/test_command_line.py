"""What the command line has beside runs: version, completion, the schema of a config."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from hpcopt.cli import app
from hpcopt.config import template
from hpcopt.config.json_schema import json_schema
from hpcopt.config.methods import METHODS

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_as_a_module_it_tells_its_version():
    command = [sys.executable, "-m", "hpcopt", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.strip() == version("hpcopt")


def test_shells_complete_commands():
    words = {"_HPCOPT_COMPLETE": "complete_bash", "COMP_WORDS": "hpcopt exp", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="hpcopt", env=words).output.strip() == "export"


def test_the_schema_takes_what_is_right():
    printed = CliRunner().invoke(app, ["schema"])
    assert json.loads(printed.output) == json_schema()
    VALIDATOR.check_schema(json_schema())
    for path in sorted(Path("jobs/configs").glob("*.toml")):
        VALIDATOR.validate(tomllib.loads(path.read_text(encoding="utf-8")))
    for method in METHODS:
        VALIDATOR.validate(tomllib.loads(template(method)))
    own = {"run": {"method": "my.own:Method"}, "method": {"any": 1}, "problem": {"kind": "my:own", "key": 2}}
    VALIDATOR.validate(own)


@pytest.mark.parametrize(
    "wrong",
    [
        {"problem": {"kind": "network", "hiden": [1]}},
        {"problem": {"kind": "network"}, "method": {"density": 0.1}},
        {"problem": {"kind": "network"}, "run": {"method": "topk"}, "method": {"lrr": 0.1}},
        {"problem": {"kind": "quadratic"}, "run": {"rounds": -1}},
        {"problem": {"kind": "quadratic"}, "rn": {}},
        {"run": {}},
    ],
)
def test_the_schema_refuses_what_is_wrong(wrong):
    assert len([*VALIDATOR.iter_errors(wrong)]) == 1
