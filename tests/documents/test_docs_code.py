"""The examples of all pages can be parsed, and commands are given options that they have.

`tests/integration/test_docs_code.py` runs those that can be run.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.pages import PAGES, ROOT, Block, all_blocks
from tests.support.shell import check_celery, check_program, commands


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_block_compiles(block: Block) -> None:
    assert compile(block.code, str(block.page), "exec")


@pytest.mark.parametrize("block", all_blocks("sh"), ids=str)
def test_shell_block_is_made_of_existing_commands(block: Block) -> None:
    lines = list(commands(block.code))
    assert lines
    for words in filter(None, lines):
        check_program(words)


# `celery events` has two of that.
@pytest.mark.filterwarnings("ignore:The parameter -d is used more than once")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_command_in_the_text_has_existing_options(page: Path) -> None:
    """Those of Celery, too, unless something is left out of them."""
    for found in re.findall(r"`(celery -A [^`]+)`|^    (celery -A [^\n]+)$", page.read_text(), re.MULTILINE):
        line = " ".join("".join(found).split())
        if not re.search(r"\.\.\.|[<>\[|]|  ", line) and "becomes" not in line:
            check_celery(shlex.split(line)[1:])


@pytest.mark.parametrize("block", all_blocks("json", "yaml", "ini", "toml"), ids=str)
def test_data_block_can_be_parsed(block: Block) -> None:
    if block.language == "json":
        assert json.loads(block.code)
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.code))
    else:
        assert block.language == "ini", "add a parser for it"
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        # systemd and PgBouncer tell upper from lower case.
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(block.code)
        assert parser.sections()


def test_every_language_is_checked() -> None:
    """A block in another one would pass by all of this; `js` is run by the test of its guide."""
    fences = {
        language
        for page in PAGES
        for language in re.findall(r"^ *```(\w*)\n(?:(?! *```).*\n)*? *```$", page.read_text(), re.MULTILINE)
    }
    assert fences == {"ini", "js", "json", "python", "sh", "sql", "yaml"}
