"""`python -m tests.package`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Folders whose files are in the source distribution: it has all that its own tests need.
SOURCES = ("celery_pgleader", "tests", "example_app", "benchmarks", "docs")
JUNK = {"__pycache__", "node_modules"}
TRY = Path(__file__).with_name("trying.py")
API = ROOT / "tests" / "typing" / "api.py"


def main(folder: Path) -> None:
    """Do all of it; what is wrong raises."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The wheel is built from the source distribution.
    _run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    _look_into_sdist(sdist)
    extras = _look_into_wheel(wheel)

    # Outside of the repository, so that the package which is tried is the one that was installed.
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    bare, full = _new_environment(folder / "bare"), _new_environment(folder / "full")
    _run(bare, "-m", "pip", "install", "--quiet", wheel)
    _run(bare, "-m", "celery", "worker", "--help", cwd=elsewhere)
    _run(full, "-m", "pip", "install", "--quiet", f"{wheel}[binary]", "pytest", "typing_extensions")
    _run(full, "-m", "pip", "check")
    shutil.copy(TRY, elsewhere / "test_trying.py")
    # Or the repository's configuration would be found above it.
    (elsewhere / "pytest.ini").write_text("[pytest]\n")
    _run(full, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=elsewhere)
    shutil.copy(API, elsewhere / "api.py")
    _run(sys.executable, "-m", "mypy", "--strict", "--python-executable", full, "api.py", cwd=elsewhere)
    _build_image(folder / "image")
    for extra in extras:
        _run(full, "-m", "pip", "install", "--quiet", "--dry-run", f"{wheel}[{extra}]")
    print(f"{sdist.name} and {wheel.name} with Python {sys.version.split()[0]}: all well")


def _look_into_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {str(path.relative_to(ROOT)) for folder in SOURCES for path in _files(ROOT / folder)}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "tox.ini", ".ci/run"}
    assert not wanted - found, f"not in {sdist.name}: {sorted(wanted - found)}"
    junk = {name for name in found if JUNK & set(Path(name).parts) or name.endswith((".pyc", ".so", ".log"))}
    assert not junk, f"in {sdist.name}: {sorted(junk)}"


def _look_into_wheel(wheel: Path) -> list[str]:
    """Check its files; return the names of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    info = {name.split("/", 1)[1] for name in names if ".dist-info/" in name}
    found = {name for name in names if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in _files(ROOT / "celery_pgleader")}
    assert found == wanted, f"in {wheel.name} or in the package, and not in both: {sorted(found ^ wanted)}"
    assert "celery_pgleader/py.typed" in found
    assert {"entry_points.txt", "licenses/LICENSE"} <= info, info
    extras = message_from_string(metadata).get_all("Provides-Extra") or []
    assert re.search(r"^Requires-Python: >=3\.10$", metadata, re.MULTILINE)
    return [str(extra) for extra in extras]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not JUNK & set(path.parts)]


def _build_image(folder: Path) -> None:
    """Take the steps of the example app's image in an environment of its own, in place of an image of Python's."""
    workdir = folder / "shop"
    workdir.mkdir(parents=True)
    python = _new_environment(folder / "python")
    dockerfile = (ROOT / "example_app" / "Dockerfile").read_text()
    for step in re.findall(r"^(?!#)(\w+ .+)$", dockerfile, re.MULTILINE):
        instruction, _, rest = step.partition(" ")
        if instruction == "COPY":
            *sources, target = rest.split()
            for source in map(ROOT.joinpath, sources):
                if source.is_dir():
                    shutil.copytree(source, workdir / target, ignore=shutil.ignore_patterns(*JUNK))
                else:
                    shutil.copy(source, workdir / target)
        elif instruction == "RUN" and rest.startswith("pip "):
            _run(python, "-m", *shlex.split(rest), cwd=workdir)
        elif instruction == "CMD":
            # What it would start, as far as that goes without servers.
            _run(python.with_name("celery"), *json.loads(rest)[1:], "--help", cwd=workdir)
            _run(python.with_name("celery"), "-A", "example_app.shop", "pgleader", "migrate", "--sql", cwd=workdir)
        else:
            # The machine's: its user, its folders.
            assert instruction in {"FROM", "WORKDIR", "ENV", "USER"} or rest.startswith("useradd "), step


def _new_environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    # Nothing of the environment in which this runs is to be seen.
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    print("$", *command, flush=True)
    subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
