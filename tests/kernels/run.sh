#!/bin/bash
# run.sh: the core of the end-to-end tests on Debian's 6.1, 6.12 and newest kernels, at 4 and 8 CPUs, in emulated
# guests. BIN holds the programs (default target/release). KERNELS, SMPS and TESTS narrow it down. Needs root, and
# QEMU 9 or newer (Debian 12: qemu-system-x86 from bookworm-backports).
#
# All that is ours lies in the guest at /opt/sockeye: bin (programs), e2e (test binaries), tests (oracle and programs).
# The binaries look for the latter where this clone lies, and that may be anywhere, also below /tmp, where the guest
# mounts a file system of its own when it starts. So the guest makes that place itself, as a link, after it has mounted
# everything.
set -euo pipefail
cd "$(dirname "$0")/../.."
repo=$PWD bin=${BIN:-$PWD/target/release} work=$PWD/target/kernels pay=$PWD/target/kernels/payload
for tool in qemu-system-x86_64 busybox cpio depmod bc unxz; do
  command -v $tool >/dev/null || {
    echo "run.sh: $tool is missing: apt-get install qemu-system-x86 busybox-static kmod cpio bc xz-utils" >&2
    exit 1
  }
done
tests/kernels/fetch.sh "$work"

# The guest gets the programs, the tests, and Debian's Python, with the libraries that they need.
rm -rf "$pay"
ours=$pay/opt/sockeye
mkdir -p "$ours"/{bin,e2e,tests} "$pay/etc"
gcc -O2 -o "$ours/bin/tundelay" tests/programs/tundelay.c
# Without what only a debugger reads: all of it lies in the guest's memory.
for program in sockeye ctl brief; do strip -o "$ours/bin/$program" "$bin/$program"; done
built=$("${CARGO:-cargo}" test -q -p sockeye-tests --no-run --message-format=json |
  /usr/bin/python3 -c 'import json,sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("profile", {}).get("test") and m.get("executable") and "test" in m["target"]["kind"]:
        print(m["target"]["name"], m["executable"])')
TESTS=${TESTS:-verifier records scan bytes owners sides translation names load}
for name in $TESTS; do
  path=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$built")
  [ -n "$path" ] || { echo "run.sh: there is no end-to-end test '$name' in tests/tests" >&2; exit 1; }
  strip -o "$ours/e2e/$name" "$path"
done
mkdir -p "$ours/tests/fuzz/corpus"
cp -r tests/oracle tests/programs "$ours/tests/"
cp -r tests/fuzz/corpus/quic_initial "$ours/tests/fuzz/corpus/"
cp tests/kernels/cpus.py "$ours/"
printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/:/bin/false\n' > "$pay/etc/passwd"
stdlib=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$pay$stdlib" "$pay/usr/lib/python3/dist-packages"
cp -r "$stdlib/." "$pay$stdlib/"
rm -rf "$pay$stdlib"/{test,idlelib,tkinter,lib2to3,ensurepip,distutils,config-*,pydoc_data}
find "$pay$stdlib" -name __pycache__ -prune -exec rm -rf {} +
cp -r /usr/lib/python3/dist-packages/zmq "$pay/usr/lib/python3/dist-packages/"
mkdir -p "$pay/etc/ssl" "$pay/usr/lib/ssl"
cp /etc/ssl/openssl.cnf "$pay/usr/lib/ssl/"
touch "$pay/etc/resolv.conf"
tests/kernels/mkpay.sh "$pay" /usr/bin/python3 ip nft nsenter setpriv unshare chrt taskset bpftool id dnsmasq dig curl openssl mount \
  "$ours"/bin/* "$ours"/e2e/* \
  $(find "$pay$stdlib/lib-dynload" "$pay/usr/lib/python3/dist-packages/zmq" -name '*.so')

# What the guest runs. $1: the clone's folder, the others: names of tests. 97: the tests are not where they have to be,
# which has to be told apart from a test that fails.
cat > "$ours/run" <<'GUEST'
#!/bin/sh
clone=$1; shift
# libcrc32c asks for its algorithm; newer kernels have both built in.
modprobe crc32c_generic 2>/dev/null
for module in tun veth nf_tables nf_conntrack_netlink nft_chain_nat nft_nat nft_masq nft_redir nft_ct; do modprobe $module; done
export SOCKEYE_BIN=/opt/sockeye/bin SOCKEYE_TEST_SLOW=3 PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$clone"
[ -e "$clone/tests" ] || ln -s /opt/sockeye/tests "$clone/tests"
for file in oracle/collector.py oracle/until_told.py programs/traffic.py programs/odd.py; do
  [ -r "$clone/tests/$file" ] || { echo "not in the guest: $clone/tests/$file"; exit 97; }
done
for test in "$@"; do
  [ -x "/opt/sockeye/e2e/$test" ] || { echo "not in the guest: /opt/sockeye/e2e/$test"; exit 97; }
done
rc=0
# 1: something is less than it could be.
$SOCKEYE_BIN/sockeye check || [ $? = 1 ] || rc=1
/usr/bin/python3 /opt/sockeye/cpus.py $SOCKEYE_BIN || rc=1
for test in "$@"; do
  # There is no tshark here.
  timeout 900 "/opt/sockeye/e2e/$test" --test-threads=1 --skip as_packets_say 2>&1 || rc=1
done
exit $rc
GUEST

# More possible CPUs than there are, as in many virtual machines.
export APPEND=""
export MODS="veth tun crc32c_generic nf_tables nf_conntrack_netlink nft_chain_nat nft_nat nft_masq nft_redir nft_ct" MEM=3072 VMTIMEOUT=${VMTIMEOUT:-900}
failed=0
for kernel in ${KERNELS:-bookworm trixie sid}; do
  for smp in ${SMPS:-4 8}; do
    version=$(basename "$work/$kernel"/*.done .done)
    echo "== $version, $smp CPUs"
    status=0
    tests/kernels/vmrun.sh "$work/$kernel" "$smp,maxcpus=128" "$pay" "sh /opt/sockeye/run '$repo' $TESTS" || status=$?
    case $status in
      0) echo "passed: $version, $smp CPUs" ;;
      97)
        echo "run.sh: the guest does not see the tests (above is what it misses), so nothing can be tested" >&2
        exit 1
        ;;
      *) echo "FAILED: $version, $smp CPUs"; failed=1 ;;
    esac
  done
done
exit $failed
