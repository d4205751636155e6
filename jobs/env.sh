# shellcheck shell=bash
# The environment of every hpcopt job: source it in a shell or a batch script.
# On a cluster with modules, load them here (or set HPCOPT_MODULES="openmpi hdf5-parallel").

hpcopt_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${HPCOPT_MODULES:-}" ]; then
  # shellcheck disable=SC2086  # a list of names
  module load $HPCOPT_MODULES
fi
# shellcheck disable=SC1091
[ -n "${VIRTUAL_ENV:-}" ] || . "${HPCOPT_VENV:-$hpcopt_root/.venv}/bin/activate"

# one torch thread per rank, unless the job gives each rank more
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# large tensors in huge pages: MPI's copies between processes are up to a fifth faster
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}
# since Slurm 22.05 srun does not take this over from the job by itself
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Open MPI's wheel complains about every window through UCX; its own transports work
export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx}
# where there is no fabric, libfabric's search for one costs every start a second
if [ ! -e /sys/class/infiniband ] && [ ! -e /sys/class/cxi ]; then export OMPI_MCA_btl=${OMPI_MCA_btl:-^ofi}; fi
# containers and test machines: mpirun as root, and more ranks than cores
if [ "$(id -u)" = 0 ]; then
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
unset hpcopt_root
