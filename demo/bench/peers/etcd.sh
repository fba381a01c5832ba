# Sourced by run: etcd, three members, asked over gRPC at the leader by a
# client of our own (etcd.c), each of whose threads keeps its connection.

# Its line of `endpoint status` says true where it is asked who leads.
etcd_leader() {
  etcd_port=$(ETCDCTL_API=3 timeout 3 etcdctl --endpoints="$etcd_all" \
    endpoint status 2>/dev/null |
    awk -F', ' '$5 == "true" { sub(/.*:/, "", $1); print $1 }')
  [ -n "$etcd_port" ]
}

etcd_start() {
  etcd_all='' cluster=''
  for n in 1 2 3; do
    eval "c$n=$("$bench" --free-port) p$n=$("$bench" --free-port)"
    eval "cluster=\$cluster,m$n=http://127.0.0.1:\$p$n"
    eval "etcd_all=\$etcd_all,127.0.0.1:\$c$n"
  done
  cluster=${cluster#,}
  etcd_all=${etcd_all#,}
  for n in 1 2 3; do
    eval "client=http://127.0.0.1:\$c$n peer=http://127.0.0.1:\$p$n"
    # shellcheck disable=SC2154
    node "$dir/etcd$n.log" etcd --name m$n --data-dir "$dir/etcd$n" \
      --listen-client-urls "$client" --advertise-client-urls "$client" \
      --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
      --initial-cluster "$cluster" --initial-cluster-state new
  done
  until_true etcd_leader
}

etcd_cluster() {
  installed etcd '1 16 64' etcd-server etcd-client || return
  if ! etcd_start; then
    refuse etcd '1 16 64' "no leader: $(last "$dir/etcd1.log")"
    return
  fi
  for clients in 1 16 64; do
    if interruptible "$bench" --etcd "$etcd_port" "$clients" "$seconds" \
      >"$dir/etcd.out" 2>"$dir/etcd.err"; then
      echo "etcd|$clients|$(tr ' ' '|' <"$dir/etcd.out")"
    else
      refuse etcd "$clients" "$(last "$dir/etcd.err")"
    fi
  done
}
