#!/bin/bash
# Starts one process on every host of a list: configs/launch/ssh.sh HOSTS CONFIG [--field value ...]
# HOSTS is a file with one host per line, the coordinator first; all hosts see the same folder. If one
# process ends in error, the others are stopped; the same command continues from the last checkpoint.
set -u
mapfile -t hosts < "$1"
config=$2
shift 2
port=${PORT:-7733}
pids=()
for index in "${!hosts[@]}"; do
    ssh -tt "${hosts[$index]}" "cd $(printf %q "$PWD") && goat-jax train --quiet" \
        --coordinator "${hosts[0]}:$port" --processes "${#hosts[@]}" --process "$index" \
        --config "$(printf %q "$config")" --mesh.fsdp -1 "$(printf '%q ' "$@")" &
    pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' EXIT
code=0
for _ in "${pids[@]}"; do
    wait -n || { code=$?; break; }
done
exit "$code"
