#!/bin/bash
# podman.sh up|down DIR NETNS: a real Podman, with its service at unix://DIR/podman.sock, in an existing network namespace, with
# the local image ci.local/bb:1 (busybox). Nothing of it is left after `down`. DIR/podman runs it.
# Needs root and Debian's podman runc busybox-static iproute2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=$1 W=$2 NS=$3
if [ "$what" = down ]; then
  "$W/podman" rm -fa -t 0 >/dev/null 2>&1 || true
  "$W/podman" pod rm -fa >/dev/null 2>&1 || true
  [ -f "$W/service.pid" ] && kill "$(cat "$W/service.pid")" 2>/dev/null || true
  { grep -o "$W[^ ]*" /proc/self/mounts || true; } | sort -r | while read -r m; do umount -l "$m" 2>/dev/null || true; done
  rmdir "$(grep -m1 ' cgroup2 ' /proc/self/mounts | cut -d' ' -f2)"/libpod_parent/* 2>/dev/null || true
  exit 0
fi
rm -rf "$W"; mkdir -p "$W/img/bin"; cd "$W"
cp /bin/busybox img/bin/; for a in sh sleep wget httpd mkdir head cat; do ln -s busybox img/bin/$a; done
/usr/bin/python3 "$here/mkimage.py" img ci.local/bb:1 bb.tar
# crun refuses a host with both versions of cgroups, and such a one may have no controllers of version 2.
cat > containers.conf <<T
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
T
cat > podman <<T
#!/bin/sh
# Not \`ip netns exec\`: it remounts /sys and hides the cgroup mounts.
CONTAINERS_CONF=$W/containers.conf exec nsenter --net=/run/netns/$NS podman --root "$W/root" --runroot "$W/run" --tmpdir "$W/tmp" "\$@"
T
chmod +x podman
nsenter --net="/run/netns/$NS" ip link set lo up
./podman load -qi bb.tar
setsid ./podman system service --time=0 "unix://$W/podman.sock" > service.log 2>&1 & echo $! > service.pid
for _ in $(seq 100); do [ -S podman.sock ] && break; sleep .1; done
echo "ready: podman unix://$W/podman.sock, netns $NS"
