"""Probes of what a process can see by itself: software, GPUs, Slurm, disks, memory, data."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from hpcopt.doctor.finding import Finding, Probe, Where, fails, note, ok, warning
from hpcopt.errors import UserError
from hpcopt.ground.words import counted

GIB = 1 << 30
LEAST_FREE = GIB
SLURM_SECONDS = 5.0
NFS = ("nfs", "nfs3", "nfs4")
# fmt: off
NETWORK_TYPES = (
    *NFS, "lustre", "gpfs", "mmfs", "beegfs", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "pvfs2",
    "orangefs", "panfs", "afs", "9p", "wekafs", "virtiofs", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs",
    "fuse.dfuse", "fuse.juicefs",
)
# fmt: on
_SOFTWARE = 'install it again: pip install "hpcopt[run]" (tools/setup makes an environment with everything)'


def software() -> Finding:
    """Versions, and the threads that torch will use."""
    from hpcopt.storage.provenance import versions

    found = versions()
    if "torch" not in found:
        return fails("torch is not installed", _SOFTWARE)
    import torch

    threads = counted(torch.get_num_threads(), "thread")
    return ok(f"Python {found['python']}, hpcopt {found['hpcopt']}, torch {torch.__version__} with {threads}")


def gpu() -> Finding:
    """Whether there is a GPU, and how its memory reaches MPI."""
    import torch

    from hpcopt.comm.staging import cuda_aware

    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            return warning("there is a GPU, but this torch cannot use it", "install a CUDA build of torch")
        return note("no GPU that torch can use: runs use the CPU")
    text = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    override = os.environ.get("HPCOPT_CUDA_AWARE", "")
    forced = f" (HPCOPT_CUDA_AWARE={override})" if override else ""
    if cuda_aware():
        measured = "" if override else "; a run measures whether direct or staged messages are faster"
        return ok(f"{text}, CUDA-aware MPI{forced}{measured}")
    return note(
        f"{text}, messages staged through host memory{forced}",
        "a CUDA-aware MPI may be faster: ask for your cluster's module",
    )


def slurm() -> Finding:
    """Whether Slurm is here, answers, and can start MPI."""
    if shutil.which("sinfo") is None:
        return note("none here; none is needed")
    start = time.monotonic()
    version = _output("sinfo", "--version")
    partitions = _output("sinfo", "--noheader", "--format=%R")
    seconds = time.monotonic() - start
    if partitions is None:
        return warning(
            f"{version or 'sinfo'}: no answer",
            "is the controller up? (scontrol ping); ask the site's help desk",
        )
    text = f"{version}, {len(set(partitions.split()))} partitions, answers in {seconds:.1f} s"
    if shutil.which("sbatch") is None:
        return warning(f"{text}; no sbatch on PATH", "submit from a login node")
    kinds = _output("srun", "--mpi=list")
    if kinds is None or "pmi" not in kinds:
        return warning(f"{text}; srun cannot start MPI ranks", "start ranks with mpirun inside the job")
    names = [word for line in kinds.splitlines() for word in line.split() if "pmi" in word]
    return ok(f"{text}, srun --mpi: {', '.join(dict.fromkeys(name.strip(',') for name in names))}")


def disk_here() -> Finding:
    """Room for runs in the current directory."""
    where = Path.cwd()
    found = _disk(where, "runs")
    if file_system(where) in NFS and not found.remedy:
        return note(found.result, "collective writes to NFS are slow: prefer the parallel file system")
    return found


def disk_temporary() -> Finding:
    """Room for MPI's and Slurm's temporary files."""
    wanted = os.environ.get("TMPDIR", "")
    if wanted and not Path(wanted).is_dir():
        return warning(f"TMPDIR={wanted} is no directory", f"mkdir -p {wanted}, or unset TMPDIR")
    where = Path(tempfile.gettempdir())
    found = _disk(where, "temporary files")
    if file_system(where) in NETWORK_TYPES and not found.remedy:
        return warning(found.result, "MPI's shared files there are slow: export TMPDIR=/tmp")
    return found


def datasets() -> Finding:
    """Whether the real data set can be read."""
    from hpcopt.problems.data.sources import open_dataset

    try:
        data = open_dataset("fashion-mnist")
    except UserError as error:
        return note("fashion-mnist is not here", str(error).partition(". ")[2] or str(error))
    return ok(f"fashion-mnist: {len(data.train)} + {len(data.test or ())} images")


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that a path lies on, as the kernel calls it."""
    path, kind, depth = path.resolve(), "unknown", -1
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split()
        mount = Path(point.replace("\\040", " "))
        # of two mounts on the same point the later one hides the earlier
        if path.is_relative_to(mount) and len(mount.parts) >= depth:
            kind, depth = found, len(mount.parts)
    return kind


def memory_bytes() -> float:
    """Memory that is free on this node, within what the job may use [bytes]."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min([free, *_limits()])


def _limits() -> list[float]:
    """Memory limits of this process's control groups, of either version of them."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            file = root / group.lstrip("/") / name
            text = file.read_text().strip() if file.is_file() else "max"
            found += [float(text)] if text.isdigit() else []
    return found


def _disk(where: Path, use: str) -> Finding:
    kind, free = file_system(where), shutil.disk_usage(where).free
    nature = "network" if kind in NETWORK_TYPES else "local"
    text = f"{free / GIB:.1f} GiB free in {where} ({kind}, {nature})"
    if free < LEAST_FREE:
        return warning(text, f"make room for {use}, or go to another directory")
    return ok(text)


def _output(*command: str) -> str | None:
    """What a command says; None if it fails or says nothing in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
    # srun lists its plugins on stderr
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else None


_DISK = "a file system does not answer: ask the site's help desk, or start in another directory"
SOFTWARE = Probe("software", software, _SOFTWARE, seconds=30.0)
GPU = Probe("GPU", gpu, 'export HPCOPT_CUDA_AWARE=0, or [run] device = "cpu"', seconds=30.0)
SLURM = Probe("Slurm", slurm, "ask the site's help desk", Where.FIRST, seconds=4 * SLURM_SECONDS)
DISKS = (
    Probe("disk here", disk_here, _DISK, Where.FIRST),
    Probe("disk for temporary files", disk_temporary, _DISK),
)
DATA = Probe("data", datasets, "set HPCOPT_DATA to a directory that this node can read", Where.FIRST)
