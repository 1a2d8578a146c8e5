"""The page by which the processes of a worker know whether it leads, with real files and processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from celery_pgleader.tasks import trust_page


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have pages made in a folder of the test's own."""
    monkeypatch.setattr(trust_page, "SHARED", tmp_path)
    # So that what a page leaves in the environment is put back.
    monkeypatch.setenv(trust_page.VARIABLE, "nowhere")
    return tmp_path


def test_page_tells_the_term_while_it_is_trusted(pages: Path) -> None:
    """It is found by the environment, as a spawned process has to."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    assert reader.term() is None, "nothing was told yet"
    page.write(7, time.monotonic() + 60)
    assert reader.term() == 7
    page.write(8, time.monotonic() - 1)
    assert reader.term() is None, "the time is over"
    page.write(9, time.monotonic() + 60)
    page.close()
    assert reader.term() is None, "nobody leads after the end"
    assert not list(pages.iterdir())


def test_no_run_begins_before_its_turn_or_on_a_shut_page(pages: Path) -> None:
    """What has begun may still trust its term."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    page.give_turn(7)
    assert not reader.may_begin()
    assert reader.begin() is None, "nobody leads"
    page.write(7, time.monotonic() + 60)
    assert reader.may_begin()
    begun = reader.begin()
    assert begun is not None
    assert begun.term == 7
    begun.end()
    page.write(8, time.monotonic() + 60)
    assert (reader.term(), reader.may_begin()) == (8, False)
    assert reader.begin() is None, "a later term has its own turn"
    page.give_turn(8)
    assert reader.may_begin()
    page.shut()
    page.give_turn(8)
    page.write(8, time.monotonic() + 60)
    assert (reader.term(), reader.may_begin(), reader.is_shut()) == (8, False, True)
    assert reader.begin() is None
    assert not page.has_runs(), "a vain attempt is no run"
    page.close()


def test_worker_knows_of_its_loss_before_the_page_does(pages: Path) -> None:
    """Its own process asks it, too; one that it has forked cannot."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    page.write(7, time.monotonic() + 60)
    page.give_turn(7)
    reader.also_ask(lambda: False)
    assert reader.term() is None
    assert reader.begin() is None
    child = os.fork()
    if not child:
        os._exit(0 if reader.term() == 7 and reader.may_begin() else 1)
    assert os.waitpid(child, 0)[1] == 0
    page.close()


def test_page_counts_begun_runs(pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and in others; and one that cannot be counted begins all the same."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    assert reader.begin() is None
    page.write(7, time.monotonic() + 60)
    page.give_turn(7)
    for _ in range(3):
        run = reader.begin()
        assert run is not None
        run.end()
    child = os.fork()
    if not child:
        os._exit(0 if reader.begin() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert page.runs_begun() == 4

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    run = reader.begin()
    assert run is not None
    run.end()
    assert page.runs_begun() == 4
    page.close()


def test_page_knows_of_every_run(pages: Path) -> None:
    """In this process and in others, until the last has ended, or its process died."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    page.write(7, time.monotonic() + 60)
    page.give_turn(7)
    assert not page.has_runs()
    first, second = reader.begin(), reader.begin()
    assert first is not None
    assert second is not None
    first.end()
    assert page.has_runs()
    second.end()
    assert not page.has_runs()
    code = "from celery_pgleader.tasks.trust_page import reader; run = reader.begin(); print(run.term); input()"
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"7\n"
        assert page.has_runs()
        process.kill()
    assert not page.has_runs()
    page.close()


def test_half_written_page_is_not_trusted(pages: Path) -> None:
    """Neither half of it says anything."""
    page, reader = trust_page.TrustPage(), trust_page.TrustReader()
    page.write(7, time.monotonic() + 60)
    (path,) = pages.iterdir()
    first, term, last = trust_page.PAGE.unpack(path.read_bytes()[: trust_page.PAGE.size])
    for torn in ((0.0, term, last), (first, term + 1, 0.0), (first, term, last + 1)):
        path.write_bytes(trust_page.PAGE.pack(*torn) + bytes(trust_page.SIZE - trust_page.PAGE.size))
        assert reader.term() is None
    page.close()


def test_no_term_is_trusted_without_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, no file, or an empty one: the process belongs to no worker that takes part."""
    (tmp_path / "empty").touch()
    monkeypatch.delenv(trust_page.VARIABLE, raising=False)
    assert trust_page.TrustReader().term() is None
    for name in ("missing", "empty"):
        monkeypatch.setenv(trust_page.VARIABLE, str(tmp_path / name))
        assert trust_page.TrustReader().term() is None


def test_spawned_process_reads_the_page(pages: Path) -> None:
    """It inherits nothing but the environment."""
    page = trust_page.TrustPage()
    page.write(7, time.monotonic() + 60)
    code = "from celery_pgleader.tasks.trust_page import reader; print(reader.term())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    page.close()
    assert output == "7\n"


def test_second_worker_of_a_process_has_its_own_page(pages: Path) -> None:
    """A reader that has read the first one's goes on with the second's."""
    reader = trust_page.TrustReader()
    for term in (7, 8):
        page = trust_page.TrustPage()
        page.write(term, time.monotonic() + 60)
        page.give_turn(term)
        assert reader.term() == term
        begun = reader.begin()
        assert begun is not None
        begun.end()
        page.close()
        assert reader.term() is None


def test_pages_of_dead_workers_are_removed(pages: Path) -> None:
    """And nobody else's, such as those of another container that shares the folder, nor what is no page."""
    page = trust_page.TrustPage()
    (own,) = pages.iterdir()
    page.close()
    prefix = own.name.rpartition(f"{os.getpid()}-")[0]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    # The second has a number that no process can have.
    dead = [pages / f"{prefix}{ended.pid}-abc", pages / f"{prefix}{2**40}-abc"]
    names = [f"{prefix}{os.getpid()}-abc", f"{prefix}x-abc", f"{trust_page.PREFIX}1-{ended.pid}-abc", "else"]
    kept = [pages / name for name in names]
    for path in (*dead, *kept):
        path.touch()
    page = trust_page.TrustPage()
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)
    page.close()
