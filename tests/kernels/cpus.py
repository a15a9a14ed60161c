#!/usr/bin/python3
"""In a guest with more possible CPUs than it has: rings for those that are online, and records of one that comes later arrive.

usage: cpus.py FOLDER-OF-PROGRAMS. The last CPU is switched off and on again.
"""
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

BIN, SOCKET = sys.argv[1], "/run/cpus.sock"


def read(name):
    with open(f"/sys/devices/system/cpu/{name}") as file:
        return file.read().strip()


def stats(table):
    out = subprocess.run([f"{BIN}/ctl", "--socket", SOCKET, "--json", "stats"], capture_output=True, text=True, check=True).stdout
    return next(t["rows"] for t in json.loads(out)["tables"] if t["name"] == table)


def wait_for(what, probe):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if found := probe():
                return found
        except (subprocess.CalledProcessError, OSError):
            pass
        time.sleep(0.2)
    sys.exit(f"cpus.py: no {what}")


online, possible = (int(read(name).rpartition("-")[2]) + 1 for name in ("online", "possible"))
last = online - 1
# It may lack something that the agent does without (1), and says so.
check = subprocess.run([f"{BIN}/sockeye", "check"], capture_output=True, text=True)
assert check.returncode in (0, 1), check
said = check.stdout
rings = int(re.search(r"rings +(\d+) of", said)[1])
assert rings == online + (possible > online), f"{rings} rings, {online} CPUs of {possible}"


def switch(on):
    with open(f"/sys/devices/system/cpu/cpu{last}/online", "w") as file:
        file.write(str(on))


switch(0)
agent = subprocess.Popen([f"{BIN}/sockeye", "--control-socket", SOCKET], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
wait_for("answer", lambda: stats("agent"))
switch(1)
os.sched_setaffinity(0, {last})
server = socket.create_server(("127.0.0.1", 5005))


def serve():
    while True:
        server.accept()[0].close()


threading.Thread(target=serve, daemon=True).start()
for _ in range(100):
    with socket.create_connection(("127.0.0.1", 5005)) as client:
        client.recv(1)
os.sched_setaffinity(0, set(range(online)))
shared = wait_for("records of the CPU that came later", lambda: [row for row in stats("rings") if "cpu" not in row and row["delivered"] >= 200])
assert shared[0]["lost"] == 0, shared
agent.terminate()
said = agent.stderr.read()
assert f"CPU {last} is online now" in said, said
print(f"cpus.py: {rings} rings for {online} of {possible} CPUs, {shared[0]['delivered']} records through the shared one")
