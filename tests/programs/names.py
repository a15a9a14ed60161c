#!/usr/bin/python3
"""Programs that ask DNS and connect, and servers of DNS that do not do as they should, for the end-to-end tests.

usage: names.py PROGRAM ARGUMENTS...
"""
import contextlib
import json
import os
import random
import socket
import ssl
import struct
import sys
import threading
import time


def say(**facts):
    print(json.dumps(dict(facts, pid=os.getpid())), flush=True)


def fetch(address, port):
    """Connects, and tells from which port."""
    with socket.create_connection((address, port), timeout=10) as s:
        local = s.getsockname()[1]
        s.sendall(struct.pack("!Q", 10))
        s.shutdown(socket.SHUT_WR)
        while s.recv(4096):
            pass
    return local


def resolve(name):
    return socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]


def visit(port, *names):
    """Asks for each name and connects to it; what is no name is an address, or with = before it the one that was asked for last."""
    port, address = int(port), None
    for name in names:
        if name == "wait":
            sys.stdin.readline()
            continue
        if not name.startswith("="):
            address = resolve(name)
        say(name=name, address=address, local=fetch(address, port))


def child_of(port, *names):
    """Asks for names; a child connects to the last one."""
    address = [resolve(name) for name in names][-1]
    pid = os.fork()
    if pid == 0:
        say(name=names[-1], address=address, local=fetch(address, int(port)))
        os._exit(0)
    os.waitpid(pid, 0)


def crowd(port, count, seed):
    """Asks for one of 200 names, all of one address, and connects, by itself or by a child: which name it was by local port."""
    random.seed(int(seed))
    told = {}
    for _ in range(int(count)):
        name = f"n{random.randrange(200)}.crowd.example"
        address = resolve(name)
        is_child = random.random() < 0.3
        if not is_child:
            told[fetch(address, int(port))] = [name, "process"]
            continue
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, str(fetch(address, int(port))).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        told[int(os.read(reader, 16))] = [name, "child"]
        os.close(reader)
        os.close(writer)
    say(told=told)


def question(name, number, rtype=1):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", rtype, 1)


def ask(server, count, per_second, prefix):
    """Sends questions at a pace from one socket, and reads what comes: how many of each."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((server, 53))
    s.settimeout(2)
    answers, began = 0, time.monotonic()
    for number in range(int(count)):
        s.send(question(f"{prefix}{number}.crowd.example", number % 65536))
        try:
            s.recv(4096)
            answers += 1
        except (TimeoutError, ConnectionError):
            pass
        time.sleep(max(0.0, began + (number + 1) / float(per_second) - time.monotonic()))
    say(asked=int(count), answers=answers)


def hostile(address):
    """A server whose answers are wrong, each in another way; every tenth never comes, and some come twice or late."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 53))
    say(ready=True)
    number = 0
    while True:
        asked, peer = s.recvfrom(4096)
        number += 1
        head, body = asked[:2], asked[12:]
        record = struct.pack("!HHIH4s", 1, 1, 60, 4, socket.inet_aton("203.0.113.66"))
        counts = struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
        pointer = lambda at: struct.pack("!H", 0xC000 | at)
        after = 12 + len(body)
        answers = [
            head + counts + body + pointer(after) + record,  # a name that points at itself
            head + counts + body + pointer(after + 2) + pointer(after) + record,  # two at each other
            head + counts + body + b"\x04evil\x07example\0" + record,  # an address of something else
            b"\xff\xff" + counts + body + pointer(12) + record,  # an answer to what nobody has asked
            head + counts + b"\x04evil\x07example\0\0\1\0\1" + pointer(12) + record,  # another question
            head + struct.pack("!HHHHH", 0x8180, 1, 65535, 65535, 65535) + body + pointer(12) + record[:-3],  # cut, and it lies
            head + counts + body + b"\x3f" + os.urandom(40),
            head + os.urandom(60),
            head + struct.pack("!HHHHH", 0x8183, 1, 0, 0, 0) + body,
        ]
        if number % 10:
            s.sendto(answers[number % len(answers)], peer)


def web(address):
    """A server of HTTP: every connection is told the same, and read to its end."""
    def answer(connection):
        with connection, contextlib.suppress(ConnectionError):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    with socket.create_server((address, 0), backlog=64) as listener:
        say(port=listener.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()


def secure(address, port, certificate):
    """A server of TLS that says one line and ends the connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_server((address, int(port)), backlog=64) as listener:
        say(port=listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as s:
                    s.recv(4096)
                    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
            except OSError:
                pass


def greet(address, port, name, *alpn):
    """A client of TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    with socket.create_connection((address, int(port))) as s:
        local = s.getsockname()[1]
        with context.wrap_socket(s, server_hostname=name or None) as t:
            t.sendall(b"GET / HTTP/1.1\r\n\r\n")
            t.recv(4096)
    say(local=local)


def beacon(port, name):
    """What malware does: a script's child asks for a name, and says it again by TLS."""
    greet(resolve(name), port, name)


def later(address, port, name, protocol):
    """A client that says what it means with its second data only, after something else."""
    with socket.create_connection((address, int(port))) as s:
        local = s.getsockname()[1]
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(4):
            s.sendall(b"something else\r\n")
            time.sleep(0.01)
        s.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    say(local=local, protocol=protocol)


def datagrams(address, name):
    """Sends what is in a file to port 443, from one socket: datagrams, each with its length before it."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # Not connected: nobody may be there.
    s.bind(("", 0))
    with open(name, "rb") as file:
        while prefix := file.read(2):
            s.sendto(file.read(struct.unpack("<H", prefix)[0]), (address, 443))
    say(local=s.getsockname()[1])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
