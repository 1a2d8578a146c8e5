"""`pgleader dashboard`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_pgleader.cli import dashboard as command
from celery_pgleader.cli.plugin import pgleader


def test_missing_extra_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "starlette" else object())

    context = SimpleNamespace(app=Celery("proj", set_as_current=False))
    result = CliRunner().invoke(pgleader, ["dashboard"], obj=context)
    assert result.exit_code == 1
    assert result.output == "Error: the dashboard needs starlette: run `pip install 'celery-pgleader[dashboard]'`\n"
