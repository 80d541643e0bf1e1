#!/usr/bin/env bash
# A SLURM cluster of one node, on this machine's loopback: `tests/cluster/slurm.sh start`, `stop`. Debian or Ubuntu, as root.
# `start` installs slurm-wlm and munge where they are missing, and prints SLURM_CONF=... for the commands that use the cluster.
set -euo pipefail
place=${CRUX_TEST_SLURM:-/tmp/crux-test-slurm}

alive() {
    local pid
    pid=$(cat "$place/$1.pid" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null
}

stop() {
    local name
    for name in slurmd slurmctld munged; do
        ! alive $name || kill "$(cat "$place/$name.pid")" 2>/dev/null || true
    done
    for _ in $(seq 50); do # their sockets and state are free only then
        alive slurmd || alive slurmctld || alive munged || break
        sleep 0.2
    done
    rm -rf "$place"
}

start() {
    if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
        apt-get update -qq
        # the packages' own services stay off: this cluster has its own
        local policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap "rm -f $policy" EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
        fi
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge
    fi >&2
    stop
    mkdir -p "$place/state" "$place/spool"
    chmod 755 "$place"
    (umask 077 && head -c 1024 /dev/urandom >"$place/munge.key")
    munged --force --key-file="$place/munge.key" --socket="$place/munge.socket" --pid-file="$place/munged.pid" \
        --log-file="$place/munged.log" --seed-file="$place/munge.seed" >&2
    cat >"$place/slurm.conf" <<EOF
ClusterName=crux
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldParameters=enable_configless
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
CryptoType=crypto/munge
SlurmctldPort=${CRUX_TEST_SLURM_PORT:-26817}
SlurmdPort=$((${CRUX_TEST_SLURM_PORT:-26817} + 1))
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
MinJobAge=600
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SchedulerParameters=sched_interval=5,batch_sched_delay=1
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    export SLURM_CONF=$place/slurm.conf
    slurmctld >&2
    slurmd >&2
    for _ in $(seq 100); do
        sinfo -h -t idle 2>/dev/null | grep -q . && break
        sleep 0.3
    done
    sinfo >&2
    sinfo -h -t idle | grep -q . || { tail -5 "$place"/*.log >&2; exit 1; }
    echo "SLURM_CONF=$place/slurm.conf"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
