# shellcheck shell=bash
# Hosts as namespaces, and the links between them. Sourced by tools/cluster, which sets:
# dir (the cluster's directory), id (six characters that belong to it; part of every name made here).
# shellcheck disable=SC2154

bridge=hpc-$id
netns_of() { printf 'hpc-%s-%s' "$id" "$1"; }
veth_of() { printf 'hpc%s%s' "$id" "$1"; } # at most 15 characters
names() { local k; for ((k = 1; k <= $1; k++)); do printf 'n%d\n' "$k"; done; }
# what there is, whatever the files say: a crash may have come in between
namespaces() { ip netns list 2>/dev/null | awk -v mine="$(netns_of n)" 'index($1, mine) == 1 { print $1 }'; }
links() { ip -o link show | awk -F': ' -v mine="hpc$id" 'index($2, mine) == 1 { sub(/@.*/, "", $2); print $2 }'; }

pick_network() { # prints the first three numbers of a /24 that no route of this machine leads into
  local start=$((16#${id:0:2})) i net
  if [ -n "${HPCOPT_CLUSTER_NET:-}" ]; then
    [[ $HPCOPT_CLUSTER_NET =~ ^(10\.[0-9]+|192\.168|172\.(1[6-9]|2[0-9]|3[01]))\.[0-9]+$ ]] ||
      refuse "HPCOPT_CLUSTER_NET is the first three numbers of a private network, like 10.77.5; not «$HPCOPT_CLUSTER_NET»"
    free_network "$HPCOPT_CLUSTER_NET" || refuse "this machine has a route to $HPCOPT_CLUSTER_NET.0/24; choose another HPCOPT_CLUSTER_NET"
    printf '%s\n' "$HPCOPT_CLUSTER_NET"
    return
  fi
  for ((i = 0; i < 256; i++)); do
    net=10.77.$(((start + i) % 256))
    if free_network "$net"; then printf '%s\n' "$net"; return; fi
  done
  refuse "this machine has a route to all of 10.77.0.0/16; name a free /24: HPCOPT_CLUSTER_NET=10.99.5 (or another)"
}

free_network() { # leads no route but the default one there? (also false for the machine's own addresses)
  local routes
  routes=$(ip -4 route show table all root "$1.0/24" && ip -4 route show table all match "$1.0/24") || return 1
  ! grep -v '^default' <<<"$routes" | grep . >/dev/null
}

make_network() { # NET N
  local net=$1 name
  ip link add "$bridge" type bridge
  ip link set "$bridge" addrgenmode none # no IPv6: nobody should try its addresses
  ip link set "$bridge" up
  ip address add "$net.254/24" dev "$bridge"
  for name in $(names "$2"); do
    ip netns add "$(netns_of "$name")"
    ip link add "$(veth_of "$name")" type veth peer name eth0 netns "$(netns_of "$name")"
    ip link set "$(veth_of "$name")" master "$bridge" addrgenmode none up
    ip -n "$(netns_of "$name")" link set eth0 addrgenmode none up
    ip -n "$(netns_of "$name")" address add "$net.${name#n}/24" dev eth0
  done
}

start_node() { # NAME: its namespaces, held by a process that sleeps
  mkdir -p "$dir/nodes/$1/spool"
  background "node.$1" nsenter --net="/run/netns/$(netns_of "$1")" \
    unshare --mount --uts --ipc "$here/cluster.d/node" "$dir" "$1"
}

holder_of() { # NAME: prints the process that holds its namespaces
  local pid
  pid=$(cat "$dir/nodes/$1/pid" 2>/dev/null) || return 1
  [ "$(tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | head -n 1)" = "hpcopt-cluster-$1" ] || return 1
  printf '%s\n' "$pid"
}

enter() { # NAME COMMAND…: replaces this process by the command on that host, in the same folder
  local pid
  pid=$(holder_of "$1") || fail "there is no host $1 (tools/cluster status)"
  # shellcheck disable=SC2016  # expanded in there
  exec nsenter --target "$pid" --net --uts --ipc --mount \
    bash -c 'cd "$0" 2>/dev/null || { echo "cluster: $(hostname) has no folder $0 (its /tmp is its own)" >&2; exit 2; }; exec "$@"' "$PWD" "${@:2}"
}

set_rate() { # RATE N BURST: of every link, in both directions
  local name
  for name in $(names "$2"); do
    shape "$1" "$3" tc qdisc -- dev "$(veth_of "$name")"
    shape "$1" "$3" tc -n "$(netns_of "$name")" qdisc -- dev eth0
  done
}

of_link() { # WORD: what tc says behind it of a link; all are alike
  tc qdisc show dev "$(veth_of n1)" |
    awk -v word="$1" '/^qdisc tbf/ { for (i = 1; i < NF; i++) if ($i == word) value = $(i + 1) } END { print value ? value : "none" }'
}

control() { # how the hosts' connections react to losses, and whether they start slowly again after a pause
  local place=/proc/sys/net/ipv4
  (enter n1 sh -c "printf '%s, slow start after idle %s' \"\$(cat $place/tcp_congestion_control)\" \"\$(cat $place/tcp_slow_start_after_idle)\"")
}

shape() { # RATE BURST TC-COMMAND… -- DEVICE…
  local rate=$1 burst=$2 command=()
  shift 2
  while [ "$1" != -- ]; do command+=("$1"); shift; done
  shift
  if [ "$rate" != none ]; then
    "${command[@]}" replace "$@" root tbf rate "$rate" burst "$burst" latency 1s
  elif [[ $("${command[@]}" show "$@") == "qdisc tbf"* ]]; then
    "${command[@]}" del "$@" root
  fi
}

processes_of() { ip netns pids "$1" 2>/dev/null; } # NAMESPACE

kill_all() { # SIGNAL, process ids on stdin
  local pid
  while read -r pid; do kill "-$1" "$pid" 2>/dev/null || true; done
}

remove_network() {
  local namespace link
  for namespace in $(namespaces); do
    until_true 5 gone processes_of "$namespace" || say "processes in $namespace do not end"
    ip netns delete "$namespace"
  done
  for link in $(links); do ip link delete "$link" 2>/dev/null || true; done # a veth goes with its peer
  if ip link show "$bridge" >/dev/null 2>&1; then ip link delete "$bridge"; fi
}

gone() { # COMMAND that lists processes: kills them; true when there are none
  local pids
  pids=$("$@")
  [ -n "$pids" ] || return 0
  kill_all KILL <<<"$pids"
  return 1
}
