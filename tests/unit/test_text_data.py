"""tools/text_data on package lists of a few lines."""

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest

from hpcopt.problems.data import open_dataset

TOOL = Path("tools/text_data").resolve()
PACKAGES = """\
Package: {name}
Section: {section}
Description: {short}
Description-md5: {name}md5
"""
WORDS = ["red", "green", "blue", "red-green", "c++"]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    loader = SourceFileLoader("text_data", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("text_data", loader))
    loader.exec_module(module)
    lists = tmp_path / "runs/text/apt/lists"
    lists.mkdir(parents=True)
    sections = ["libs", "games", "contrib/python", "doc"]
    names = [f"p{i:02}" for i in range(20)]
    (lists / "a_Packages").write_text(
        "\n".join(
            PACKAGES.format(name=name, section=sections[i % 4], short=f"The {WORDS[i % 5]} {WORDS[i % 3]}")
            for i, name in enumerate(names)
        )
    )
    (lists / "a_Translation-en").write_text(
        "\n\n".join(
            f"Package: {n}\nDescription-md5: {n}md5\nDescription-en: The\n with blue\n .\n unique{n}"
            for n in names[:10]
        )
    )
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_words_bigrams_and_sections(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["text_data"])
    assert tool.main() == 0
    assert tool.main() == 0  # is there already
    data = open_dataset(str(tmp_path / "runs/text/words.h5"))
    # the, with, red, green, blue, red-green, c++, c; not the words of one package
    assert (data.train.shape, len(data.train), len(data.test)) == ((8,), 18, 2)
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert sorted(labels) == [-1] * 10 + [1] * 10
    x = data.train.read(np.arange(18))
    assert np.allclose(x.multiply(x).sum(1), 1)
    monkeypatch.setattr(sys, "argv", ["text_data", "--bigrams", "--sections", str(tmp_path / "b.h5")])
    assert tool.main() == 0
    hashed = open_dataset(str(tmp_path / "b.h5"))
    assert (hashed.train.shape, hashed.classes) == ((2**20,), 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.h5", "runs"]


def test_wrong_usage():
    wrong = subprocess.run([sys.executable, TOOL, "--no"], capture_output=True, text=True)
    assert wrong.returncode == 2
