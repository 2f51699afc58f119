"""The workers of a server: started, watched, stopped, and started again when they end.

This module owns the processes. A worker that is killed leaves its job interrupted, and a job that
was cancelled and does not stop in time costs its worker. It refuses to know what a worker does.
"""

import contextlib
import dataclasses
import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from recast.web.job_store import JobStore
from recast.web.server_folder import ServerFolder

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 0.1
_CANCEL_SECONDS = 1.2
"""How long a job may take to stop by itself after it was cancelled."""
_STOP_SECONDS = 6.0
_RESTART_SECONDS = 5.0
"""Shortest time between two starts of a worker that ends by itself."""
_PRUNE_SECONDS = 600.0


@dataclass(slots=True)
class _Process:
    device: str
    process: "subprocess.Popen[bytes]"
    started: float

    @property
    def name(self) -> str:
        return f"{self.device}-{self.process.pid}"


class Supervisor:
    """The workers of a server, one for each device. `flags` are passed on to each."""

    def __init__(
        self,
        folder: ServerFolder,
        store: JobStore,
        devices: Sequence[str],
        flags: Sequence[str] = (),
    ) -> None:
        self._folder, self._store, self._devices, self._flags = folder, store, devices, flags
        self._processes: list[_Process] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Mark what a former server left running as interrupted, and start the workers."""
        for job in self._store.interrupt():
            self._folder.remove_unfinished_files(job)
        self._folder.prune(self._store)
        self._processes = [self._started(device) for device in self._devices]
        self._thread.start()

    def stop(self) -> None:
        """Stop the workers. Their jobs become interrupted, and can be resumed."""
        self._stopped.set()
        self._thread.join()
        for worker in self._processes:
            with contextlib.suppress(OSError):
                assert worker.process.stdin is not None
                worker.process.stdin.close()
        for worker in self._processes:
            try:
                worker.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for job in self._store.interrupt():
            self._folder.remove_unfinished_files(job)

    @property
    def alive(self) -> int:
        """The number of workers that run."""
        return sum(worker.process.poll() is None for worker in self._processes)

    def process_ids(self) -> list[int]:
        """The ids of the workers' processes."""
        return [worker.process.pid for worker in self._processes]

    def _started(self, device: str) -> _Process:
        limits = json.dumps(dataclasses.asdict(self._folder.limits))
        command = [sys.executable, "-m", "recast.web.worker", str(self._folder.root), device]
        command += ["--limits", limits, *self._flags]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        return _Process(device, process, time.monotonic())

    def _watch(self) -> None:
        pruned = time.monotonic()
        while not self._stopped.wait(_WATCH_SECONDS):
            try:
                self._look_after_workers()
                if time.monotonic() - pruned > _PRUNE_SECONDS:
                    pruned = time.monotonic()
                    self._folder.prune(self._store)
            except sqlite3.OperationalError as error:  # such as a queue that is locked for long
                _log.warning("the queue of the server cannot be read now (%s)", error)

    def _look_after_workers(self) -> None:
        self._kill_overdue()
        for index, worker in enumerate(self._processes):
            if worker.process.poll() is not None:
                self._processes[index] = self._replaced(worker)

    def _kill_overdue(self) -> None:
        for job in self._store.jobs(states=("running",)):
            if job.cancelled is not None and time.time() - job.cancelled > _CANCEL_SECONDS:
                for worker in self._processes:
                    if worker.name == job.worker:
                        worker.process.kill()
                        worker.process.wait()
                        worker.started = 0.0  # it did not end by itself

    def _replaced(self, worker: _Process) -> _Process:
        """A new worker for one that has ended, or the old one if it is too early for that."""
        for job in self._store.interrupt(worker.name):
            self._folder.remove_unfinished_files(job)
        if time.monotonic() - worker.started < _RESTART_SECONDS:
            return worker
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        return self._started(worker.device)
