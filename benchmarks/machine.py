"""On what was measured, and with which versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rivals import RIVALS
from example_app.servers import wheel_postgres, wheel_valkey

PACKAGES = ("celery-pgleader", "celery", "kombu", "redis", "psycopg")


def describe() -> dict[str, Any]:
    """Return it."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "Python": platform.python_version(),
            "PostgreSQL": _printed(wheel_postgres() / "postgres").split()[-1],
            "Valkey": _printed(wheel_valkey()).partition("v=")[2].split()[0],
            **{package: version(package) for package in PACKAGES},
            **{rival.package: rival.pin for rival in RIVALS},
        },
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _printed(program: Path) -> str:
    return subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip()
