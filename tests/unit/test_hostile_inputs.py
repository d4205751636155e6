"""Whatever is handed to a command: exit code 2, one message without escape sequences, nothing left behind.

Configs, values on the command line, and files of HDF5 that somebody has made, or that a disk has damaged.
"""

import resource
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpcopt
from hpcopt import cli
from hpcopt.control import signals
from hpcopt.storage.trace_file import _empty
from hpcopt.storage.trace_rows import append

ESCAPE = "\x1b[2J\x1b]0;mine\x07"
RUN = "[run]\nworkers = 2\nrounds = 4\ncheckpoint_every = 2\n"
PROBLEM = '[problem]\nkind = "quadratic"\ndim = 4\n'
GOOD = RUN + PROBLEM
NETWORK = RUN + '[problem]\nkind = "network"\nhidden = []\ndataset = "{}"\n'
HUGE = 1 << 42


@dataclass
class Hostile:
    """One input.

    Attributes:
        config: text or bytes of a config, for `hpcopt run`.
        arguments: more of them, or all of another command.
        words: of the message.
    """

    words: list[str]
    config: str | bytes = GOOD
    arguments: list[str] = field(default_factory=list)


def key(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def problem(text: str) -> str:
    return RUN + "[problem]\n" + text


CONFIGS = {
    "byte order mark": Hostile(["byte order mark"], b"\xef\xbb\xbf" + GOOD.encode()),
    "UTF-16": Hostile(["not a text file"], GOOD.encode("utf-16")),
    "a date for a number": Hostile(["rounds = datetime.date(2026, 1, 2)"], key("= 4", "= 2026-01-02")),
    "a date for a path": Hostile(["out", "string in quotes"], key("rounds", "out = 2026-01-02\nrounds")),
    "a time for a rate": Hostile(["[method] lr"], GOOD + "[method]\nlr = 07:32:00\n"),
    "a date in a factory's key": Hostile(
        ["[problem] when", "must be a number"], problem('kind = "fractions:Fraction"\nwhen = 1979-05-27\n')
    ),
    "a key of 100,000 letters": Hostile(["unknown key"], key("rounds", "r" * 100_000 + " = 1\nrounds")),
    "a method of 500,000 letters": Hostile(
        ["no such method"], key("rounds", f'method = "{"m" * 500_000}"\nrounds')
    ),
    "a kind of 500,000 letters": Hostile(["no such problem"], problem(f'kind = "{"k" * 500_000}"\n')),
    "a dataset of 500,000 letters": Hostile(["is not known"], NETWORK.format("d" * 500_000)),
    "a topology of 5,000 letters": Hostile(
        ["topology"], key("rounds", 'method = "dpsgd"\nrounds') + f'[method]\ntopology = "{"t" * 5000}"\n'
    ),
    "20,000 unknown keys": Hostile(
        ["unknown key", "more keys"], GOOD + "[method]\n" + "".join(f"a{i} = 1\n" for i in range(20_000))
    ),
    "10^12 workers": Hostile(
        ["workers = 1000000000000", "1000000"], key("workers = 2", f"workers = {10**12}")
    ),
    "10^30 workers": Hostile(["workers", "1000000"], key("workers = 2", f"workers = {10**30}")),
    "no workers": Hostile(["workers = -1"], key("workers = 2", "workers = -1")),
    "10^30 rounds": Hostile(["rounds"], key("rounds = 4", f"rounds = {10**30}\nevaluate_every = {10**29}")),
    "a seed of 2^63": Hostile(["seed"], key("rounds", f"seed = {2**63}\nrounds")),
    "a record every 10^30 rounds": Hostile(
        ["evaluate_every"], key("rounds", f"evaluate_every = {10**30}\nrounds")
    ),
    "10^30 checkpoints": Hostile(["keep_checkpoints"], key("rounds", f"keep_checkpoints = {10**30}\nrounds")),
    "an infinite rate": Hostile(["lr = inf", "finite"], GOOD + "[method]\nlr = 1e400\n"),
    "a rate of -0": Hostile(["lr = -0.0"], GOOD + "[method]\nlr = -0.0\n"),
    "a mantissa of a million digits": Hostile(
        ["method", "lr"], GOOD + f"[method]\nlr = -1{'0' * 900_000}.0\n"
    ),
    "a dimension of 10^15": Hostile(
        ["dim = 1000000000000000"], problem(f'kind = "quadratic"\ndim = {10**15}\n')
    ),
    "10^15 rows": Hostile(
        ["memory"], problem(f'kind = "linear_regression"\ndim = 4\nrows_per_worker = {10**15}\n')
    ),
    "a layer of 10^15": Hostile(["memory"], NETWORK.format("digits").replace("[]", f"[{10**15}]")),
    "an empty directory": Hostile(["out = ''"], key("rounds", 'out = ""\nrounds')),
    "a directory with a zero byte": Hostile(
        ["cannot be made", r"\x00"], key("rounds", 'out = "a\\u0000b"\nrounds')
    ),
    "a directory of 5,000 letters": Hostile(
        ["cannot be made"], key("rounds", f'out = "{"o" * 5000}"\nrounds')
    ),
    "a key that clears the screen": Hostile([r"\x1b[2J"], key("rounds", '"\\u001b[2J" = 1\nrounds')),
    "a value that clears the screen": Hostile([r"\x1b[2J"], key("rounds", 'device = "\\u001b[2J"\nrounds')),
    "a table that clears the screen": Hostile([r"\x1b[2J"], GOOD + '["\\u001b[2J"]\n'),
    "a dataset that clears the screen": Hostile([r"\x1b[2J"], NETWORK.format("\\u001b[2J.h5")),
    "a kind that turns letters round": Hostile([r"\u202e"], problem('kind = "\\u202e"\n')),
    "two tables of one name": Hostile(["not valid TOML"], GOOD + "[run]\n"),
    "a list of tables": Hostile(["run: must be a table"], GOOD.replace("[run]", "[[run]]")),
    "a table for a number": Hostile(["rounds = {"], key("rounds = 4", "rounds = {a = 1}")),
    "a module that is not there": Hostile(["no module"], problem('kind = "no.such.thing:factory"\n')),
    "a function of the system": Hostile(["refuses its keys"], problem('kind = "os:system"\n')),
    "what is no factory": Hostile(["kind"], problem('kind = "os:path"\n')),
    "a name without a module": Hostile(["package.module:factory"], problem('kind = ":"\n')),
    "a method of the system": Hostile(["is no hpcopt.Method"], key("rounds", 'method = "os:system"\nrounds')),
    "a metric that is none": Hostile(
        ["package.module:function"], key("rounds", 'metrics = ["loss"]\nrounds')
    ),
    "a GPU that is not there": Hostile(["cuda:99"], key("rounds", 'device = "cuda:99"\nrounds')),
    "a dataset in nobody's home": Hostile(["no such file"], NETWORK.format("~nobody-of-that-name/x.h5")),
    "warm-up longer than the run": Hostile(["longer than the run"], GOOD + "[method]\nwarmup_rounds = 9\n"),
    "an open quote": Hostile(["not a valid value"], arguments=["--set", 'run.out="mine']),
    "an open bracket": Hostile(["not a valid value"], arguments=["--set", "run.metrics=[1,"]),
    "two values": Hostile(["TABLE.KEY=VALUE"], arguments=["--set", "run.rounds 3"]),
    "a value and a table": Hostile(
        ["rounds", "whole number"], arguments=["--set", "run.rounds=3\n[problem]"]
    ),
    "an override that clears the screen": Hostile([r"\x1b[2J"], arguments=["--set", f"run.{ESCAPE}=3"]),
    "bytes that are no text": Hostile(["out", "string"], arguments=["--set", "run.out=\udcff"]),
    "a directory that is no text": Hostile(["out", "string"], arguments=["--out", "\udcff"]),
    "an option that clears the screen": Hostile([r"\x1b[2J"], arguments=[f"--{ESCAPE}"]),
    "a file that clears the screen": Hostile(
        [r"\x1b[2J", "cannot be read"], arguments=["run", f"{ESCAPE}.toml"]
    ),
    "a file with a name of 5,000 letters": Hostile(["cannot be read"], arguments=["run", "f" * 5000]),
    "data with a name of 5,000 letters": Hostile(["no such file"], arguments=["data", "info", "f" * 5000]),
    "a spectrum of a name of 5,000 letters": Hostile(["cannot be read"], arguments=["spectrum", "f" * 5000]),
    "init of nothing": Hostile(["no such method"], arguments=["init", ESCAPE]),
}


@pytest.fixture
def command(command, monkeypatch):
    """That of all tests, with progress in lines."""
    monkeypatch.setenv("HPCOPT_PROGRESS", "lines")
    return command


@pytest.fixture
def little_memory():
    """Nobody gets more than 8 GiB of addresses beyond what there are: a giant allocation fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(end, words, most=100_000):
    code, out, err = end
    assert code == 2, (code, out, err)
    assert err.count("hpcopt: error: ") == 1, err
    assert "Traceback" not in err
    assert len(err) < most
    assert all(letter.isprintable() or letter == "\n" for letter in out + err), err
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize("name", CONFIGS)
def test_d16_a_hostile_config_or_command_line(name, command, tmp_path, little_memory):
    hostile = CONFIGS[name]
    content = hostile.config if isinstance(hostile.config, bytes) else hostile.config.encode()
    (tmp_path / "config.toml").write_bytes(content)
    whole = hostile.arguments[:1] in (["run"], ["data"], ["spectrum"], ["init"])
    words = hostile.arguments if whole else ["run", "config.toml", *hostile.arguments]
    refused(command(*words), hostile.words)
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".h5", ".partial")] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is not at its end, with checkpoints of rounds 2 and 4, and data files, dense and sparse."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "config.toml").write_text(GOOD + "[method]\nlr = 0.001\n")
    command = ["run", str(folder / "config.toml"), "--set", "run.evaluate_every=2", "--out"]
    cli.app([*command, str(folder / "out")], standalone_mode=False)
    signals.release()
    attributes = {"schema": "hpcopt-data", "classes": 2}
    with h5py.File(folder / "dense.h5", "w") as file:
        file.attrs.update(attributes | {"schema_version": 1, "mean": 0.0, "std": 1.0})
        file["train/x"], file["train/y"] = np.zeros((6, 1, 2, 2), np.uint8), np.arange(6) % 2
    with h5py.File(folder / "sparse.h5", "w") as file:
        file.attrs.update(attributes | {"schema_version": 2, "features": 5})
        file["train/data"], file["train/indices"] = np.ones(6), np.arange(6, dtype=np.int32) % 5
        file["train/indptr"], file["train/y"] = np.arange(7), np.arange(6) % 2
    (folder / "trace.h5").write_bytes(_empty({"workers": 2, "dim": 4}))
    with h5py.File(folder / "trace.h5", "r+") as file:
        rows = np.zeros((1, 4), np.int64)
        append(file, [(1, {"gradients": rows, "applied": rows})])
    return folder


def elsewhere(file, name):
    """Makes a file with a dataset of this name that has what was there."""
    other = Path(file.filename).with_name("elsewhere.h5")
    with h5py.File(other, "w") as there:
        there[name] = file[name][...]
    return str(other)


def external_link(file, name):
    other = elsewhere(file, name)
    del file[name]
    file[name] = h5py.ExternalLink(other, name)


def soft_link(file, name):
    file.move(name, name + "_")
    file[name] = h5py.SoftLink("/" + name + "_")


def virtual(file, name):
    other, old = elsewhere(file, name), file[name]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[...] = h5py.VirtualSource(other, name, old.shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def external_storage(file, name):
    rows = file[name][...]
    raw = Path(file.filename).with_name("elsewhere.raw")
    rows.tofile(raw)
    del file[name]
    file.create_dataset(name, rows.shape, rows.dtype, external=[(str(raw), 0, max(1, rows.nbytes))])


def group(file, name):
    del file[name]
    file.create_group(name)


def missing(file, name):
    del file[name]


def text(file, name):
    del file[name]
    file[name] = ["a"] * 6


def huge(file, name):
    old = file[name]
    shape = (HUGE, *old.shape[1:])
    del file[name]
    file.create_dataset(name, shape, old.dtype, chunks=(64, *shape[1:]), fillvalue=0)


def packed(file, name):
    """As huge, with chunks that say that they are small."""
    old = file[name]
    shape = (HUGE, *old.shape[1:])
    del file[name]
    data = file.create_dataset(name, shape, old.dtype, chunks=(1 << 14, *shape[1:]), compression="gzip")
    data[:4] = 1


def scalar(file, name):
    del file[name]
    file[name] = 1


CRAFTS = (external_link, soft_link, virtual, external_storage, group, missing, text, huge, packed, scalar)
PLACES = {
    "checkpoint": ["meta", "state/x", "digests/x"],
    "run.h5": ["metrics/round", "metrics/loss", "digests/row"],
    "dense": ["train/x", "train/y"],
    "sparse": ["train/data", "train/indptr", "train/y"],
    "trace": ["segments/round", "gradients"],
}


def crafted(run, tmp_path, what, craft, name):
    """A file of this kind with something else in place of a dataset, and the command that reads it."""
    shutil.copytree(run / "out", tmp_path / "out")
    for old in (tmp_path / "out").glob("checkpoints/*2.h5"):
        old.unlink()
    places = {"checkpoint": "out/checkpoints/round-00000004.h5", "run.h5": "out/run.h5"}
    path = tmp_path / places.get(what, f"{what}.h5")
    if what not in places:
        shutil.copy(run / path.name, path)
    with h5py.File(path, "r+") as file:
        craft(file, name)
    more = ["--set", "run.rounds=6"]
    trace = key("rounds", 'method = "delayed_sgd"\nrounds') + f'[method]\nmode = "trace"\ntrace = "{path}"\n'
    (tmp_path / "config.toml").write_text(trace)
    commands = {"checkpoint": ["resume", "out", *more], "run.h5": ["resume", "out", *more]}
    commands |= {"dense": ["data", "info", path], "sparse": ["data", "info", path]}
    return commands.get(what, ["run", "config.toml", "--out", "new"])


# all of them for the first of each file's datasets, some for the others
CRAFTED = [
    (what, name, craft)
    for what, names in PLACES.items()
    for name in names
    for craft in (CRAFTS if name == names[0] else (external_link, group, huge))
]


@pytest.mark.parametrize(
    ("what", "name", "craft"), CRAFTED, ids=[f"{what} {n} {craft.__name__}" for what, n, craft in CRAFTED]
)
def test_d17_a_crafted_file(what, name, craft, run, command, tmp_path, little_memory):
    told = {
        "checkpoint": ["round-00000004.h5: damaged, passed over"],
        "run.h5": ["run.h5: not a readable run.h5"],
        "trace": ["trace.h5: not a readable trace"],
    }
    words = told.get(what, [f"{what}.h5: "] + ["not a readable data file"] * (craft is not scalar))
    refused(command(*crafted(run, tmp_path, what, craft, name)), words)
    kept = hpcopt.load(run / "out")["metrics/round"].values.tolist()
    if what == "run.h5":
        with pytest.raises(hpcopt.UserError, match=r"run\.h5: not a readable run\.h5"):
            hpcopt.load(tmp_path / "out")
    elif what != "checkpoint":
        assert hpcopt.load(tmp_path / "out")["metrics/round"].values.tolist() == kept


def test_d17_a_crafted_checkpoint_is_passed_over(run, command, tmp_path):
    shutil.copytree(run / "out", tmp_path / "out")
    with h5py.File(tmp_path / "out/checkpoints/round-00000004.h5", "r+") as file:
        external_link(file, "state/x")
    code, _, err = command("resume", "out", "--set", "run.rounds=6")
    assert code == 0, err
    assert (
        "round-00000004.h5: damaged, passed over: not readable (/state/x is a link to somewhere else)" in err
    )
    assert "going on from round 2" in err


@pytest.mark.parametrize("attribute", ["config", "jobs", "stopped_by", "schema_version", "last_round"])
@pytest.mark.parametrize("value", [None, 7, "{"], ids=["missing", "a number", "no JSON"])
def test_d17_a_crafted_header(attribute, value, run, command, tmp_path):
    shutil.copytree(run / "out", tmp_path / "out")
    with h5py.File(tmp_path / "out/run.h5", "r+") as file:
        del file.attrs[attribute]
        if value is not None:
            file.attrs[attribute] = value
    end = command("resume", "out", "--set", "run.rounds=6")
    if end[0]:
        refused(end, ["out"])


@pytest.mark.parametrize("column", ["metrics/loss", "metrics/round", "workers/loss", "digests/row"])
def test_d17_a_flipped_bit_in_run_h5_is_told_by_load_and_resume(column, run, command, tmp_path, monkeypatch):
    shutil.copytree(run / "out", tmp_path / "out")
    path = tmp_path / "out/run.h5"
    with h5py.File(path) as file:
        at = file[column].id.get_offset() + file[column][:1].nbytes + 1  # of the record of round 2
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(hpcopt.UserError, match=r"record 1, of round .*, does not match its digest"):
        hpcopt.load(tmp_path / "out")
    # a large file is opened without reading it; none of its numbers passes unchecked
    monkeypatch.setattr("hpcopt.report.load.SMALL_BYTES", 0)
    with hpcopt.load(tmp_path / "out") as data:
        for name in ("metrics/seconds", "metrics/loss"):
            with pytest.raises(hpcopt.UserError, match=r"does not match its digest"):
                data[name].load()
    refused(command("resume", "out", "--set", "run.rounds=6"), ["does not match its digest"])
