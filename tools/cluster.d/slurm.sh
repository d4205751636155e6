# shellcheck shell=bash
# Slurm's daemons and their files. Sourced by tools/cluster, after network.sh.
# shellcheck disable=SC2154

export SLURM_CONF=$dir/etc/slurm.conf

write_files() { # N NET CPUS PARTITION-OPTIONS
  local name memory
  mkdir -p "$dir/etc" "$dir/munge" "$dir/log" "$dir/state" "$dir/nodes"
  memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  sed -e "s|@DIR@|$dir|g; s|@N@|$1|g; s|@NET@|$2|g; s|@CPUS@|$3|g; s|@PARTITION@|$4|g; s|@MEMORY@|$memory|g" \
    -e "s|@PORT@|$((16000 + ${2##*.}))|g" "$here/cluster.d/slurm.conf" >"$SLURM_CONF"
  # a GPU is a device file to Slurm; these are always there
  printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$dir/etc/gres.conf"
  {
    printf '127.0.0.1 localhost\n%s.254 head\n' "$2"
    for name in $(names "$1"); do printf '%s.%s %s\n' "$2" "${name#n}" "$name"; done
  } >"$dir/etc/hosts"
  sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf >"$dir/etc/nsswitch.conf" 2>/dev/null || true
  # what Open MPI starts instead of ssh: AGENT HOST COMMAND-FOR-A-SHELL. A path without spaces, unlike this folder's, perhaps
  cat >"$dir/agent" <<AGENT
#!/bin/sh
host=\$1
shift
HPCOPT_CLUSTER_DIR='$dir' exec $(printf '%q' "$here/cluster") exec --host "\$host" -- sh -c "\$*"
AGENT
  chmod +x "$dir/agent"
}

start_munge() {
  local munge=$dir/munge
  (umask 077 && head -c 1024 /dev/urandom >"$munge/key")
  # as root and with --force, it lives in any folder; nobody but root is meant to talk to this cluster
  background munged munged --foreground --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
    --log-file="$dir/log/munge" --seed-file="$munge/seed"
  until_true 10 test -S "$munge/socket" || fail "munged did not start"
}

start_slurmctld() { # with a host name, and a file that has its address, of its own
  background slurmctld unshare --uts --mount \
    sh -ec "hostname head; mount --bind $dir/etc/hosts /etc/hosts; exec slurmctld -D -f $SLURM_CONF"
}

slurmd_of() { # NAME: prints its slurmd
  local pid
  for pid in $(processes_of "$(netns_of "$1")"); do
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != slurmd ] || { printf '%s\n' "$pid"; return; }
  done
  return 1
}

start_slurmd() { # NAME OPTIONS…
  (background "slurmd.$1" "$here/cluster" exec --host "$1" -- slurmd -D -f "$SLURM_CONF" "${@:2}")
}

daemons() { # NAME…: prints the processes on the head that belong to this cluster; all if no name is given
  local folder comm argument
  [ $# -gt 0 ] || set -- slurmctld slurmscriptd munged
  for folder in /proc/[0-9]*; do
    comm=$(cat "$folder/comm" 2>/dev/null) || continue
    [[ " $* " == *" $comm "* ]] || continue
    while IFS= read -r -d '' argument; do
      case "$argument" in
        "$SLURM_CONF" | "--socket=$dir/munge/socket") printf '%s\n' "${folder#/proc/}"; break ;;
      esac
    done 2>/dev/null <"$folder/cmdline"
  done
}

states() { timeout 5 sinfo --noheader --Node --partition=main --format='%N %T' 2>/dev/null; }
idle() { [ "$(states | grep -c ' idle$')" = "$1" ]; }                # N: are all nodes idle?
# not grep -q: it may end its input early, and pipefail takes that for a no
serving() { states | grep -xE "$1 (idle|mixed|allocated|completing)" >/dev/null; } # NAME: may it have jobs?

show_logs() {
  local log
  for log in "$dir"/log/*.out; do
    [ ! -s "$log" ] || { printf -- '--- %s\n' "$log"; tail -n 8 "$log"; }
  done >&2
}
