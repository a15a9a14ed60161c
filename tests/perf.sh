#!/bin/bash
# perf.sh BIN: the measurements of SPECIFICATION.md, one after the other. Root. Nothing else should run on the machine.
set -euo pipefail
bin=$1 dir=$(mktemp -d)
trap 'kill "$agent" 2>/dev/null || true; rm -rf "$dir"' EXIT
agent=
start_agent() {
  "$bin/sockeye" --control-socket "$dir/ctl.sock" > /dev/null & agent=$!
  for _ in $(seq 100); do "$bin/ctl" --socket "$dir/ctl.sock" ports > /dev/null 2>&1 && return; sleep 0.1; done
  echo "perf.sh: the agent does not answer" >&2; exit 1
}
stop_agent() { kill "$agent"; wait "$agent" || true; agent=; }

echo "== $(uname -r), $(nproc) CPUs, $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-)"
echo "== overhead"; "$bin/perf" overhead
echo "== saturate"; "$bin/perf" saturate
echo "== idle"; start_agent; sleep 20; "$bin/ctl" --socket "$dir/ctl.sock" stats | grep -E '^  (cpu|memory|kernel_memory) '; stop_agent
for run in 1 2 3 4 5; do
  echo "== churn, run $run"; start_agent; "$bin/perf" --socket "$dir/ctl.sock" churn --connections 300000
  "$bin/ctl" --socket "$dir/ctl.sock" stats | grep -E '^  (memory|sweep_time|sweep_sockets) '; stop_agent
done
echo "== accuracy"; start_agent; "$bin/perf" --socket "$dir/ctl.sock" accuracy; stop_agent
