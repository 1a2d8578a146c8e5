"""Policies of schedule entries: how they are read, in which words they are refused, and which applies to an entry."""

from __future__ import annotations

import math
from typing import Any

import pytest

from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError, shown
from celery_pgleader.policies import DEFAULT, SKIP_GRACE, Misfire, Overlap, Policy, policy_of, read_policies

SETTING = "pgleader_schedule"


def refusal(value: object) -> str:
    """Return the message with which a value is refused, as a part of the configuration too."""
    with pytest.raises(ConfigurationError) as refused:
        read_policies(SETTING, value)
    message = str(refused.value)
    assert "\n" not in message
    with pytest.raises(ConfigurationError) as by_config:
        Config(database_url="host=nowhere", schedule=value)  # type: ignore[arg-type]
    assert str(by_config.value) == message
    return message


def test_default_policy_is_what_celery_does() -> None:
    """One run makes up for all that were missed, however late; runs may overlap."""
    assert Policy() == DEFAULT
    assert (DEFAULT.misfire, DEFAULT.grace) == (Misfire.COALESCE, math.inf)
    assert (DEFAULT.overlap, DEFAULT.deduplicate) == (Overlap.ALLOW, False)
    assert Config(database_url="host=nowhere").schedule == {}


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, Policy()),
        ({"misfire": "all"}, Policy(misfire=Misfire.ALL)),
        ({"misfire": "skip"}, Policy(misfire=Misfire.SKIP)),
        ({"misfire": "coalesce"}, Policy(misfire=Misfire.COALESCE)),
        ({"misfire": Misfire.ALL}, Policy(misfire=Misfire.ALL)),
        ({"misfire_grace": 3600}, Policy(misfire_grace=3600.0)),
        ({"misfire_grace": 0.5}, Policy(misfire_grace=0.5)),
        ({"misfire_grace": None}, Policy()),
        ({"overlap": "allow"}, Policy(overlap=Overlap.ALLOW)),
        ({"overlap": "skip"}, Policy(overlap=Overlap.SKIP)),
        ({"overlap": "wait"}, Policy(overlap=Overlap.WAIT)),
        ({"deduplicate": True}, Policy(deduplicate=True)),
        (Policy(misfire=Misfire.ALL), Policy(misfire=Misfire.ALL)),
        (
            {"misfire": "skip", "misfire_grace": 5, "overlap": "wait", "deduplicate": True},
            Policy(misfire=Misfire.SKIP, misfire_grace=5.0, overlap=Overlap.WAIT, deduplicate=True),
        ),
    ],
)
def test_policy_is_read_from_plain_values(given: object, policy: Policy) -> None:
    """Or is taken as it is."""
    assert read_policies(SETTING, {"tick": given}) == {"tick": policy}
    config = Config(database_url="host=nowhere", schedule={"tick": given})  # type: ignore[dict-item]
    assert config.schedule == {"tick": policy}


def test_grace_is_endless_unless_skip_or_a_number_is_given() -> None:
    assert Policy(misfire=Misfire.COALESCE).grace == math.inf
    assert Policy(misfire=Misfire.ALL).grace == math.inf
    assert Policy(misfire=Misfire.SKIP).grace == SKIP_GRACE
    assert Policy(misfire=Misfire.SKIP, misfire_grace=60.0).grace == 60.0
    assert Policy(misfire=Misfire.ALL, misfire_grace=0.5).grace == 0.5


@pytest.mark.parametrize("value", [None, "all", [("tick", {})], 5])
def test_policies_that_are_no_dict_are_refused(value: object) -> None:
    """Even what could be made one."""
    assert refusal(value) == f"{SETTING} = {value!r}: must be a dict such as " + '{"reports.*": {"misfire": "all"}}'


@pytest.mark.parametrize("key", ["", None, 5, ("a",), b"tick"])
def test_key_that_is_no_name_is_refused(key: object) -> None:
    """The message shows the key."""
    assert refusal({key: {}}) == (
        f"{SETTING} = {key!r}: each key must be the name of an entry, or a pattern such as reports.*"
    )


@pytest.mark.parametrize("value", [None, "all", ["misfire"], True])
def test_entry_without_a_dict_is_refused(value: object) -> None:
    """The message says for which entry."""
    assert refusal({"tick": {}, "tock": value}) == (
        f"{SETTING}['tock'] = {value!r}: must be a dict such as " + '{"misfire": "all", "misfire_grace": 3600}'
    )


@pytest.mark.parametrize("value", ["ALL", "newest", None, 1, True, ["all"], {"all": 1}, "all\nskip"])
def test_unknown_misfire_is_refused(value: object) -> None:
    """The message has the choices."""
    assert refusal({"tick": {"misfire": value}}) == (
        f"{SETTING}['tick']['misfire'] = {value!r}: must be one of coalesce, all, skip"
    )


@pytest.mark.parametrize("value", ["Skip", "forbid", None, 0, False, ["skip"]])
def test_unknown_overlap_is_refused(value: object) -> None:
    """The message has the choices."""
    assert refusal({"tick": {"overlap": value}}) == (
        f"{SETTING}['tick']['overlap'] = {value!r}: must be one of allow, skip, wait"
    )


@pytest.mark.parametrize("value", [0, -1, 0.0, math.inf, -math.inf, math.nan, 1e9, 10**400, "60", True, False, [60]])
def test_impossible_grace_is_refused(value: object) -> None:
    """So many seconds before the present there must have been a date."""
    rule = "must be a number of seconds above 0, and at most 315532800"
    assert refusal({"tick": {"misfire_grace": value}}) == f"{SETTING}['tick']['misfire_grace'] = {shown(value)}: {rule}"


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_deduplicate_that_is_no_bool_is_refused(value: object) -> None:
    """Truth is not guessed."""
    assert refusal({"tick": {"deduplicate": value}}) == (
        f"{SETTING}['tick']['deduplicate'] = {value!r}: must be True or False"
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("misfire_grase", "; did you mean misfire_grace?"),
        ("misfires", "; did you mean misfire?"),
        ("overlaps", "; did you mean overlap?"),
        ("dedup", "; did you mean deduplicate?"),
        ("retry", ""),
        (5, ""),
    ],
)
def test_unknown_policy_is_refused_with_a_hint(key: object, hint: str) -> None:
    """A typo must not silently mean the default."""
    assert refusal({"tick": {key: "all"}}) == f"{SETTING}['tick'][{key!r}]: there is no such policy{hint}"


def named(**policies: str) -> dict[str, Any]:
    return {name: Policy(misfire=Misfire(misfire)) for name, misfire in policies.items()}


def test_exact_name_beats_patterns() -> None:
    """Wherever it stands."""
    policies = named(**{"reports.*": "all", "*": "skip", "reports.daily": "coalesce"})
    assert policy_of(policies, "reports.daily").misfire is Misfire.COALESCE
    assert policy_of(policies, "reports.weekly").misfire is Misfire.ALL
    assert policy_of(policies, "tick").misfire is Misfire.SKIP


def test_first_pattern_that_matches_wins() -> None:
    """In the order in which they were written."""
    assert policy_of(named(**{"*": "skip", "reports.*": "all"}), "reports.daily").misfire is Misfire.SKIP
    assert policy_of(named(**{"reports.*": "all", "*": "skip"}), "reports.daily").misfire is Misfire.ALL
    read = Config(database_url="host=nowhere", schedule={"r*": {"misfire": "all"}, "*": {"misfire": "skip"}})  # type: ignore[dict-item]
    assert policy_of(read.schedule, "reports").misfire is Misfire.ALL
    assert policy_of(read.schedule, "tick").misfire is Misfire.SKIP


def test_default_policy_applies_without_a_match() -> None:
    """Names differ by case, and a pattern has to match the whole name."""
    assert policy_of({}, "tick") is DEFAULT
    policies = named(**{"Tick": "all", "reports.*": "all"})
    assert policy_of(policies, "tick") is DEFAULT
    assert policy_of(policies, "my.reports.daily") is DEFAULT
    assert policy_of(policies, "REPORTS.daily") is DEFAULT


def test_name_that_looks_like_a_pattern_is_found() -> None:
    assert policy_of(named(**{"[nightly]": "all"}), "[nightly]").misfire is Misfire.ALL
    assert policy_of(named(**{"[nightly]": "all"}), "n").misfire is Misfire.ALL
