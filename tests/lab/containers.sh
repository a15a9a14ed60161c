#!/bin/bash
# containers.sh up|dockerd|containerd|down DIR NETNS: a real containerd (CRI) and a real dockerd that shares it, in an existing network
# namespace, with two local images: ci.local/pause:1 and ci.local/bb:1 (busybox). Nothing of them is left after `down`.
# Needs root and Debian's docker.io containernetworking-plugins busybox-static gcc iproute2 curl.
# Then: Docker at unix://DIR/docker.sock, CRI at unix://DIR/containerd.sock.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=$1 W=$2 NS=$3
export DOCKER_HOST=unix://$W/docker.sock
if [ "$what" = down ]; then
  for c in $(docker ps -aq 2>/dev/null); do docker rm -f "$c" >/dev/null || true; done
  for n in k8s.io default; do
    for t in $(ctr -a "$W/containerd.sock" -n $n tasks ls -q 2>/dev/null); do ctr -a "$W/containerd.sock" -n $n tasks rm -f "$t" || true; done
  done
  for f in dockerd.pid containerd.pid; do [ -f "$W/$f" ] && kill "$(cat "$W/$f")" 2>/dev/null || true; done
  sleep 1; { grep -o "$W[^ ]*" /proc/self/mounts || true; } | sort -r | while read -r m; do umount -l "$m" 2>/dev/null || true; done
  for d in docker kubepods/burstable kubepods k8s.io default; do rmdir "$(grep -m1 ' cgroup2 ' /proc/self/mounts | cut -d' ' -f2)/$d" 2>/dev/null || true; done
  exit 0
fi
IN="nsenter --net=/run/netns/$NS"   # not `ip netns exec`: it remounts /sys and hides the cgroup mounts
start_dockerd() {
  setsid $IN dockerd --containerd "$W/containerd.sock" --data-root "$W/docker" --exec-root "$W/dexec" --pidfile "$W/dockerd.pid" -H "unix://$W/docker.sock" >> "$W/dockerd.log" 2>&1 &
}
start_containerd() {
  cd "$W"
  setsid $IN containerd -c containerd.toml >> containerd.log 2>&1 & echo $! > containerd.pid
  for _ in $(seq 100); do ctr -a "$W/containerd.sock" version >/dev/null 2>&1 && return; sleep .1; done
  tail -n 5 containerd.log
  return 1
}
wait_dockerd() {
  for _ in $(seq 200); do curl -sf --unix-socket "$W/docker.sock" http://d/_ping >/dev/null && return; sleep .1; done
  return 1
}
if [ "$what" = dockerd ]; then start_dockerd; wait_dockerd; exit 0; fi   # again, after it was killed
if [ "$what" = containerd ]; then start_containerd; exit 0; fi
rm -rf "$W"; mkdir -p "$W"/{cni,img/bin,pause}; cd "$W"
$IN ip link set lo up
cp /bin/busybox img/bin/; for a in sh sleep wget httpd nc cat; do ln -s busybox img/bin/$a; done
printf '#include <unistd.h>\nint main(){for(;;)pause();}' | gcc -static -Os -s -xc -o pause/pause -
/usr/bin/python3 "$here/mkimage.py" pause ci.local/pause:1 pause.tar /pause; /usr/bin/python3 "$here/mkimage.py" img ci.local/bb:1 bb.tar
cat > containerd.toml <<T
version = 2
root = "$W/root"
state = "$W/state"
[grpc]
  address = "$W/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "ci.local/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$W/cni"
T
cat > cni/10.conflist <<T
{"cniVersion":"0.4.0","name":"podnet","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","dataDir":"$W/ipam","ranges":[[{"subnet":"10.88.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}]}
T
start_containerd
start_dockerd
for t in pause bb; do ctr -a "$W/containerd.sock" -n k8s.io images import $t.tar >/dev/null; done
wait_dockerd
$IN iptables -P FORWARD ACCEPT   # Docker forbids what does not go to its own containers
docker load -qi bb.tar >/dev/null
echo "ready: docker unix://$W/docker.sock, CRI unix://$W/containerd.sock, netns $NS"
