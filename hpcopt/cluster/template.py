"""The one batch script. ``@@{name}`` is filled in by `render`; everything else is what the user reads."""

from __future__ import annotations

import string


class BatchScript(string.Template):
    """A template that leaves the shell's own $ alone."""

    delimiter = "@@"


SCRIPT = BatchScript(
    r"""#!/bin/bash
# Written by `hpcopt submit`. By hand, edited or not, for the first time or to go on with a run that stopped:
#   mkdir -p @@{top} && sbatch FILE
@@{directives}

@@{what}
max_requeues=@@{max_requeues} # how often the job goes back into the queue by itself
max_retries=@@{max_retries}   # how often so after a failure without a new checkpoint

# --- the environment: threads, modules, the virtual environment
export HPCOPT_SIGNAL_SECONDS=@@{signal_seconds} # a run whose rounds take longer says so
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
@@{environment}
# since Slurm 22.05 srun does not take this over from the job by itself
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# under sbatch --export=NONE srun would hide all of the above from the ranks
unset SLURM_EXPORT_ENV

# --- one JSON line per event in $directory/status, which is replaced as a whole: nobody reads half a line
restart=${SLURM_RESTART_COUNT:-0}
job=$SLURM_JOB_ID
# the number of an array's last task is also that of the whole array
[ -z "$SLURM_ARRAY_TASK_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

@@{newest}

record() { # STATE CODE
  {
    cat "$directory/status" 2>/dev/null
    printf '{"job": "%s", "restart": %d, "state": "%s", "code": %s, "checkpoint": "%s", "time": "%s"}\n' \
      "$job" "$restart" "$1" "$2" "$(newest)" "$(date -u +%FT%TZ)"
  } >"$directory/status.partial"
  sync "$directory/status.partial"
  mv -f "$directory/status.partial" "$directory/status"
}

requeue() { # STATE: back into the queue; returns where that is not to be
  [ "$restart" -lt "$max_requeues" ] || return
  for _ in 1 2 3; do
    case $(timeout 30 squeue --noheader --jobs="$job" --format=%T) in
      RUNNING) break ;;
      "") sleep 10 ;; # Slurm's controller does not answer
      *) return ;;    # after scancel or past the time limit: what was ended stays ended
    esac
  done
  record "$1" "$code" # first, because the next line ends this script
  timeout 60 scontrol requeue "$job" && exit "$code"
}

# --- run, or go on
mkdir -p "$directory" || exit 1
if ! command -v hpcopt >/dev/null; then
  echo "hpcopt is not on PATH: see «the environment» in this script" >&2
  record failed 127
  exit 127
fi
record started null
@@{command}
@@{launch}

# --- how it ended
case $code in
  0) record "done" 0 ;;
  2 | 3 | 4) record failed "$code" ;; # the input is wrong, or the loss not finite: no better next time
  75)
    requeue requeued
    record stopped 75
    ;;
  *) # a lost rank or node, or a bug; one that shows before the run has begun is not tried again
    same="\"job\": \"$job\", .*\"state\": \"retried\", .*\"checkpoint\": \"$(newest)\""
    retries=$(grep -c "$same" "$directory/status")
    if @@{begun} || [ "$code" -gt 128 ]; then
      [ "$retries" -ge "$max_retries" ] || requeue retried
    fi
    record failed "$code"
    ;;
esac
exit "$code"
"""
)

ONE_RUN = {
    "newest": r"""newest() {
  local files=("$directory"/checkpoints/round-*.h5)
  # by number: names are longer from round 100,000,000 on
  [ ! -e "${files[0]}" ] || printf '%s\n' "${files[@]##*/}" | sort -V | tail -n 1
}""",
    "command": """\
if [ -e "$directory/config.toml" ]; then
  command=(hpcopt resume "$directory" "${settings[@]}")
else
  command=(hpcopt run "$config" --out "$directory" "${settings[@]}")
fi""",
    "begun": '[ -e "$directory/config.toml" ]',
}

# A sweep that comes to its end leaves no claims: whatever failed in it, it does not go on by itself.
SWEEP = {
    "newest": r"""newest() { # a number that tells how far all cases are
  find "$directory" \( -name 'round-*.h5' -o -path '*/failed/*.json' \) | sort | cksum | cut -d ' ' -f 1
}""",
    "command": """\
command=(hpcopt sweep "$config" --out "$directory" "${settings[@]}" "${cases[@]}")""",
    "begun": '[ -e "$directory/claims" ]',
}

# Slurm sends the signal to the ranks (no B: in --signal). srun does not end before they do, and bash runs the
# trap after srun; the shell only has to survive. Ranks end together: who is left a minute later waits for a
# lost one. --kill-on-bad-exit would kill ranks that are about to end with 75 by themselves, and hide the 75.
SRUN = """\
# the signals are for the ranks; this shell has to live until it has told how they ended
trap : @@{signals}
srun --mpi=@@{mpi} --kill-on-bad-exit=0 --wait=60@@{options} "${command[@]}"
code=$?"""

# Slurm does not know ranks that mpirun starts in the batch script's own step, so it signals the shell (B:),
# which tells mpirun, which tells the ranks. The same for TERM, at which mpirun would end them at once.
MPIRUN = """\
trap 'kill -@@{signal} "$launcher"' @@{signals}
mpirun -n $((SLURM_JOB_NUM_NODES * @@{tasks}))@@{options} "${command[@]}" &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done # a signal ends wait too early
wait "$launcher"
code=$?"""


# A command that starts its ranks itself, in the batch script's own step: as under mpirun the signal is for
# the shell (B:), which tells it, and it tells its launcher.
ITSELF = """\
trap 'kill -USR1 "$study"' USR1 TERM
"${command[@]}" &
study=$!
while kill -0 "$study" 2>/dev/null; do wait "$study"; done # a signal ends wait too early
wait "$study"
code=$?"""
