"""How a process says that it does not start."""

from __future__ import annotations

import click

from celery_pgleader.errors import ConfigurationError


class Refused(click.ClickException, ConfigurationError):
    """The process cannot take part as it was asked to.

    On the command line Click shows it as one line; a program that builds a worker gets a `ConfigurationError`.
    """
