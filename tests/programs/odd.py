#!/usr/bin/python3
"""Programs that use the network in uncommon ways, for the end-to-end tests. Each prints JSON objects, one a line: what it did, by
its own count. It ends when its standard input does.

usage: odd.py PROGRAM ARGUMENTS...
"""
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

SO_REUSEPORT = 15
TCP_INFO_BYTES = 160
REPAIR, REPAIR_QUEUE, QUEUE_SEQ, REPAIR_OPTIONS, TIMESTAMP, REPAIR_WINDOW = 19, 20, 21, 22, 24, 29
TCP_DEFER_ACCEPT = 9


def say(**facts):
    print(json.dumps(dict(facts, pid=os.getpid())), flush=True)


def wait():
    """Until the test has seen enough."""
    sys.stdin.read()


def die_with_parent():
    """PR_SET_PDEATHSIG: a test kills the parent only."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def rename(name):
    """PR_SET_NAME."""
    ctypes.CDLL(None).prctl(15, name.encode())


def tcp(host, port, backlog=None):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, int(port)))
    if backlog is not None:
        s.listen(backlog)
    return s


def udp(host, port, share=False):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if share:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
    s.bind((host, int(port)))
    return s


def read_n(s, n):
    got = 0
    while got < n:
        part = s.recv(65536)
        if not part:
            break
        got += len(part)
    return got


def round_trip_us(s):
    """The kernel's smoothed and smallest one."""
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    return struct.unpack("I", info[68:72])[0], struct.unpack("I", info[148:152])[0]


def daemon(mode, port):
    """Binds as root, then gives up root (drop), goes on as a child (fork), or renames itself (rename), and serves TCP and UDP. On
    another CPU: what the kernel tells of the one and of the other comes in any order."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[-1:])
    listener = tcp("127.0.0.1", port, 5)
    datagrams = udp("127.0.0.1", listener.getsockname()[1])
    os.sched_setaffinity(0, cpus[:1])
    if mode == "drop":
        os.setgroups([])
        os.setgid(33)
        os.setuid(33)
    if mode == "rename":
        rename("renamed")
    if mode == "fork" and os.fork():
        os._exit(0)
    threading.Thread(target=lambda: (wait(), os._exit(0)), daemon=True).start()
    say(uid=os.getuid(), port=listener.getsockname()[1])
    while True:
        c, _ = listener.accept()
        read_n(c, 1000)
        c.sendall(b"k" * 100)
        _, peer = datagrams.recvfrom(100)
        datagrams.sendto(b"z" * 20, peer)


def ask_daemon(port):
    """1000 bytes by TCP, 10 by UDP."""
    c, d = tcp("127.0.0.1", 0), udp("127.0.0.1", 0)
    c.connect(("127.0.0.1", int(port)))
    c.sendall(b"x" * 1000)
    read_n(c, 100)
    d.sendto(b"y" * 10, ("127.0.0.1", int(port)))
    d.recv(100)
    say(tcp=c.getsockname()[1], udp=d.getsockname()[1])
    wait()


def streams(port):
    """The parent listens; a child writes to what was accepted, and nobody ever reads."""
    listener = tcp("127.0.0.1", port, 5)
    say(port=listener.getsockname()[1])
    while True:
        c, _ = listener.accept()
        if not os.fork():
            die_with_parent()
            say()
            while True:
                c.sendall(b"s" * 100)
                time.sleep(0.1)
        c.close()


def listen_to_stream(port):
    c = tcp("127.0.0.1", 0)
    c.connect(("127.0.0.1", int(port)))
    say(local=c.getsockname()[1])
    while c.recv(1000):
        pass


def readers(port, count):
    """COUNT processes read from one connection, one after another. The last one stays, and goes on."""
    listener = tcp("127.0.0.1", port, 1)
    client = tcp("127.0.0.1", 0)
    client.connect(listener.getsockname())
    c, _ = listener.accept()
    for number in range(int(count)):
        last = number == int(count) - 1
        child = os.fork()
        if not child:
            die_with_parent()
            client.close()
            c.recv(10)
            if not last:
                os._exit(0)
            say(local=c.getpeername()[1], port=c.getsockname()[1])
            while c.recv(1000):
                pass
            os._exit(0)
        client.sendall(b"0123456789")
        if not last:
            os.waitpid(child, 0)
    c.close()
    while True:
        client.sendall(b"more")
        time.sleep(0.1)


def meet(local, remote, size):
    """Connects while its peer does the same."""
    s = tcp("127.0.0.1", local)
    say()
    sys.stdin.readline()
    s.connect(("127.0.0.1", int(remote)))
    s.sendall(b"x" * int(size))
    s.settimeout(2)
    got = 0
    try:
        while True:
            got += len(s.recv(65536))
    except TimeoutError:
        pass
    say(sent=int(size), got=got)
    wait()


def freeze(s):
    """What CRIU keeps of a connection. The socket is closed without a packet."""
    s.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
    kept = {"window": s.getsockopt(6, REPAIR_WINDOW, 20), "local": s.getsockname(), "remote": s.getpeername()}
    for queue in (1, 2):
        s.setsockopt(6, REPAIR_QUEUE, queue)
        kept[queue] = s.getsockopt(6, QUEUE_SEQ, 4)
    s.setsockopt(6, REPAIR_QUEUE, 0)
    kept["info"], kept["time"] = s.getsockopt(6, socket.TCP_INFO, 104), s.getsockopt(6, TIMESTAMP, 4)
    s.close()
    return kept


def restore(kept):
    s = socket.socket()
    s.setsockopt(6, REPAIR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for queue in (2, 1):
        s.setsockopt(6, REPAIR_QUEUE, queue)
        s.setsockopt(6, QUEUE_SEQ, kept[queue])
    s.bind(kept["local"])
    s.connect(kept["remote"])
    mss, scales = struct.unpack("I", kept["info"][16:20])[0], kept["info"][6]
    options = [(2, mss), (4, 0), (3, (scales & 15) | (scales >> 4) << 16), (8, 0)]
    s.setsockopt(6, REPAIR_OPTIONS, b"".join(struct.pack("II", *option) for option in options))
    s.setsockopt(6, TIMESTAMP, kept["time"])
    s.setsockopt(6, REPAIR_WINDOW, kept["window"])
    s.setsockopt(6, REPAIR, 0)
    return s


def exchange(client, server, up, down):
    client.sendall(b"a" * up)
    read_n(server, up)
    server.sendall(b"b" * down)
    read_n(client, down)


def restored(which):
    """A connection, one end of which is frozen and goes on in another process."""
    listener = tcp("127.0.0.1", 0, 4)
    client = tcp("127.0.0.1", 0)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    exchange(client, server, 1000, 2000)
    say(client=client.getsockname()[1], server=server.getsockname()[1])
    sys.stdin.readline()
    kept = freeze(client if which == "client" else server)
    if os.fork() == 0:
        die_with_parent()
        client, server = (restore(kept), server) if which == "client" else (client, restore(kept))
        exchange(client, server, 500, 700)
        say(sent=1500, received=2700)
        wait()
        os._exit(0)
    client.close()
    server.close()
    os.wait()


def lingers(port, count):
    """Clients close at once; the server takes 0.3 s to notice, and the FIN is acknowledged by a timer."""
    listener = tcp("127.0.0.1", port, 99)
    if os.fork() == 0:
        die_with_parent()
        for _ in range(int(count)):
            c, _ = listener.accept()
            c.recv(100)
            c.sendall(b"r" * 10)
            time.sleep(0.3)
            c.recv(10)
            c.close()
        os._exit(0)
    seen = {}
    for _ in range(int(count)):
        s = socket.socket()
        s.connect(listener.getsockname())
        s.sendall(b"q" * 10)
        s.recv(100)
        seen[s.getsockname()[1]] = round_trip_us(s)
        s.close()
    os.wait()
    say(port=listener.getsockname()[1], seen=seen)
    wait()


def defers(port, count):
    """A server that is woken by data only, and clients that think for 0.8 s before they send."""
    listener = tcp("127.0.0.1", port)
    listener.setsockopt(6, TCP_DEFER_ACCEPT, 30)
    listener.listen(99)
    server = os.fork()
    if server == 0:
        die_with_parent()
        rename("defers-server")
        for _ in range(int(count)):
            c, _ = listener.accept()
            c.recv(100)
            c.sendall(b"r" * 10)
            c.recv(10)
            c.close()
        os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    for _ in range(int(count)):
        s = socket.socket()
        s.connect(("127.0.0.1", port))
        time.sleep(0.8)
        s.sendall(b"q" * 10)
        s.recv(100)
        s.close()
    say(port=port, server=server)
    wait()


TROUBLES = {"stalls": b"s", "keeps": b"k", "alone": b"a", "echoes": b"e"}


def troubled_server(host):
    """What it does is told by the first byte: it stalls before it reads on, keeps silent, or echoes."""
    listener = tcp(host, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.listen(9)
    say(port=listener.getsockname()[1])

    def serve(c):
        trouble = c.recv(1)
        if trouble == TROUBLES["stalls"]:
            time.sleep(1.5)
        while data := c.recv(1000):
            if trouble == TROUBLES["echoes"]:
                c.sendall(data)

    while True:
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()


def troubles(host, port):
    """Clients whose acknowledgements are held up by timers and probes: a server that stalls (probes of a closed window, then updates
    of it), keepalives, segments that nobody answers, and segments that are lost, if the test sees to that."""
    ports = {}

    def suffer(trouble):
        s = socket.socket()
        s.setsockopt(6, socket.TCP_NODELAY, 1)
        s.connect((host, int(port)))
        s.sendall(TROUBLES[trouble])
        if trouble == "stalls":
            s.sendall(b"x" * 20000)
        elif trouble == "keeps":
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                s.setsockopt(6, option, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            time.sleep(3.2)
        elif trouble == "alone":
            for _ in range(12):
                s.sendall(b"y" * 100)
                time.sleep(0.15)
        else:
            for _ in range(40):
                s.sendall(b"z" * 200)
                read_n(s, 200)
        smoothed_us, least_us = round_trip_us(s)
        ports[trouble] = dict(port=s.getsockname()[1], smoothed_us=smoothed_us, least_us=least_us)
        s.shutdown(socket.SHUT_WR)
        while s.recv(1000):
            pass
        s.close()

    clients = [threading.Thread(target=suffer, args=(trouble,)) for trouble in TROUBLES]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    say(ports=ports)
    wait()


def download(port):
    """A UDP server sends 200 datagrams a second to whoever has asked once."""
    s = udp("127.0.0.1", port)
    say(port=s.getsockname()[1])
    _, peer = s.recvfrom(100)
    while True:
        s.sendto(b"v" * 1000, peer)
        time.sleep(0.005)


def downloading(port, bound):
    """Asks once, and then now and then says that it is there."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if bound == "bound":
        s.bind(("127.0.0.1", 0))
    s.connect(("127.0.0.1", int(port)))
    s.send(b"play")
    say(local=s.getsockname()[1])
    last = time.monotonic()
    while True:
        s.recv(2000)
        if time.monotonic() - last > 2:
            s.send(b"keep")
            last = time.monotonic()


def per_client(port, who):
    """A server as of QUIC or DTLS: its first socket takes the first datagram of a client, and a further one, on the same port and
    connected to that client, all others. WHO: the same process, or a worker."""
    first = udp("127.0.0.1", port, share=True)
    say(port=first.getsockname()[1])
    data, peer = first.recvfrom(2000)
    if who == "worker" and os.fork():
        os.wait()
        os._exit(0)
    s = udp("127.0.0.1", first.getsockname()[1], share=True)
    s.connect(peer)
    s.send(b"s" * 200)
    got = len(data)
    for _ in range(49):
        got += len(s.recv(2000))
        s.send(b"s" * 200)
    say(got=got, sent=50 * 200)
    wait()


def one_client(port):
    s = udp("127.0.0.1", 0)
    s.settimeout(5)
    s.connect(("127.0.0.1", int(port)))
    got = 0
    for _ in range(50):
        s.send(b"c" * 100)
        got += len(s.recv(2000))
    say(local=s.getsockname()[1], sent=5000, got=got)
    wait()


def receive_group(host, port):
    """Receives what is sent to 239.7.7.7, and what is broadcast."""
    s = udp("", port, share=True)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.7.7.7") + socket.inet_aton(host))
    say(port=s.getsockname()[1])
    count = {b"m": 0, b"b": 0}
    while sum(count.values()) < 17:
        count[s.recv(2000)[:1]] += 1
    say(multicast=count[b"m"], broadcast=count[b"b"])
    wait()


def send_group(host, port):
    """10 datagrams of 100 bytes to the group, 7 of 50 to all of the network."""
    s = udp(host, 0)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 4)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(10):
        s.sendto(b"m" * 100, ("239.7.7.7", int(port)))
        time.sleep(0.02)
    for _ in range(7):
        s.sendto(b"b" * 50, (host.rsplit(".", 1)[0] + ".255", int(port)))
        time.sleep(0.02)
    say(local=s.getsockname()[1])
    wait()


def flood(near, far, port, count):
    """One datagram from each of COUNT made-up sources to a port of FAR, 20,000 a second."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    payload = b"spoofed!"
    begun = time.monotonic()
    for number in range(int(count)):
        source = socket.inet_aton(near)[:2] + struct.pack("!BB", 100 + (number >> 14), 1 + (number >> 7) % 128)
        udp_header = struct.pack("!HHHH", 1024 + number % 128, int(port), 8 + len(payload), 0)
        raw.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, source, socket.inet_aton(far))
                   + udp_header + payload, (far, 0))
        if number % 200 == 0:
            time.sleep(max(0, begun + number / 20000 - time.monotonic()))
    say(sent=int(count), size=len(payload))
    wait()


def udp_from(host, port, peer, peer_port, count):
    """Datagrams from a given port, each answered."""
    s = udp(host, port)
    s.settimeout(5)
    for _ in range(int(count)):
        s.sendto(b"t" * 100, (peer, int(peer_port)))
        s.recv(200)
    say()
    wait()


def accepted(up, down):
    """A connection between two processes whose listener was closed after the accept (as `nc -l` and FTP do it). Goes on with 100
    and 500 bytes more after a line."""
    listener = tcp("127.0.0.1", 0, 1)
    client = tcp("127.0.0.1", 0)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    exchange(client, server, int(up), int(down))
    say(client=client.getsockname()[1], server=server.getsockname()[1])
    sys.stdin.readline()
    exchange(client, server, 100, 500)
    say()
    wait()


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(321, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf {command}: {os.strerror(ctypes.get_errno())}")
    return result


def sockmap():
    """A program redirects what one end sends into the receive queue of the other one, past TCP."""
    kept = []

    def pointer(data):
        kept.append(ctypes.create_string_buffer(data, len(data)))
        return ctypes.addressof(kept[-1])

    def instruction(code, dst=0, src=0, offset=0, immediate=0):
        return struct.pack("<BBhi", code, dst | src << 4, offset, immediate)

    listener = tcp("127.0.0.1", 0, 1)
    client = tcp("127.0.0.1", 0)
    local = client.getsockname()[1]
    sockets = bpf(0, struct.pack("<IIII", 15, 4, 4, 2))  # BPF_MAP_TYPE_SOCKMAP
    program = b"".join([
        instruction(0x61, 2, 1, 64),  # r2 = msg->local_port
        instruction(0xB7, 3, immediate=0),
        instruction(0x55, 2, 0, 1, local),  # the client's goes to the socket at 1
        instruction(0xB7, 3, immediate=1),
        instruction(0x18, 2, 1, 0, sockets), instruction(0),
        instruction(0xB7, 4, immediate=1),  # BPF_F_INGRESS
        instruction(0x85, immediate=60),  # bpf_msg_redirect_map
        instruction(0x95),
    ])
    log = ctypes.create_string_buffer(65536)
    loaded = bpf(5, struct.pack("<IIQQIIQ", 16, len(program) // 8, pointer(program), pointer(b"GPL\0"), 1, 65536,
                                ctypes.addressof(log)))
    bpf(8, struct.pack("<IIII", sockets, loaded, 7, 0))  # BPF_SK_MSG_VERDICT
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    for key, s in ((0, client), (1, server)):
        bpf(2, struct.pack("<IIQQQ", sockets, 0, pointer(struct.pack("<I", key)), pointer(struct.pack("<I", s.fileno())), 0))
    client.sendall(b"c" * 100000)
    got = read_n(server, 100000)
    say(local=local, port=listener.getsockname()[1], got=got)
    wait()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    globals()[sys.argv[1]](*sys.argv[2:])
