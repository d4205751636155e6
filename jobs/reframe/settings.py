"""The machines for ReFrame: the cluster in a box (`tools/cluster`), this one, and a site to fill in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# threads, modules, the virtual environment; what jobs are started with everywhere else
ENVIRONMENT = [f". {ROOT}/jobs/env.sh"]
# one launch at a time: others would disturb it
HPCOPT = {"environs": ["hpcopt"], "prepare_cmds": ENVIRONMENT, "max_jobs": 1}

site_configuration = {
    "systems": [
        {
            "name": "box",
            "descr": "tools/cluster: two hosts with a real Slurm, for trying; no accounting, hence squeue",
            "hostnames": [],
            "partitions": [
                HPCOPT
                | {
                    "name": "main",
                    "scheduler": "squeue",
                    "launcher": "srun",
                    # many more ranks than cores there
                    "env_vars": [["OMPI_MCA_mpi_yield_when_idle", "1"]],
                }
            ],
        },
        {
            "name": "here",
            "descr": "this machine, without a queue",
            "hostnames": [],
            "partitions": [HPCOPT | {"name": "cores", "scheduler": "local", "launcher": "mpirun"}],
        },
        {
            # to be filled in; `hpcopt doctor` tells which launcher and which --mpi fit
            "name": "site",
            "descr": "your cluster",
            "hostnames": [],
            # "modules_system": "lmod",
            "partitions": [
                HPCOPT
                | {
                    "name": "standard",
                    "scheduler": "slurm",  # squeue, where sacct has no answer
                    "launcher": "srun",
                    "env_vars": [["SLURM_MPI_TYPE", "pmix"]],  # srun's --mpi
                    "access": ["--partition=standard"],  # and --account=…, --qos=…, --exclusive
                    # "modules": ["openmpi", "hdf5"],
                }
            ],
        },
    ],
    "environments": [{"name": "hpcopt"}],
    "logging": [
        {
            "handlers": [
                {"type": "stream", "name": "stdout", "level": "info", "format": "%(message)s"},
            ],
        }
    ],
}
