"""What pages have readers type into a shell: whether there are such commands, with such options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import metadata
from itertools import dropwhile, takewhile
from pathlib import Path

import click
from celery.bin.celery import celery

ROOT = Path(__file__).parents[2]
# What is run in a shell, beside Celery and what each is checked for below.
PROGRAMS = {"curl", "docker", "export", "journalctl", "pkill", "pre-commit", "psql", "pytest", "ssh", "systemctl"}
CHECKED = {"celery", "pip", "python", "python3", "tox", "."}
EXTRAS = set(metadata("celery-pgleader").get_all("Provides-Extra") or ())


def commands(script: str) -> Iterator[list[str]]:
    """Give the words of each command of a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in {"&&", "||", "|"}:
                # What comes before it are variables, and what after it where its output goes.
                command = list(takewhile(lambda word: word not in {">", "<"}, words))
                yield list(dropwhile(re.compile(r"[A-Z_]+=").match, command))
                words = []
            else:
                words.append(word)


def check_celery(words: Sequence[str]) -> None:
    """Check a command of Celery's, ours among them: that it is there, and has these options and arguments."""
    command: click.Command = celery
    rest = list(words)
    context = click.Context(command)
    while isinstance(command, click.Group):
        given, left, _ = command.make_parser(context).parse_args(rest)
        if given.get("version") or given.get("help"):
            return
        if not left:
            return
        found = command.commands.get(left[0])
        assert found is not None, f"no command {left[0]}"
        context = click.Context(found, parent=context, info_name=left[0])
        command, rest = found, left[1:]
    _, extra, _ = command.make_parser(context).parse_args(rest)
    assert not extra or context.allow_extra_args, extra


def check_program(words: Sequence[str]) -> None:
    """Check one command of a shell."""
    program = Path(words[0]).name if words[0] != "." else "."
    assert program in PROGRAMS | CHECKED, f"{words[0]}: what is that, and is it there?"
    if program == "celery":
        check_celery(words[1:])
    if program == "docker" and "celery" in words:
        check_celery(words[words.index("celery") + 1 :])
    if program == "pip":
        for word in words:
            if match := re.match(r"celery-pgleader\[(.+)\]", word):
                assert set(match[1].split(",")) <= EXTRAS, word
    if program == "tox":
        for names in re.findall(r"-e (\S+)", " ".join(words)):
            assert environment_is_there(names), names


def environment_is_there(names: str) -> bool:
    """Tell whether tox has such environments, as far as a name's words go."""
    text = (ROOT / "tox.ini").read_text()
    return all(word in text for name in names.split(",") for word in name.split("-"))
