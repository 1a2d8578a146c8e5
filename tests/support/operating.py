"""Somebody with a shell and workers to look after."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.workers import APP, PATIENCE, Workers

# One process for many commands: to start one takes longer than what it does.
SHELL = """
import json, sys
from celery.bin.celery import celery
from click.testing import CliRunner
for line in sys.stdin:
    done = CliRunner().invoke(celery, json.loads(line))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""
Result = subprocess.CompletedProcess[str]


def run_celery(workers: Workers, *arguments: str, **environment: str) -> Result:
    """Run a `celery` command to its end, in a process of its own."""
    command = [sys.executable, "-m", "celery", *arguments]
    env = {**workers.environment, **environment}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in result.stderr, result
    return result


def refusal(workers: Workers, *options: str, **environment: str) -> str:
    """Return the one line with which a worker refuses to start."""
    result = run_celery(workers, "-A", APP, "worker", *options, **environment)
    assert result.returncode == 1, result
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


class Operator:
    """Runs `celery -A proj pgleader ...`."""

    def __init__(self, workers: Workers, app: str = APP) -> None:
        """Begin."""
        self.workers = workers
        self.query = workers.query
        self._app = app
        self._shell: subprocess.Popen[str] | None = None

    def run(self, *arguments: str, **environment: str) -> Result:
        """Run a command to its end; in a process of its own if its environment is."""
        if environment:
            return run_celery(self.workers, "-A", self._app, "pgleader", *arguments, **environment)
        return self.celery("pgleader", *arguments)

    def celery(self, *arguments: str) -> Result:
        """Run `celery -A proj ...` to its end."""
        if self._shell is None:
            self._shell = subprocess.Popen(
                [sys.executable, "-c", SHELL],
                env=self.workers.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.workers.cleanup.callback(self._shell.communicate)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(json.dumps(["-A", self._app, *arguments]) + "\n")
        self._shell.stdin.flush()
        return subprocess.CompletedProcess(arguments, *json.loads(self._shell.stdout.readline()))

    def say(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Return what a command prints, all of which fits a terminal and has no colours."""
        result = self.run(*arguments, **environment)
        assert result.returncode == code, result
        check_looks(result.stdout)
        return result.stdout

    def ask(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """Return what a command says in JSON."""
        result = self.run(*arguments, "--json", **environment)
        assert result.returncode == code, result
        return json.loads(result.stdout)


def check_looks(text: str) -> None:
    """See that it fits a terminal, and has no colours."""
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert "\x1b" not in text
