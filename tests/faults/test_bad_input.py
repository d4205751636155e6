"""Bad input: one message that names what is wrong, the exit code of the contract, nothing left half-made."""

import gzip
import json
import math
import os
import random
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from examine import Examiner
from launch import Outcome, launch

GOOD = """
[run]
workers = 4
rounds = 20
evaluate_every = 5
checkpoint_every = 5
[method]
lr = 0.02
[problem]
kind = "linear_regression"
dim = 20
rows_per_worker = 30
"""
NETWORK = """
[run]
workers = {workers}
rounds = 2
[problem]
kind = "network"
hidden = [4]
dataset = "{dataset}"
"""
DIVERGING = """
[run]
workers = 4
rounds = 200
evaluate_every = 2
[method]
lr = 1e60
[problem]
kind = "quadratic"
dim = 10
"""

# what a config may get wrong: the file's name, its bytes, more arguments, and words of the message
WRONG_CONFIGS = {
    "unknown key": (
        GOOD.replace("rounds =", "roundz ="),
        [],
        ["config.toml", "roundz", "did you mean 'rounds'"],
    ),
    "unknown method key": (GOOD.replace("lr", "lrr"), [], ["[method]", "lrr", "momentum"]),
    "unknown table": (GOOD + "[metod]\n", [], ["metod", "did you mean 'method'"]),
    "wrong type": (GOOD.replace("20", '"many"'), [], ["[run]", "rounds", "'many'", "whole number"]),
    "out of range": (GOOD.replace("0.02", "-1.0"), [], ["[method]", "lr", "-1.0", "greater than 0"]),
    "not a number": (GOOD.replace("0.02", "nan"), [], ["[method]", "lr", "nan", "finite"]),
    "unknown method": (
        "[run]\nmethod = 'allreduce'\n" + GOOD[7:],
        [],
        ["allreduce", "allowed", "allreduce_sgd"],
    ),
    "method is a list": ("[run]\nmethod = ['x']\n" + GOOD[7:], [], ["method", "string"]),
    "unknown problem": (
        GOOD.replace("linear_reg", "linear_rig"),
        [],
        ["linear_rig", "did you mean", "quadratic"],
    ),
    "problem is a list": (GOOD.replace('"linear_regression"', "['x']"), [], ["kind", "['x']", "allowed"]),
    "no problem": ("[run]\nrounds = 3\n", [], ["[problem]", "kind", "missing", "network"]),
    "table is a number": ("run = 3\n", [], ["run", "table"]),
    "two mistakes": (GOOD.replace("lr", "lrr").replace("dim", "dimm"), [], ["lrr", "dimm"]),
    "not TOML": ("[run\n", [], ["config.toml", "TOML", "line 1"]),
    "nested too deep": ("a = " + "[" * 100_000, [], ["config.toml", "TOML"]),
    "number too long": (GOOD.replace("20", "1" * 5000), [], ["config.toml", "TOML", "digits"]),
    "binary": (
        b"\x89HDF\r\n\x1a\n" + random.Random(0).randbytes(5000),
        [],
        ["config.toml", "not a text file"],
    ),
    "zeros": (bytes(5000), [], ["config.toml", "TOML"]),
    "--set of an unknown key": (GOOD, ["--set", "run.rouns=3"], ["rouns", "did you mean 'rounds'"]),
    "--set without value": (GOOD, ["--set", "run.rounds"], ["--set run.rounds", "TABLE.KEY=VALUE"]),
    "--set nonsense": (GOOD, ["--set", "=.=."], ["--set =.=.", "TABLE.KEY=VALUE"]),
    "--set wrong type": (GOOD, ["--set", "run.rounds=soon"], ["rounds", "'soon'", "whole number"]),
    "unknown option": (GOOD, ["--sett", "run.rounds=1"], ["--sett"]),
}

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "mpi4py", "h5py"):
            raise RuntimeError(f"{name} is imported")
sys.meta_path.insert(0, Blocker())
"""


def message(text: str) -> str:
    """The one message of a failed job, without what the launcher adds; fails if there is not exactly one."""
    assert "Traceback" not in text, text
    assert text.count("hpcopt: error: ") == 1, text
    return text[text.index("hpcopt: error: ") :]


def check(outcome: Outcome, words: list[str], code: int = 2) -> None:
    assert outcome.code == code, outcome
    told = message(outcome.err)
    assert [word for word in words if word not in told] == [], told


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """How a run of each ends: in one process, where neither torch nor MPI nor h5py can be imported."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    commands = []
    for number, (content, arguments, _) in enumerate(WRONG_CONFIGS.values()):
        config = folder / str(number) / "config.toml"
        config.parent.mkdir()
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
        commands.append(["run", str(config), "--out", str(config.with_name("out")), *arguments])
    (folder / "cases.json").write_text(json.dumps(commands))
    batch = ["python", Path(__file__).with_name("batch.py"), folder / "cases.json", "alone"]
    outcome = launch(batch, env={"PYTHONPATH": str(folder)})
    assert outcome.code == 0, outcome
    assert list(folder.rglob("out")) == []
    ends = [json.loads(line) for line in outcome.out.splitlines()]
    return {
        name: Outcome(*end["codes"], outcome.seconds, "", *end["texts"])
        for name, end in zip(WRONG_CONFIGS, ends, strict=True)
    }


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_wrong_config_is_told_before_torch_or_mpi_are_imported(
    case: str, wrong: dict[str, Outcome]
) -> None:
    check(wrong[case], WRONG_CONFIGS[case][2])


def test_the_blocker_blocks(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(GOOD)
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    outcome = launch(
        ["hpcopt", "run", tmp_path / "config.toml"], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path
    )
    assert outcome.code == 1, outcome
    assert "is imported" in outcome.err


@pytest.mark.parametrize("size", [100 << 20, None])
def test_a_config_without_end_is_not_read_into_memory(size: int | None, tmp_path: Path) -> None:
    path = Path("/dev/zero")
    if size:
        path = tmp_path / "big.toml"
        path.touch()
        os.truncate(path, size)
    limited = ["bash", "-c", 'ulimit -v 1000000 && exec "$@"', "limit"]
    check(launch(["hpcopt", "run", path], under=limited), [str(path), "1048576"])


def test_a_wrong_command_line_is_one_message_on_four_ranks() -> None:
    check(launch(["hpcopt", "run", "--nonsense"], 4), ["--nonsense"])


@dataclass
class Case:
    """A command line of the batch: exit code, words of its message, and where no run may be."""

    command: list[object]
    code: int
    words: list[str]
    clean: Path | None = None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truncated HDF5 data file, and a truncated Fashion-MNIST of 60 images."""
    folder = tmp_path_factory.mktemp("data")
    fashion = folder / "fashion-mnist"
    fashion.mkdir()
    draw = random.Random(0)
    for split, rows in (("train", 60), ("t10k", 20)):
        images = struct.pack(">HBBIII", 0, 8, 3, rows, 28, 28) + draw.randbytes(rows * 784)
        labels = struct.pack(">HBBI", 0, 8, 1, rows) + bytes(i % 10 for i in range(rows))
        (fashion / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (fashion / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    made = launch(["hpcopt", "data", "import", "--format", "idx", fashion, folder / "whole.h5"])
    assert made.code == 0, made
    whole = (folder / "whole.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    archive = fashion / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:20_000])
    return folder


def cases(tmp: Path, data: Path, ranks: int) -> dict[str, Case]:
    """The list of bad input, after one good run that some of it needs."""

    def config(name: str, text: str | bytes) -> Path:
        path = tmp / f"{name}.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def bad(name: str, text: str | bytes, words: list[str], code: int = 2) -> Case:
        return Case(["run", config(name, text), "--out", tmp / name], code, words, tmp / name)

    good, run = config("good", GOOD), tmp / "run"
    huge = tmp / "huge.toml"
    huge.touch()
    os.truncate(huge, 100 << 20)
    (tmp / "empty").mkdir()
    (tmp / "sealed").mkdir(mode=0o500)
    many = NETWORK.format(dataset="digits", workers=1600)
    files = {name: NETWORK.format(dataset=data / f"{name}.h5", workers=4) for name in ("none", "cut")}
    fashion = NETWORK.format(dataset="fashion-mnist", workers=4)
    return {
        "good": Case(["run", good, "--out", run], 0, []),
        "holds a run": Case(
            ["run", good, "--out", run], 2, [str(run), "already holds a run", "hpcopt resume"]
        ),
        "finished": Case(["resume", run], 0, []),
        "nothing to resume": Case(["resume", tmp / "empty"], 3, [str(tmp / "empty"), "config.toml"]),
        "no such directory": Case(["resume", tmp / "nowhere"], 3, [str(tmp / "nowhere")]),
        "no config": Case(["run", tmp / "no.toml"], 2, [str(tmp / "no.toml"), "No such file"]),
        "unknown key": bad("key", GOOD.replace("dim", "dimm"), ["key.toml", "dimm", "did you mean 'dim'"]),
        "binary": bad("binary", random.Random(1).randbytes(999), ["binary.toml", "not a text file"]),
        "huge": Case(["run", huge], 2, [str(huge), "1048576"]),
        "workers > rows": bad("many", many, ["1600", "1498"]),
        "no data file": bad("none", files["none"], [str(data / "none.h5"), "no such file"]),
        "truncated HDF5": bad("cut", files["cut"], [str(data / "cut.h5"), "damaged or cut short"]),
        "truncated gzip": bad("gzip", fashion, [str(data / "fashion-mnist/train-images-idx3-ubyte.gz")]),
        "unknown data": bad(
            "data", NETWORK.format(dataset="digit", workers=4), ["digit", 'did you mean "digits"']
        ),
        "diverging": Case(
            ["run", config("diverging", DIVERGING), "--out", tmp / "diverging"],
            4,
            ["training loss", "round", str(tmp / "diverging/run.h5")],
        ),
        "no directory": Case(
            ["run", good, "--out", good / "below"], 2, [str(good / "below"), "Not a directory"]
        ),
        "is a file": Case(["run", good, "--out", good], 2, [str(good), "File exists"]),
        "name too long": Case(["run", good, "--out", tmp / ("x" * 300)], 2, ["xxx", "too long"]),
        "not permitted": Case(["run", good, "--out", tmp / "sealed/below"], 2, ["sealed/below", "ermi"]),
        "not permitted here": Case(
            ["run", good, "--out", tmp / "sealed"], 2, ["sealed", "ermi"], tmp / "sealed"
        ),
        "another problem": Case(["resume", tmp / "other problem"], 2, ["round-", "problem", "quadratic"]),
        "another method": Case(["resume", tmp / "other method"], 2, ["round-", "method", "another_sgd"]),
        "another size": Case(["resume", tmp / "other size"], 2, ["round-", "arrays", "[20]", "[21]"]),
        "resume sealed": Case(["resume", tmp / "sealed run"], 2, ["sealed run", "ermi"]),
    } | (
        {"more ranks than workers": bad("few", GOOD.replace("= 4", "= 3"), ["workers = 3", f"{ranks} ranks"])}
        if ranks > 3
        else {}
    )


FORGE = """
import json, sys, h5py, numpy as np
from pathlib import Path
from hpcopt.storage import format
for path in Path(sys.argv[1]).glob("round-*.h5"):
    text = json.dumps(format.read_meta(path) | {"method": "another_sgd"}).encode()
    with h5py.File(path, "r+") as file:
        del file["meta"]
        rows = np.frombuffer(text, np.uint8)
        file.create_dataset("meta", data=rows).attrs["crc32c"] = format.digest(rows)
"""


@pytest.fixture(scope="module")
def misfits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unfinished runs whose checkpoints do not fit their config: the good one, changed."""
    tmp = tmp_path_factory.mktemp("misfits")
    (tmp / "seed.toml").write_text(GOOD)
    seed = launch(["hpcopt", "run", tmp / "seed.toml", "--out", tmp / "seed"])
    assert seed.code == 0, seed
    for name in ("other problem", "other method", "other size", "sealed run"):
        shutil.copytree(tmp / "seed/checkpoints", tmp / name / "checkpoints")
        shutil.copy(tmp / "seed/config.toml", tmp / name)
    text = (tmp / "seed/config.toml").read_text()
    quadratic = text[: text.index("[problem]")] + '[problem]\nkind = "quadratic"\ndim = 20\n'
    (tmp / "other problem/config.toml").write_text(quadratic)
    (tmp / "other size/config.toml").write_text(text.replace("dim = 20", "dim = 21"))
    forged = launch(["python", "-c", FORGE, tmp / "other method/checkpoints"])
    assert forged.code == 0, forged
    return tmp


@pytest.mark.parametrize("ranks", [1, 4])
def test_bad_input(ranks: int, tmp_path: Path, data: Path, misfits: Path, examiner: Examiner) -> None:
    shutil.copytree(misfits, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "sealed run", tmp_path / "sealed run/checkpoints"):
        path.chmod(0o500)
    listed = cases(tmp_path, data, ranks)
    (tmp_path / "cases.json").write_text(
        json.dumps([[str(a) for a in case.command] for case in listed.values()])
    )
    # root may write everywhere; without this capability the permission bits count
    unprivileged = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    outcome = launch(
        ["python", Path(__file__).with_name("batch.py"), tmp_path / "cases.json"],
        ranks,
        limit=150,
        env={"HPCOPT_DATA": str(data)},
        under=unprivileged,
    )
    ends = [json.loads(line) for line in outcome.out.splitlines() if line.startswith('{"case"')]
    assert len(ends) == len(listed), f"{list(listed)[len(ends)]}: {outcome}"
    assert outcome.code == 0, outcome
    for (name, case), end in zip(listed.items(), ends, strict=True):
        text = "".join(end["texts"])
        assert end["codes"] == [case.code] * ranks, (name, end)
        assert end["texts"][1:] == [""] * (ranks - 1), (name, end)
        if case.code:
            told = message(text)
            assert [word for word in case.words if word not in told] == [], (name, told)
        if case.clean is not None:
            left = [
                *case.clean.rglob("*.h5"),
                *case.clean.rglob("*.partial"),
                *case.clean.glob("checkpoints"),
            ]
            assert left == [], name
    assert "already finished at round 20" in "".join(ends[2]["texts"])

    kept = examiner(tmp_path / "diverging")
    assert kept.faults == [], kept
    assert kept.stopped_by == "not finite"
    assert [math.isfinite(loss) for loss in kept.losses] == [True] * (len(kept.losses) - 1) + [False]
    assert len(kept.rounds) > 1
    assert examiner(tmp_path / "run").rounds == [0, 5, 10, 15, 20]


def test_the_exit_codes_reach_the_shell_through_mpirun(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(GOOD.replace("dim", "dimm"))
    (tmp_path / "diverging.toml").write_text(DIVERGING)
    check(launch(["hpcopt", "run", tmp_path / "bad.toml"], 4), ["bad.toml", "dimm", "did you mean 'dim'"])
    check(launch(["hpcopt", "run", tmp_path / "diverging.toml", "--out", tmp_path / "d"], 2), ["loss"], 4)
    check(launch(["hpcopt", "resume", tmp_path], 2), [str(tmp_path), "config.toml"], 3)
