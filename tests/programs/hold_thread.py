#!/usr/bin/python3
"""hold_thread.py PID NAME: holds the thread of that name, and no other of the process, until this program or the thread ends."""

import ctypes
import os
import sys

PTRACE_ATTACH = 16
WALL = 0x40000000


def thread_of(pid, name):
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/comm") as comm:
            if comm.read().strip() == name:
                return int(tid)
    sys.exit(f"process {pid} has no thread {name}")


tid = thread_of(sys.argv[1], sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(PTRACE_ATTACH, tid, None, None) != 0:
    sys.exit(f"cannot attach to {tid}: {os.strerror(ctypes.get_errno())}")
while True:
    # It is not told to go on. When it is killed, whoever holds it has to let its remains go.
    _, status = os.waitpid(tid, WALL)
    if not os.WIFSTOPPED(status):
        break
    print("held", flush=True)
