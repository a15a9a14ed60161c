#!/usr/bin/python3
"""Runs collector.py as it is, and lets it end early: on SIGTERM its main loop is told that the time is over."""
import signal
import sys
import time

import collector

told = False


def stop(*_):
    global told
    told = True


class Clock:
    """The time module, but for the main loop's deadline."""

    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic(self):
        return float("inf") if told and sys._getframe(1).f_code.co_name == "main" else time.monotonic()


signal.signal(signal.SIGTERM, stop)
collector.time = Clock()
collector.main()
