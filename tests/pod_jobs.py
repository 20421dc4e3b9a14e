"""Runs of pod_train.py as a scheduler sees them: started, watched, frozen, killed."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

PROGRAM = Path(__file__).parents[1] / "examples" / "pod_train.py"
MODEL = [
    *("--width", "32", "--layers", "2", "--heads", "4", "--context", "32"),
    *("--batch", "8", "--save-every", "2", "--keep", "100", "--digests"),
]
HANGING = 300  # seconds without what a job is waited for: no bound on its speed


@dataclasses.dataclass
class Job:
    """All processes of one run; leaving the context kills those that are left.

    Attributes:
      out: the folder that the run writes to.
      logs: one file a process, of all that it printed.
    """

    out: Path
    logs: list[Path]
    processes: list[subprocess.Popen]

    def said(self) -> list[str]:
        """What process 0 has printed so far, without gloo's own lines."""
        lines = self.logs[0].read_text().splitlines()
        return [line for line in lines if "[Gloo]" not in line]

    def wait_until(self, found):
        """What `found()` returns once it is true; the job must not end before."""
        deadline = time.monotonic() + HANGING
        while True:
            ended = self.processes[0].poll() is not None  # first: its last words count
            if result := found():
                return result
            assert not ended, f"the job ended too early:\n{self.report()}"
            assert time.monotonic() < deadline, f"the job hangs:\n{self.report()}"
            time.sleep(0.001)

    def wait_for(self, start: str) -> str:
        """The first line of process 0 that starts so, as soon as it is there."""
        return self.wait_until(
            lambda: next((line for line in self.said() if line.startswith(start)), None)
        )

    def send(self, number: signal.Signals, *which: int) -> None:
        """A signal to these processes, or to all."""
        for index in which or range(len(self.processes)):
            if self.processes[index].poll() is None:
                self.processes[index].send_signal(number)

    def freeze(self) -> None:
        """Stop all, and wait until they stand still."""
        self.send(signal.SIGSTOP)
        for process in self.processes:  # WNOWAIT leaves an end for Popen to see
            how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
            os.waitid(os.P_PID, process.pid, how)

    def kill(self, *which: int) -> None:
        """`kill -9`, and wait until they are gone."""
        self.send(signal.SIGKILL, *which)
        for index in which or range(len(self.processes)):
            self.processes[index].wait(HANGING)

    def result(self) -> dict:
        """What the run wrote, after all its processes ended well."""
        for process in self.processes:
            assert process.wait(HANGING) == 0, self.report()
        return json.loads((self.out / "result.json").read_text())

    def report(self) -> str:
        return "\n".join(f"{log}:\n{log.read_text()}" for log in self.logs)


@contextlib.contextmanager
def job(out: Path, *flags: str, processes: int = 1, devices: int = 8):
    """Start the program, `devices` in all, shared evenly among the processes."""
    out.mkdir(parents=True, exist_ok=True)
    attempt = len(list(out.parent.glob(f"{out.name}_*.log")))
    rendezvous = ["--coordinator", f"localhost:{free_port()}"]
    rendezvous += ["--processes", str(processes)]
    started = Job(out, [], [])
    try:
        for index in range(processes):
            log = out.parent / f"{out.name}_{attempt}_{index}.log"
            command = [sys.executable, "-W", "ignore", PROGRAM, *MODEL, *flags]
            command += ["--out", out, "--cpu-devices", str(devices // processes)]
            if processes > 1:
                command += [*rendezvous, "--process", str(index)]
            started.logs.append(log)
            with log.open("w") as file:
                started.processes.append(
                    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
                )
        yield started
    finally:
        started.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def steps_in(out: Path) -> list[int]:
    """The steps of the checkpoints that are complete."""
    names = [path.name for path in (out / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def unfinished_in(out: Path) -> list[Path]:
    """Checkpoints that are being written, or were when the writer was killed."""
    return list((out / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def values_in(out: Path) -> dict[str, np.ndarray]:
    """Parameters and optimizer state in the newest checkpoint, read by Orbax alone."""
    folder = out / "checkpoints" / str(max(steps_in(out))) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(folder, restore_args=plain)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
