"""Batch scripts: what they look like, what they refuse, and that no value ever becomes a command."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.cluster.profile import SiteProfile, find, load_profile
from hpcopt.cluster.render import Element, Submission, render
from hpcopt.cluster.words import directive, seconds
from hpcopt.config import check_table
from hpcopt.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
PLAIN = {
    "job_name": "first",
    "directory": "/scratch/me/runs/first",
    "config": "/scratch/me/runs/first/submitted.toml",
    "nodes": 2,
    "ntasks_per_node": 4,
    "time": "1:00:00",
    "workdir": "/home/me/project",
    "env_file": "/home/me/hpcopt/jobs/env.sh",
}
ARRAY = tuple(
    Element(settings=(f"method.lr={lr}",), directory=f"/scratch/me/runs/rates/method.lr={lr}")
    for lr in ("0.1", "0.3")
)
CASES = {
    "plain": (PLAIN, {}),
    "gpu": (
        PLAIN | {"cpus_per_task": 8, "settings": ("run.rounds=500", "run.dtype=float32")},
        {
            "gpus_per_task": 1,
            "partition": "gpu",
            "account": "p123",
            "qos": "long",
            "constraint": "a100&nvlink",
        },
    ),
    "array": (
        PLAIN | {"array": ARRAY, "directory": "/scratch/me/runs/rates", "settings": ("run.rounds=500",)},
        {},
    ),
    "dependency": (PLAIN | {"after": ("17", "18_3"), "time": "1-0"}, {"extra": ["--mem=0", "--exclusive"]}),
    "odd": (
        PLAIN
        | {
            "job_name": """a "b" 'c' \\ $(touch x) #d `e` é""",
            "directory": "/scratch/it's 100% $HOME/run",
            "config": "/scratch/it's 100% $HOME/run/submitted.toml",
            "settings": ('problem.dataset="$(rm -rf x).h5"',),
            "env_file": None,
            "virtual_env": "/home/me/my venv",
        },
        {
            "modules": ["openmpi/5.0", "hdf5"],
            "environment": {"NOTE": "`it's` $HOME"},
            "interface": "ib0,eth0",
        },
    ),
    "grid": (
        PLAIN
        | {
            "array": tuple(
                Element(
                    settings=(f"method.lr={lr}", f"run.seed={seed}"),
                    directory=f"/scratch/me/runs/rates/method.lr={lr},run.seed={seed}",
                )
                for lr in ("0.1", "0.3")
                for seed in (0, 1)
            ),
            "array_at_once": 2,
        },
        {},
    ),
    "sweep": (
        PLAIN
        | {
            "over": ("method.lr=0.1,0.3", "problem.dataset=$(rm x).h5"),
            "ranks_each": 2,
            "at_once": 3,
            "zip": True,
        },
        {},
    ),
    "mpirun": (PLAIN | {"cpus_per_task": 2}, {"launcher": "mpirun", "modules": ["mpich"]}),
}


def script(name):
    request, profile = CASES[name]
    return render(Submission(**request), SiteProfile(**profile))


@pytest.mark.parametrize("name", CASES)
def test_golden_files(name):
    """HPCOPT_GOLDEN=write writes them anew; read the difference before committing it."""
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("HPCOPT_GOLDEN") == "write":
        file.write_text(script(name), encoding="utf-8")
    assert script(name) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "file", [*GOLDEN.glob("*.sbatch"), *Path("jobs").glob("*.sbatch")], ids=lambda f: f.name
)
def test_the_shell_and_shellcheck_accept_every_script(file):
    subprocess.run(["bash", "-n", file], check=True, timeout=300)
    if shutil.which("shellcheck"):
        # 1090, 1091: files that are elsewhere; 2016: the odd values' own dollar signs
        subprocess.run(["shellcheck", "--exclude=1090,1091,2016", file], check=True, timeout=300)
    assert file.parent == GOLDEN or len(file.read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job_name": "a\nb"}, ["--job-name = 'a\\nb'", "printable"]),
        ({"job_name": "a\x1b[31m"}, ["--job-name", "printable"]),
        ({"job_name": "a\u2028#SBATCH"}, ["--job-name", "printable"]),
        ({"job_name": ""}, ["--job-name", "printable"]),
        ({"nodes": -1}, ["--nodes = -1", "greater than or equal to 1"]),
        ({"ntasks_per_node": 0}, ["--ntasks-per-node = 0"]),
        ({"time": "soon"}, ["--time = 'soon'", "HH:MM:SS"]),
        ({"time": "0"}, ["--time = '0'", "longer than nothing"]),
        ({"after": ("17;ls",)}, ["--after", "17;ls"]),
        ({"directory": "/a\\b"}, ["--out", "backslash"]),
        ({"settings": ("run.rounds=1\nls",)}, ["--set", "printable"]),
        ({"array": ARRAY + ARRAY[:1]}, ["--array", "share the directory"]),
    ],
)
def test_what_a_submission_refuses(change, words):
    named = {Submission.model_fields[key].alias: value for key, value in (PLAIN | change).items()}
    with pytest.raises(UserError) as caught:
        check_table(Submission, named, "hpcopt submit")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('lunch = "x"', ["lunch: unknown key", "did you mean 'launcher'?"]),
        ('launcher = "mpiexec"', ["launcher = 'mpiexec'", "'srun' or 'mpirun'"]),
        ('mpi = "pmix; ls"', ["mpi = 'pmix; ls'"]),
        ('modules = ["a b"]', ["modules.0 = 'a b'", "module's name"]),
        ('interface = "eth0 $(ls)"', ["interface"]),
        ("signal_seconds = 0", ["signal_seconds = 0"]),
        ("[environment]\nSLURM_JOB_ID = '3'", ["environment", "Slurm's own"]),
        ("[environment]\n'A=B' = '3'", ["environment", "variable's name"]),
        ("[environment]\nA = 'x\\u0007'", []),
        ('[environment]\nA = "x\\u0007"', ["environment.A", "printable"]),
        ('extra = ["--mem=0", "-N 3"]', ["extra.1 = '-N 3'", '"--key=value"']),
        ('extra = ["--nodes=3"]', ["extra.0", "--nodes is set by"]),
        ('extra = ["--nod=3"]', ["extra.0", "--nodes is set by"]),
        ('extra = ["--mem=0\\n#SBATCH --wrap=ls"]', ["extra.0", "printable"]),
        ("account = 7", ["account = 7", "string"]),
        ("account", ["not valid TOML"]),
    ],
)
def test_what_a_profile_refuses(tmp_path, text, words):
    file = tmp_path / "site.toml"
    file.write_text(text, encoding="utf-8")
    if not words:
        assert load_profile(file)
        return
    with pytest.raises(UserError) as caught:
        load_profile(file)
    for word in [str(file), *words]:
        assert word in str(caught.value)


def test_which_profile_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    config, beside = tmp_path / "here" / "c.toml", tmp_path / "here" / "site.toml"
    own = tmp_path / "config" / "hpcopt" / "site.toml"
    assert find(None, config) is None
    own.parent.mkdir(parents=True)
    own.touch()
    assert find(None, config) == own
    beside.touch()
    assert find(None, config) == beside
    assert find(Path("x.toml"), config) == Path("x.toml")


def test_a_limit_without_time_before_the_signal():
    with pytest.raises(UserError, match="signal_seconds = 120"):
        render(Submission(**(PLAIN | {"time": "2"})), SiteProfile())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2", 120), ("2:30", 150), ("1:00:00", 3600), ("1-1", 90000), ("1-1:1", 90060), ("1-1:1:1", 90061)],
)
def test_times(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1-", "1-1:1:1:1", "1h", "00:00", "1 ", "١"])
def test_times_that_are_none(text):
    with pytest.raises(ValueError, match="MINUTES"):
        seconds(text)


# what shells, sbatch and terminals take for something else
PIECES = (
    *(
        "$(touch pwned)",
        "`touch pwned`",
        ";touch pwned;",
        ">pwned",
        "\n#SBATCH --wrap=ls",
        "${X}",
        "$'\\n'",
        "@@{top}",
    ),
    *(
        "'",
        '"',
        "\\",
        "&",
        "|",
        "\n",
        "\r",
        "\0",
        "#",
        "!",
        "*",
        "~",
        " ",
        "  ",
        "%j",
        "%%",
        "=",
        "-",
        "<",
        "(",
        ")",
    ),
    *("a", "B", "0", "é", "\t", "\x1b", "\u2028", "\ud800", "hetjob", "packjob", ":"),
)
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def accepted(values, profile=None):
    """The script where the values are legal; None where they are refused."""
    try:
        checked = check_table(SiteProfile, profile or {}, "site")
        named = {Submission.model_fields[key].alias: value for key, value in (PLAIN | values).items()}
        return render(check_table(Submission, named, "submit"), checked)
    except UserError:
        return None


@settings(max_examples=60)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_whatever_is_accepted_reaches_the_shell_as_it_was(tmp_path_factory, name, path, setting, variable):
    folder = tmp_path_factory.mktemp("shell")
    values = {"job_name": name, "directory": f"/d{path}", "config": f"/c{path}", "settings": (f"s{setting}",)}
    text = accepted(
        values | {"env_file": None}, {"environment": {"NOTE": f"v{variable}"}, "account": f"a{name}"}
    )
    illegal = (
        not all(value.isprintable() for value in (name, path, setting, variable)) or "\\" in path or not name
    )
    assert (text is None) == illegal
    if text is None:
        return
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=300)
    # what the script sets before it does anything
    head = text.split("# since Slurm 22.05")[0]
    show = r"""printf '%s\0' "$config" "$directory" "${settings[@]}" "$NOTE" """
    shown = subprocess.run(
        ["bash", "-c", f"{head}\n{show}"], cwd=folder, capture_output=True, check=True, timeout=300
    )
    expected = [f"/c{path}", f"/d{path}", "--set", f"s{setting}", f"v{variable}"]
    assert shown.stdout.decode().split("\0")[:-1] == expected
    assert not list(folder.iterdir())
    # sbatch reads the comments up to the first command: what we meant, one option a line
    lines = text.splitlines()
    comments = lines[: lines.index("")]
    assert all(line.startswith("#") for line in comments)
    parsed = [sbatch_reads(line.removeprefix("#SBATCH ")) for line in comments if line.startswith("#SBATCH")]
    assert [f"--job-name={name}"] in parsed
    assert [f"--account=a{name}"] in parsed
    assert [f"--output=/d{path.replace('%', '%%')}/slurm-%j.out"] in parsed
    assert all(len(words) == 1 for words in parsed)


def sbatch_reads(line):
    """sbatch's own rules, against which `test_sbatch_itself` holds the real one where there is one."""
    words, word, quote, escaped = [], None, "", False
    for letter in line:
        if escaped:
            word, escaped = (word or "") + letter, False
        elif letter == "\\":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
            word = word if not quote else word + letter
        elif letter in "\"'":
            quote, word = letter, word or ""
        elif letter == "#":
            break
        elif letter.isspace() and letter.isascii():
            words, word = (words if word is None else [*words, word]), None
        else:
            word = (word or "") + letter
    return words if word is None else [*words, word]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch here")
@pytest.mark.parametrize("name", CASES)
def test_sbatch_itself_reads_what_was_meant(tmp_path, name):
    """The real sbatch tells what it found in a script before it looks for its controller; there is none."""
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=2\n"
        "NodeName=localhost\nPartitionName=p Nodes=ALL\n"
    )
    (tmp_path / "job.sbatch").write_text(script(name), encoding="utf-8")
    result = subprocess.run(
        ["sbatch", "-vvv", tmp_path / "job.sbatch"],
        env=os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    mark = 'Found in script, argument "'
    found = [line.split(mark)[1][:-1] for line in result.stderr.splitlines() if mark in line]
    expected = [
        word
        for line in script(name).splitlines()
        if line.startswith("#SBATCH ")
        for word in sbatch_reads(line.removeprefix("#SBATCH "))
    ]
    assert found == expected
    assert f"--job-name={CASES[name][0]['job_name']}" in found


def test_directives_are_plain_where_they_can_be():
    assert directive("time", "1-00:00:00") == "#SBATCH --time=1-00:00:00"
    assert directive("requeue") == "#SBATCH --requeue"
    assert shlex.split(directive("comment", "a b"), comments=False)[1] == "--comment=a b"
