#!/bin/bash
# run.sh: the core of the end-to-end tests on Debian's 6.1, 6.12 and newest kernels, at 4 and 8 CPUs, in emulated guests.
# BIN holds the programs (default target/release). KERNELS, SMPS and TESTS narrow it down. Needs root, and QEMU 9 or newer
# (Debian 12: qemu-system-x86 from bookworm-backports).
set -euo pipefail
cd "$(dirname "$0")/../.."
repo=$PWD bin=${BIN:-$PWD/target/release} work=$PWD/target/kernels pay=$PWD/target/kernels/payload
for tool in qemu-system-x86_64 busybox cpio depmod bc unxz; do
  command -v $tool >/dev/null || { echo "run.sh: $tool is missing: apt-get install qemu-system-x86 busybox-static kmod cpio bc xz-utils" >&2; exit 1; }
done
tests/kernels/fetch.sh "$work"

# The guest gets the programs, the tests, and Debian's Python, with the libraries that they need.
rm -rf "$pay"
tests=$(cargo test -q -p sockeye-tests --no-run --message-format=json |
  /usr/bin/python3 -c 'import json,sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("profile", {}).get("test") and m.get("executable") and "test" in m["target"]["kind"]: print(m["target"]["name"], m["executable"])')
mkdir -p "$pay/opt/tests" "$pay/opt/bin" "$pay$repo/tests" "$pay/etc"
gcc -O2 -o "$pay/opt/bin/tundelay" tests/programs/tundelay.c
# Without what only a debugger reads: all of it lies in the guest's memory.
for program in sockeye ctl brief; do strip -o "$pay/opt/bin/$program" "$bin/$program"; done
while read -r name path; do
  case " ${TESTS:=verifier records sweep bytes owners load} " in *" $name "*) strip -o "$pay/opt/tests/$name" "$path" ;; esac
done <<<"$tests"
cp -r tests/oracle tests/programs "$pay$repo/tests/"
echo 'root:x:0:0:root:/root:/bin/sh' > "$pay/etc/passwd"
stdlib=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$pay$stdlib" "$pay/usr/lib/python3/dist-packages"
cp -r "$stdlib/." "$pay$stdlib/"
rm -rf "$pay$stdlib"/{test,idlelib,tkinter,lib2to3,ensurepip,distutils,config-*,pydoc_data}
find "$pay$stdlib" -name __pycache__ -prune -exec rm -rf {} +
cp -r /usr/lib/python3/dist-packages/zmq "$pay/usr/lib/python3/dist-packages/"
tests/kernels/mkpay.sh "$pay" /usr/bin/python3 ip nsenter setpriv unshare chrt taskset bpftool id "$pay"/opt/bin/* "$pay"/opt/tests/* \
  $(find "$pay$stdlib/lib-dynload" "$pay/usr/lib/python3/dist-packages/zmq" -name '*.so')

export MODS="veth tun" MEM=3072 VMTIMEOUT=${VMTIMEOUT:-900}
failed=0
for kernel in ${KERNELS:-bookworm trixie sid}; do
  for smp in ${SMPS:-4 8}; do
    version=$(basename "$work/$kernel"/*.done .done)
    echo "== $version, $smp CPUs"
    if tests/kernels/vmrun.sh "$work/$kernel" "$smp" "$pay" '
      modprobe tun; modprobe veth
      export SOCKEYE_BIN=/opt/bin SOCKEYE_TEST_SLOW=3 PATH=/usr/sbin:/usr/bin:/sbin:/bin
      rc=0
      /opt/bin/sockeye check || rc=1
      for test in '"$TESTS"'; do
        timeout 600 /opt/tests/$test --test-threads=1 2>&1 || rc=1
      done
      exit $rc'; then echo "passed: $version, $smp CPUs"; else echo "FAILED: $version, $smp CPUs"; failed=1; fi
  done
done
exit $failed
