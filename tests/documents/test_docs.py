"""The documentation says what there is, and nothing that there is not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest
from celery.utils.dispatch import Signal
from celery.worker.control import Panel

import celery_pgleader
from celery_pgleader import pytest_plugin, signals
from celery_pgleader.channels import ORDERS_CHANNEL, Route
from celery_pgleader.cli.doctor import EXAMINATIONS
from celery_pgleader.cli.plugin import WORKER_OPTIONS, pgleader
from celery_pgleader.config import PREFIX, Config
from celery_pgleader.dashboard.metrics import COUNTERS, GAUGES, HISTOGRAMS
from celery_pgleader.testing import FakeNode
from tests.support.pages import BLOCK, ROOT, blocks_in

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
METRICS = {*GAUGES, *(f"{name}_total" for name in COUNTERS), *HISTOGRAMS}
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def documented() -> dict[str, str]:
    """Return the text below the heading of each setting, by field name."""
    sections = re.split(r"^## ", SETTINGS, flags=re.MULTILINE)
    found = {}
    for section in sections:
        heading, _, text = section.partition("\n")
        if match := re.fullmatch(rf"`{PREFIX}(\w+)`", heading):
            assert match[1] not in found, f"{heading} is documented twice"
            found[match[1]] = text
    return found


def facts(field: str) -> dict[str, str]:
    """Return the list that stands below the heading of a setting."""
    return dict(re.findall(r"^- (\w+): (.+)$", documented().get(field, ""), re.MULTILINE))


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return BLOCK.sub("", page.read_text())


def code(page: Path) -> str:
    """Return what a page sets as code, in blocks or in a line."""
    return "\n".join([*(block.code for block in blocks_in(page)), *re.findall(r"`([^`\n]+)`", prose(page))])


def anchors(page: Path) -> set[str]:
    """Return what links may name after `#`."""
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in HEADING.findall(prose(page))
    }


def option_names() -> dict[str, str]:
    """Return the worker options by the field that they set; `--pgleader` itself is under the empty name."""
    names = {}
    for option in WORKER_OPTIONS:
        assert option.name is not None
        names[option.name.removeprefix(PREFIX.rstrip("_")).removeprefix("_")] = option.opts[0]
    return names


def test_every_setting_has_a_heading_and_every_heading_a_setting() -> None:
    """In the order of `Config`, too."""
    assert list(FIELDS) == list(documented())


@pytest.mark.parametrize("field", FIELDS)
def test_setting_names_type_default_environment_and_option(field: str) -> None:
    """The list is complete, and its names are those that the code reads."""
    listed = facts(field)
    variable = "none" if field in {"channels", "schedule"} else f"`PGLEADER_{field.upper()}`"
    option = option_names().get(field)
    assert {"Type", "Default", "Environment", "Option"} == set(listed)
    assert variable == listed["Environment"]
    assert (f"`{option}`" if option else "none") == listed["Option"]


@pytest.mark.parametrize("field", ["ttl", "poll_interval", "retention"])
def test_setting_shows_the_default_of_the_code(field: str) -> None:
    """A default that is a plain number."""
    assert f"`{FIELDS[field].default:g}`" == facts(field)["Default"]


def test_derived_defaults_are_those_of_the_code() -> None:
    """Those that are a share of the ttl."""
    config = Config(database_url="postgresql://localhost/shop")
    assert facts("renew_interval")["Default"] == f"a fifth of `pgleader_ttl`, so {config.renew_interval:g}"
    assert facts("trust_margin")["Default"] == f"a tenth of `pgleader_ttl`, so {config.trust_margin:g}"


def test_every_worker_option_is_documented_and_every_documented_option_exists() -> None:
    """On the page of the settings, with the switch that turns it off."""
    existing = {name for option in WORKER_OPTIONS for name in (*option.opts, *option.secondary_opts)}
    assert existing == set(re.findall(r"--(?:no-)?pgleader[\w-]*", SETTINGS))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_names_only_settings_and_options_that_exist(page: Path) -> None:
    """Environment variables, headers and metrics included."""
    text = page.read_text()
    headers = {"pgleader_channel", "pgleader_backend_pid", "pgleader_term", "pgleader_slot", "pgleader_notification"}
    settings = {f"{PREFIX}{name}" for name in FIELDS}
    others = {ORDERS_CHANNEL, *vars(pytest_plugin), *Panel.data, *METRICS}
    assert set(re.findall(r"(?<![\w.])pgleader_\w+", text)) <= settings | headers | others
    variables = {f"PGLEADER_{name.upper()}" for name in FIELDS} | {"PGLEADER_", "PGLEADER_DASHBOARD_TOKEN"}
    assert set(re.findall(r"\bPGLEADER_\w+", text)) <= variables
    options = {name for option in WORKER_OPTIONS for name in (*option.opts, *option.secondary_opts)}
    assert set(re.findall(r"--(?:no-)?pgleader[\w-]*", text)) <= options


def commands(group: click.Group, *words: str) -> dict[str, click.Command]:
    """Return the commands of a group and of its groups, by their words."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, *words, name) if isinstance(command, click.Group) else {}
        found[" ".join([*words, name])] = command
    return found


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    """On the pages, with options that it has."""
    existing = commands(pgleader)
    shown = set()
    for line in re.findall(r"celery -A \S+ pgleader ([^`\n]+)", "\n".join(code(page) for page in PAGES)):
        words = line.split()
        if words[0] == "...":
            continue
        name = " ".join(words[:2]) if words[0] == "notifications" else words[0]
        shown.add(name)
        options = {option for param in existing[name].params for option in (*param.opts, *param.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--\w[\w-]*", line)) <= options, line
    groups = {name for name, command in existing.items() if isinstance(command, click.Group)}
    assert shown == existing.keys() - groups


def test_every_field_of_a_route_is_documented() -> None:
    """In the table of the page, with its default."""
    table = (ROOT / "docs" / "notifications.md").read_text().partition("| In the dict |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| *([^|]*?) *\|", table, re.MULTILINE))
    assert list(rows) == [field.name for field in dataclasses.fields(Route)]
    assert rows["decode"] == f"`{Route('any').decode}`"
    assert rows["deduplicate"] == f"`{Route('any').deduplicate}`"


def test_every_method_of_the_node_for_tests_is_documented() -> None:
    """In the table of the page, with what it holds."""
    listed = re.findall(r"^\| `(\w+)[(`]", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE)
    methods = {name for name in vars(FakeNode) if not name.startswith("_")}
    assert set(listed) == methods | {"leadership", "sent"}


@pytest.mark.parametrize("name", celery_pgleader.__all__)
def test_public_name_is_documented(name: str) -> None:
    """Each is mentioned, as code, on some page."""
    assert re.search(rf"\b{name}\b", "\n".join(code(page) for page in PAGES))


def test_imports_in_examples_are_public() -> None:
    """What an example imports from the package can be imported from there."""
    lines = [line for page in PAGES for line in re.findall(r"from celery_pgleader import (.+)", page.read_text())]
    imported = {name.strip() for line in lines for name in line.split(",")}
    assert imported
    assert imported <= set(celery_pgleader.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page: Path) -> None:
    """The file is there, and the heading in it."""
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_index() -> None:
    """A page without a link is not read."""
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(prose(DOCS / "index.md"))}
    own = {page.resolve() for page in PAGES if page.is_relative_to(DOCS)} - {(DOCS / "index.md").resolve()}
    assert own <= linked


def sql_functions() -> set[str]:
    """Return the functions that the schema has for others to call, with their arguments."""
    steps = sorted((ROOT / "celery_pgleader" / "store" / "migrations").glob("*.sql"))
    declared = re.compile(r"^create (?:or replace )?function (pgleader\.\w+\([^)]*\)) returns (\w+)", re.MULTILINE)
    found = {" ".join(words.split()): kind for step in steps for words, kind in declared.findall(step.read_text())}
    # What the schema's own triggers call is nobody else's.
    own = {"pgleader.bucket", "pgleader.count"}
    return {words for words, kind in found.items() if kind != "trigger" and words.partition("(")[0] not in own}


def worker_events() -> set[str]:
    """Return the events that workers send."""
    return set(re.findall(r'"(worker-[a-z-]+)"', (ROOT / "celery_pgleader" / "worker" / "announcer.py").read_text()))


# What there is of each kind, and the page, and how it is written there; what else is so written there does not exist.
REFERENCES = {
    "SQL functions": (sql_functions(), "sql.md", r"^## `([^`]+)`$"),
    "signals": (
        {name for name, found in vars(signals).items() if isinstance(found, Signal)},
        "operations.md",
        r"\b(leadership_(?:gained|lost))\b",
    ),
    "worker events": (worker_events(), "operations.md", r"`(worker-[a-z-]+)`"),
    "remote control": (
        {name for name, command in Panel.meta.items() if name.startswith("pgleader") and command.visible},
        "operations.md",
        r"^celery -A proj (?:inspect|control -d \S+) (pgleader\w*)$",
    ),
    "public names": (
        {*celery_pgleader.__all__},
        "api.rst",
        r"^\.\. (?:auto\w+|py:data):: celery_pgleader\.(\w+)$",
    ),
    "metrics": (METRICS, "metrics.md", r"^\| `(pgleader_\w+)` \|"),
    "checks of doctor": ({*EXAMINATIONS}, "commands.md", None),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_reference_is_complete_and_names_only_what_exists(kind: str) -> None:
    """Nothing is undocumented, and nothing that is gone is documented."""
    existing, page, written = REFERENCES[kind]
    text = (DOCS / page).read_text()
    if written is None:
        # A table below a heading.
        table = text.partition("| It examines |")[2].partition("\n\n")[0]
        documented = set(re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE))
    else:
        documented = set(re.findall(written, text, re.MULTILINE))
    assert existing
    assert documented == existing
