#!/usr/bin/python3
"""A TCP peer that is not on this host: a TUN device behind which this program answers by hand, for 10.33.0.2. It prints JSON objects, one
a line, and goes on at each line that it reads.

usage: far_peer.py MODE
  listener: the peer connected to a server here; closed: its listener is closed after that; out: a process here connected to the peer
  translated: both, each through nftables: to 10.96.0.80:80, which is the peer's 8080, and from the peer to 8443, which is our 9443
"""
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading

NEAR, FAR = "10.33.0.1", "10.33.0.2"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454CA, 1, 0x1000


def say(**facts):
    print(json.dumps(dict(facts, pid=os.getpid())), flush=True)


def open_tun():
    """In a network namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
    for command in ("ip link set lo up", f"ip addr add {NEAR}/24 dev tun0", "ip link set tun0 up"):
        subprocess.run(command.split(), check=True)
    return tun


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class Peer:
    """Acknowledges what it is sent in order. It never sends again: a TUN device loses nothing."""

    def __init__(self, tun):
        self.tun = tun
        self.next = {}  # (far port, near port) -> next sequence number of ours, and of theirs
        threading.Thread(target=self.answer, daemon=True).start()

    def send(self, ports, seq, ack, flags, data=b""):
        near, far = socket.inet_aton(NEAR), socket.inet_aton(FAR)
        tcp = struct.pack("!HHIIBBHHH", *ports, seq, ack, 5 << 4, flags, 60000, 0, 0)
        pseudo = far + near + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp) + len(data))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp + data)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp) + len(data), 1, 0, 64, socket.IPPROTO_TCP, 0, far, near)
        os.write(self.tun, ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp + data)

    def connect(self, ports):
        self.next[ports] = [5001, 0]
        self.send(ports, 5000, 0, SYN)

    def write(self, ports, data):
        self.send(ports, *self.next[ports], PSH | ACK, data)
        self.next[ports][0] += len(data)

    def answer(self):
        while True:
            packet = os.read(self.tun, 4000)
            if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            header = (packet[0] & 15) * 4
            near, far, seq, _, offset, flags = struct.unpack("!HHIIBB", packet[header:header + 14])
            data = packet[header + (offset >> 4) * 4:struct.unpack("!H", packet[2:4])[0]]
            ports = (far, near)
            if flags & (SYN | ACK) == SYN:
                self.next[ports] = [7001, seq + 1]
                self.send(ports, 7000, seq + 1, SYN | ACK)
            elif ports in self.next and flags & SYN:
                self.next[ports][1] = seq + 1
                self.send(ports, *self.next[ports], ACK)
            elif ports in self.next and seq == self.next[ports][1] and (data or flags & FIN):
                self.next[ports][1] += len(data) + (flags & FIN)
                self.send(ports, *self.next[ports], ACK | (flags & FIN))
                self.next[ports][0] += flags & FIN


def exchange(peer, s, ports, far, near):
    peer.write(ports, b"f" * far)
    while far > 0:
        far -= len(s.recv(far))
    s.sendall(b"n" * near)


RULES = f"""
table ip t {{
  chain out {{ type nat hook output priority -100; ip daddr 10.96.0.80 tcp dport 80 dnat to {FAR}:8080; }}
  chain in {{ type nat hook prerouting priority -100; tcp dport 8443 dnat to {NEAR}:9443; }}
}}
"""


def translated(peer):
    """Connections with one end here whose addresses are translated here."""
    subprocess.run(["nft", "-f", "-"], input=RULES.encode(), check=True)
    subprocess.run("ip route add 10.96.0.0/16 dev tun0".split(), check=True)
    listener = socket.create_server((NEAR, 9443))
    say()
    sys.stdin.readline()
    out = socket.create_connection(("10.96.0.80", 80))
    out.sendall(b"n" * 100)
    peer.connect((40001, 8443))
    accepted, _ = listener.accept()
    peer.write((40001, 8443), b"f" * 50)
    accepted.recv(50)
    plain = socket.create_connection((FAR, 8081))
    say(out=out.getsockname()[1], plain=plain.getsockname()[1])
    sys.stdin.readline()


def main(mode):
    peer = Peer(open_tun())
    if mode == "translated":
        return translated(peer)
    if mode == "out":
        s = socket.socket()
        s.bind((NEAR, 38080))
        s.connect((FAR, 8080))
        ports = (8080, 38080)
        listener = socket.create_server((NEAR, 8080))  # and a service of our own on the same number
    else:
        listener = socket.create_server((NEAR, 8080), backlog=64)
        ports = (40001, 8080)
        peer.connect(ports)
        s, _ = listener.accept()
        if mode == "closed":
            listener.close()
    exchange(peer, s, ports, 150, 2500)
    say()
    sys.stdin.readline()
    exchange(peer, s, ports, 100, 500)
    say(far_sent=250, near_sent=3000)
    sys.stdin.readline()
    s.close()
    if mode == "listener":
        for number in range(200):
            peer.send((41000 + number, 8080), 1, 0, SYN)  # half open for ever
        ports = (42000, 8080)
        peer.connect(ports)
        accepted, _ = listener.accept()
        peer.send(ports, *peer.next[ports], RST)
        sys.stdin.readline()
        accepted.close()
    say()
    sys.stdin.read()


main(*sys.argv[1:])
