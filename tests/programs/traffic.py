#!/usr/bin/python3
"""Programs that talk, for the end-to-end tests. Each prints one JSON object: what it did, by its own count.

usage: traffic.py PROGRAM ARGUMENTS...
"""
import ctypes
import fcntl
import http.server as http_server
import json
import os
import signal
import socket
import struct
import sys
import threading
import time


def say(**facts):
    print(json.dumps(dict(facts, pid=os.getpid())), flush=True)


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(host, port, share=socket.SO_REUSEADDR):
    s = socket.socket(family(host), socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, share, 1)
    s.bind((host, port))
    s.listen(1024)
    return s


def receive_all(s):
    n = 0
    while data := s.recv(1 << 16):
        n += len(data)
    return n


def request(s):
    """8 bytes: how much to send back."""
    head = b""
    while len(head) < 8:
        part = s.recv(8 - len(head))
        if not part:
            return None
        head += part
    return struct.unpack("!Q", head)[0]


def answer(s, pause_s=0):
    """Serves one connection: sends what is asked for, reads the rest, closes, perhaps after a pause."""
    try:
        want = request(s)
        if want is not None:
            send_n(s, want)
            receive_all(s)
    except ConnectionError:
        pass  # the client may end by a reset
    time.sleep(pause_s)
    s.close()


def send_n(s, n):
    block = b"x" * (1 << 16)
    while n > 0:
        # A client that goes early ends its connection, and not this program.
        n -= s.send(block[: min(n, len(block))], socket.MSG_NOSIGNAL)


def serve(host, port, pause_s=0):
    """Answers each connection in a thread."""
    s = listen(host, int(port))
    say(port=s.getsockname()[1])
    while True:
        c, _ = s.accept()
        threading.Thread(target=answer, args=(c, pause_s), daemon=True).start()


def serve_lazily(host, port):
    """The same, and closes its end six seconds after the client."""
    serve(host, port, 6)


def die_with_parent():
    """PR_SET_PDEATHSIG: a test kills the parent only."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def prefork(host, port, children=4):
    """The parent listens, the children accept."""
    s = listen(host, int(port))
    pids = []
    for _ in range(int(children)):
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            while True:
                c, _ = s.accept()
                want = request(c)
                if want is not None:
                    c.sendall(struct.pack("!Q", os.getpid()))
                    receive_all(c)
                c.close()
        pids.append(pid)
    say(port=s.getsockname()[1], children=pids)
    signal.pause()


def ask_prefork(host, port, local):
    """Tells which child answered."""
    hear(host, port, local, struct.pack("!Q", 8))


def reuseport(host, port, children=4):
    """Each child has a listener of its own on the same port; nobody ever reads."""
    first = listen(host, int(port), socket.SO_REUSEPORT)
    port = first.getsockname()[1]
    pids = []
    for _ in range(int(children)):
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            first.close()
            s = listen(host, port, socket.SO_REUSEPORT)
            os.write(told, b"1")
            while True:
                c, _ = s.accept()
                c.sendall(struct.pack("!Q", os.getpid()))
                c.close()
        os.read(ready, 1)
        pids.append(pid)
    first.close()
    say(port=port, children=pids)
    signal.pause()


def hear(host, port, local, question=b""):
    """Tells which child has spoken. From a port of its own: one used again within a minute is the same flow for ntopng."""
    s = socket.socket(family(host))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", int(local)))
    s.connect((host, int(port)))
    s.sendall(question)
    child = request(s)
    s.close()
    say(local=int(local), child=child)


def passed(host, port):
    """The parent accepts and hands each connection to its child over SCM_RIGHTS; the child reads and writes."""
    s = listen(host, int(port))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        while True:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            if not fds:
                os._exit(0)
            answer(socket.socket(fileno=fds[0]))
    say(port=s.getsockname()[1], child=pid)
    while True:
        c, _ = s.accept()
        socket.send_fds(ours, [b"x"], [c.fileno()])
        c.close()


def unacknowledged(s):
    """Bytes that the peer has not acknowledged (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(s, 0x5411, bytes(4)))[0]


def client(host, port, send, want, end="close"):
    """One connection: asks for WANT bytes, sends SEND bytes on top of the request, ends by close, reset or never, or
    leaves before the server has closed."""
    s = socket.create_connection((host, int(port)))
    local = s.getsockname()[1]
    sent, received = 0, 0
    if end != "silent":
        s.sendall(struct.pack("!Q", int(want)))
        # Both directions at once: the server sends before it reads.
        sender = threading.Thread(target=send_n, args=(s, int(send)))
        sender.start()
        sent = 8 + int(send)
        while received < int(want):
            received += len(s.recv(1 << 16))
        sender.join()
    say(local=local, sent=sent, received=received)
    if end in ("hold", "silent"):
        if sys.stdin.readline() == "":  # until the test closes our standard input
            s.close()
        return
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif end != "leave":
        s.shutdown(socket.SHUT_WR)
        s.settimeout(10)
        receive_all(s)
    s.close()


def threaded_client(host, port):
    """A thread of many connects and talks."""
    stop = threading.Event()
    idle = [threading.Thread(target=stop.wait, daemon=True) for _ in range(4)]
    for t in idle:
        t.start()
    t = threading.Thread(target=client, args=(host, port, 100, 50))
    t.start()
    t.join()
    stop.set()


def leader_gone(host, port):
    """The first thread ends, and leaves a zombie; another one connects and talks."""
    def later():
        time.sleep(0.3)
        client(host, port, 100, 50)
        os._exit(0)

    threading.Thread(target=later).start()
    ctypes.CDLL(None).syscall(60, 0)  # SYS_exit on x86-64: this thread only


def talk_on(host, port, before, after):
    """Sends BEFORE bytes, waits for a line on standard input, sends AFTER more, says so, waits for the end of it."""
    s = socket.create_connection((host, int(port)))
    s.sendall(struct.pack("!Q", 0))
    send_n(s, int(before))
    say(local=s.getsockname()[1], sent=8 + int(before))
    sys.stdin.readline()
    send_n(s, int(after))
    say(sent=8 + int(before) + int(after))
    sys.stdin.readline()
    s.close()


def steadily(send, bits_per_s):
    """Sends at this rate, in a hundred parts a second, until the end."""
    part, began, sent = int(bits_per_s) // 800, time.monotonic(), 0
    while True:
        while sent < (time.monotonic() - began) * 100:
            send(b"s" * part)
            sent += 1
        time.sleep(0.005)


def steady(host, port, bits_per_s):
    """One connection on which data goes out at a steady rate."""
    s = socket.create_connection((host, int(port)))
    s.sendall(struct.pack("!Q", 0))
    say(local=s.getsockname()[1])
    steadily(s.sendall, bits_per_s)


def udp_steady(host, port, bits_per_s):
    """The same by datagrams to somebody who does not answer."""
    s = socket.socket(family(host), socket.SOCK_DGRAM)
    s.connect((host, int(port)))
    say(local=s.getsockname()[1])
    steadily(s.send, bits_per_s)


def udp_sink(host, port):
    """Takes datagrams."""
    s = socket.socket(family(host), socket.SOCK_DGRAM)
    s.bind((host, int(port)))
    say(port=s.getsockname()[1])
    while True:
        s.recv(1 << 16)


def hold_many(host, port, connections, size):
    """Many connections from one process, each of which has sent a request and SIZE bytes. After each line on standard input
    each sends as many bytes again."""
    sockets = [socket.create_connection((host, int(port))) for _ in range(int(connections))]
    for s in sockets:
        s.sendall(struct.pack("!Q", 0) + b"h" * int(size))
    say(locals=[s.getsockname()[1] for s in sockets], sent=8 + int(size))
    while sys.stdin.readline():
        for s in sockets:
            s.sendall(b"h" * int(size))
        say(sent=int(size))


def connect(host, port):
    """Tries to connect, and says which port it came from."""
    s = socket.socket(family(host), socket.SOCK_STREAM)
    s.bind((host, 0))
    local = s.getsockname()[1]
    try:
        s.connect((host, int(port)))
        error = 0
    except OSError as err:
        error = err.errno
    say(local=local, error=error)


def reconnect(host, port):
    """One socket, connected three times: refused, then taken away from its peer (connect(2), AF_UNSPEC), then closed."""
    s = socket.socket(family(host), socket.SOCK_STREAM)
    try:
        s.connect((host, 1))
    except ConnectionRefusedError:
        pass
    locals_, sent = [], []
    for size in (3000, 50):
        s.connect((host, int(port)))
        s.sendall(struct.pack("!Q", 7))
        send_n(s, size)
        received = 0
        while received < 7:
            received += len(s.recv(7))
        while unacknowledged(s):
            time.sleep(0.001)
        locals_.append(s.getsockname()[1])
        sent.append(8 + size)
        if len(sent) == 1:
            ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)
    s.close()
    say(locals=locals_, sent=sent, received=[7, 7])


def storm(host, port, connections, source="127.0.0.1"):
    """Short connections as fast as they go, from one process. Each has a source port of its own: a 5-tuple that comes
    back within a minute would be the same flow to a collector."""
    done = 0
    for i in range(int(connections)):
        s = socket.socket(family(host), socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((source, 10000 + i))
        s.connect((host, int(port)))
        s.sendall(struct.pack("!Q", 1))
        s.recv(1)
        s.close()
        done += 1
    say(done=done)


def hostile(host, port):
    """One connection by a process whose name and command line are meant to do harm."""
    rubbish = b"\xff\x1b[31m" + b"\xfe\n\x07" * 22000
    os.execv(sys.executable, [sys.executable, __file__, "hostile_now", host, port, rubbish])


def hostile_now(host, port, _rubbish):
    ctypes.CDLL(None).prctl(15, b"x\x1b[2J\r\n\xff", 0, 0, 0)  # PR_SET_NAME
    client(host, port, "1000", "1000")


def exec_into(host, port, program):
    """A short connection, and then another program in the same process."""
    client(host, port, "10", "10")
    os.execv(program, [program, f"{host}:{port}", "5", "0"])


def http(host, port):
    """A web server with one page of 20,000 bytes."""
    class Page(http_server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 20000)

        def log_message(self, *_):
            pass

    server = http_server.ThreadingHTTPServer((host, int(port)), Page)
    say(port=server.server_address[1])
    server.serve_forever()


def udp_echo(host, port):
    """Sends each datagram back, from one socket, until the end."""
    s = socket.socket(family(host), socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind((host, int(port)))
    say(port=s.getsockname()[1])
    while True:
        data, peer = s.recvfrom(1 << 16)
        s.sendto(data, peer)


def udp_client(host, port, datagrams, size, how):
    """Sends datagrams and waits for each to come back. HOW: connected or unconnected."""
    s = socket.socket(family(host), socket.SOCK_DGRAM)
    s.settimeout(5)
    s.bind((host, 0))
    if how == "connected":
        s.connect((host, int(port)))
    for _ in range(int(datagrams)):
        data = b"y" * int(size)
        s.send(data) if how == "connected" else s.sendto(data, (host, int(port)))
        s.recv(1 << 16)
    say(local=s.getsockname()[1], datagrams=int(datagrams), bytes=int(datagrams) * int(size))
    s.close()


def udp_peers(host, port, peers):
    """Many sockets, one server: peer i sends i + 1 datagrams of 10 bytes."""
    out, sockets = {}, []  # all open until the end: a port that is given back may be chosen again
    for i in range(int(peers)):
        s = socket.socket(family(host), socket.SOCK_DGRAM)
        s.settimeout(5)
        s.bind((host, 0))
        for _ in range(i + 1):
            s.sendto(b"z" * 10, (host, int(port)))
            s.recv(100)
        out[s.getsockname()[1]] = i + 1
        sockets.append(s)
    say(peers=out)


def udp_turns(host, port, pauses, *turns):
    """Sockets that use one source port in turn: each sends as many datagrams of 10 bytes, then pauses for seconds."""
    local = 0
    for count, pause in zip(turns, pauses.split(",")):
        with socket.socket(family(host), socket.SOCK_DGRAM) as s:
            s.settimeout(5)
            s.bind((host, local))
            local = s.getsockname()[1]
            for _ in range(int(count)):
                s.sendto(b"t" * 10, (host, int(port)))
                s.recv(100)
        time.sleep(float(pause))
    say(local=local)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    globals()[sys.argv[1]](*sys.argv[2:])
