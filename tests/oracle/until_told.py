#!/usr/bin/python3
"""Runs collector.py as it is, and lets it end early: after SIGTERM, once nothing has arrived for a while, its main loop
is told that the time is over."""
import signal
import sys
import time

import collector

QUIET_S = 0.7
told = False
last_message = 0.0


def stop(*_):
    global told
    told = True


class Watched(collector.Collector):
    def message(self, frames):
        global last_message
        super().message(frames)
        last_message = time.monotonic()


class Clock:
    """The time module, but for the main loop's deadline."""

    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic(self):
        now = time.monotonic()
        over = told and now - last_message > QUIET_S and sys._getframe(1).f_code.co_name == "main"
        return float("inf") if over else now


signal.signal(signal.SIGTERM, stop)
collector.time = Clock()
collector.Collector = Watched
collector.main()
