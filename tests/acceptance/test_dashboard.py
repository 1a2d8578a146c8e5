"""The dashboard, in a real browser."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from psycopg.conninfo import make_conninfo

from celery_pgleader.postgres import open_session
from celery_pgleader.store import Schema
from example_app.servers import EmbeddedPostgres
from tests.fixtures.servers import copied
from tests.support.browser import looking, violations
from tests.support.dashboard import MANY, MANY_NODES, TOKEN, Dashboard, Leading, execute, serving
from tests.support.eventually import eventually
from tests.support.workers import APP, PATIENCE, Workers

DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKS = [pytest.param("light", DESK, id="desk, light"), pytest.param("dark", PHONE, id="phone, dark")]
# Milliseconds until there is something to be seen.
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@pytest.fixture
def workers(tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers on a shared broker."""
    with Workers(tmp_path, database, valkey, "solo") as started:
        started.environment["PGLEADER_DASHBOARD_TOKEN"] = TOKEN
        yield started


@pytest.fixture
def dashboard(workers: Workers, tmp_path: Path) -> Iterator[Dashboard]:
    """Give a dashboard that takes orders."""
    with serving(APP, workers.environment, tmp_path, "--allow-actions") as served:
        yield served


def await_leader_on(page: Page, node: str) -> None:
    """Wait until the page shows that a node leads."""
    expect(page.locator(".who")).to_have_text(node)
    expect(page.locator(".role")).to_have_text("leader")


def sign_in(page: Page, dashboard: Dashboard) -> None:
    """Give the token."""
    page.goto(f"{dashboard.url}sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_page_shows_a_new_leader_without_reloading(workers: Workers, dashboard: Dashboard, browser: Browser) -> None:
    """Each time the old one is killed; what became of those is told, and drawn, too."""
    leader, other = workers.pair()
    with looking(browser, dashboard.url, **DESK) as page:
        page.evaluate("window.opened = 'once'")
        await_leader_on(page, leader.node)
        workers.kill(leader)
        await_leader_on(page, other.node)
        third = workers.start("c")
        workers.await_successors(1)
        workers.kill(other)
        await_leader_on(page, third.node)
        assert page.evaluate("window.opened") == "once"
        expect(page.locator("#spoken")).to_have_text(f"{third.node} leads now")
        expect(page.locator(".before")).to_contain_text("lost")
        expect(page.locator(".timeline .change.lost")).to_have_count(2)
        page.locator("summary", has_text="As a table").first.click()
        expect(page.locator("#terms tr")).to_have_count(3)
        expect(page.locator("#entry-1 th, #entry-0 th").filter(has_text="tick")).to_be_visible()
        expect(page.locator("tbody .strip path.published").first).to_be_attached()


def value(dashboard: Dashboard, metric: str) -> float:
    """Return what a metric without labels of its own says."""
    (line,) = re.findall(rf"^{metric}{{[^}}]*}} (.+)$", dashboard.get("/metrics"), re.MULTILINE)
    return float(line)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_metrics_count_what_a_worker_did(tmp_path: Path, database: str, valkey: str, pool: str) -> None:
    """Its leader-only runs, in whichever process they are, and its renewals; and what it has published."""
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(tmp_path, database, valkey, pool))
        dashboard = stack.enter_context(serving(APP, workers.environment, tmp_path))
        workers.start("a")
        for number in range(7):
            workers.send_to_leader("lead", str(number))
        eventually(lambda: value(dashboard, "pgleader_leader_only_runs_total") == 7, timeout=PATIENCE)
        eventually(lambda: value(dashboard, "pgleader_renewal_seconds_count") > 3, timeout=PATIENCE)
        eventually(lambda: value(dashboard, "pgleader_lateness_seconds_count") > 3, timeout=PATIENCE)


def test_orders_with_the_token_are_carried_out(workers: Workers, dashboard: Dashboard, browser: Browser) -> None:
    """And what came of them is told."""
    leader, other = workers.pair()
    with looking(browser, dashboard.url, **DESK) as page:
        await_leader_on(page, leader.node)
        expect(page.get_by_role("button", name="Run now")).to_have_count(0)
        sign_in(page, dashboard)
        page.get_by_role("button", name="Run now tick").click()
        expect(page.locator(".banner[role=status]")).to_contain_text("tick was published, as task")
        page.get_by_text("Pause the schedule").first.click()
        page.get_by_role("button", name="Pause the schedule").click()
        expect(page.locator("#banners")).to_contain_text("The schedule is paused")
        page.locator("summary", has_text="Resume").click()
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".banner[role=status]")).to_contain_text("the schedule goes on")
        page.locator("summary", has_text="Hand the lead over").click()
        page.get_by_label("Who is to lead").select_option(other.node)
        page.get_by_role("button", name="Hand the lead over").click()
        expect(page.locator(".banner[role=status]")).to_contain_text(f"{other.node} leads, term 2")
        await_leader_on(page, other.node)
        page.locator("summary", has_text="Hand the lead over").click()
        assert violations(page) == []
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("link", name="Sign in")).to_be_visible()
        expect(page.get_by_role("button", name="Run now")).to_have_count(0)


def test_order_without_the_token_is_refused(workers: Workers, dashboard: Dashboard) -> None:
    """Or from a page of somebody else's; and nothing is done."""
    for path in ("resign", "pause", "resume", "run-now"):
        response, _ = dashboard.ask(f"/orders/{path}", {"about": "tick", "form_token": ""})
        assert response.status == 403
    response, text = dashboard.ask("/sign-in", {"token": TOKEN[:-1]})
    assert (response.status, response.headers.get("set-cookie")) == (403, None)
    assert "That is not the token" in text
    response, _ = dashboard.ask("/sign-in", {"token": TOKEN})
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    cookie = cookie.partition(";")[0]
    for form in ({}, {"form_token": "x" * 43}):
        response, _ = dashboard.ask("/orders/pause", form, cookie)
        assert response.status == 403
        response, _ = dashboard.ask("/sign-out", form, cookie)
        assert response.status == 403
    _, page = dashboard.ask("/", cookie=cookie)
    (form_token, *_) = re.findall(r'name="form_token" value="([^"]+)"', page)
    response, _ = dashboard.ask("/orders/stop", {"form_token": form_token}, cookie)
    assert response.status == 404
    response, _ = dashboard.ask("/orders/pause", {"form_token": form_token, "x": "y" * 20_000}, cookie)
    assert response.status == 403
    response, _ = dashboard.ask("/orders/pause", cookie=cookie)
    assert response.status == 405
    assert "paused" not in dashboard.get("/metrics").partition("pgleader_schedule_paused{")[2]
    response, _ = dashboard.ask(
        "/orders/run-now", {"form_token": form_token, "about": "none", "here": "//evil"}, cookie
    )
    assert (response.status, response.headers["location"]) == (303, "/")
    assert TOKEN not in page


def test_dashboard_takes_no_orders_unless_it_is_told_to(workers: Workers, tmp_path: Path) -> None:
    """Even if the token is there; and a short one is refused."""
    with serving(APP, workers.environment, tmp_path) as dashboard:
        for path in ("/sign-in", "/orders/pause"):
            response, _ = dashboard.ask(path, {"token": TOKEN})
            assert response.status == 404
        assert "Sign in" not in dashboard.get("/")


def test_answers_forbid_framing_and_hold_no_password(workers: Workers, tmp_path: Path, database: str) -> None:
    """No password; and nothing of it may be framed, or read by a page that has got hold of another name for it."""
    workers.environment["PGLEADER_DATABASE_URL"] = make_conninfo(database, password="sesame")
    with serving(APP, workers.environment, tmp_path) as dashboard:
        for path in ("/", "/metrics", "/entry?name=x", "/nowhere", "/static/page.js"):
            response, text = dashboard.ask(path)
            assert "sesame" not in text
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "server" not in response.headers
        assert "sesame" not in dashboard.logged()
        response, _ = dashboard.ask("/", Host="evil.example")
        assert response.status == 400
        response, _ = dashboard.ask("/entry?name=%3Cscript%3E")
        assert response.status == 404


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_says_what_to_do_before_anything_is_there(
    tmp_path: Path, empty_database: str, valkey: str, browser: Browser, scheme: Any
) -> None:
    """Without a schema and without a worker; and what comes is seen."""
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(tmp_path, empty_database, valkey, "solo"))
        dashboard = stack.enter_context(serving(APP, workers.environment, tmp_path))
        page = stack.enter_context(looking(browser, dashboard.url, color_scheme=scheme, **DESK))
        expect(page.locator("#headline")).to_contain_text("celery -A proj worker --pgleader")
        expect(page.locator("#banners")).to_contain_text("There is no ledger")
        assert violations(page) == []
        if scheme == "light":
            worker = workers.start("a")
            await_leader_on(page, worker.node)
            expect(page.locator("#entries")).to_contain_text("tick")


def test_page_goes_on_by_itself_after_postgres_was_away(
    tmp_path: Path, valkey: str, own_postgres: EmbeddedPostgres, browser: Browser
) -> None:
    """It stays, and says since when; also one that is opened meanwhile."""
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(tmp_path, own_postgres.url(), valkey))
        workers.environment["PGLEADER_TTL"] = "60"
        prepare(own_postgres.url())
        leading = Leading(own_postgres.url(), stack, "proj")
        leading.lead("celery@a")
        dashboard = stack.enter_context(serving(APP, workers.environment, tmp_path))
        page = stack.enter_context(looking(browser, dashboard.url, **DESK))
        await_leader_on(page, "celery@a")
        own_postgres.stop()
        expect(page.locator("#banners")).to_contain_text("Postgres is away for")
        expect(page.locator("#banners")).to_contain_text("What is shown was seen before")
        expect(page.locator(".who")).to_have_text("celery@a")
        expect(page.locator("#live")).to_have_text("Postgres is away")
        assert violations(page) == []
        assert 'pgleader_up{election="proj"} 0.0' in dashboard.get("/metrics")
        response, _ = dashboard.ask("/entry?name=tick")
        assert response.status == 503
        with looking(browser, dashboard.url, color_scheme="dark", **DESK) as other:
            expect(other.locator("#banners")).to_contain_text("Postgres is away")
            assert violations(other) == []
        own_postgres.start()
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator(".role")).to_have_text("nobody leads")
        leading.lead("celery@b")
        await_leader_on(page, "celery@b")


def test_interrupt_ends_a_dashboard_that_somebody_looks_at(
    workers: Workers, dashboard: Dashboard, browser: Browser
) -> None:
    """The page says that it is on its own."""
    with looking(browser, f"{dashboard.url}?hours=1", **DESK) as page:
        expect(page.locator("#live")).to_have_text("live")
        for _ in range(2):
            dashboard.send(signal.SIGINT)
        assert dashboard.wait() == 0
        assert "Error" not in dashboard.logged()
        expect(page.locator("#live")).to_have_text("connecting")
        page.goto("about:blank")


def prepare(database: str) -> None:
    """Make the schema."""
    with open_session(database, "pgleader test", unresponsive_after=5) as session:
        Schema(session).ensure()


SCENE = """
insert into pgleader.entries (election, entry, task, schedule, anchor, since, last_slot, next_slot, paused_at)
select 'shop', e.*
  from (values
    ('report', 'shop.report', 'every 0:00:30', now(), now(), now(), now() + interval '21 s', null::timestamptz),
    ('invoices', 'shop.invoices', '<crontab: */5 * * * * (m/h/dM/MY/d)> (UTC)', now(), now(), now(),
     now() + interval '3 min 10 s', null),
    ('nightly backup', 'shop.backup', '<crontab: 0 4 * * * (m/h/dM/MY/d)> (UTC)', now(), now(), now(),
     now() + interval '9 h 20 min', null),
    ('sync stock', 'shop.sync_stock', 'every 0:01:00', now(), now(), now(), now() + interval '48 s', null),
    ('newsletter', 'shop.newsletter', '<crontab: 0 * * * * (m/h/dM/MY/d)> (UTC)', now(), now(), now(),
     now() + interval '26 min', now() - interval '2 h'),
    ('clean up', 'shop.clean_up', 'every 0:10:00', now(), now(), now(), now() + interval '6 min', null)
  ) e;
insert into pgleader.slots (election, entry, slot, through, state, reason, term, claimed_at, settled_at)
select 'shop', entry, slot, slot, state, reason, 5, slot, slot + lateness
  from (select entry, now() - n * every - interval '9 s' as slot, n,
               case when entry = 'newsletter' and n < 2 or entry = 'report' and n between 14 and 16 then 'skipped'
                    when entry = 'sync stock' and n between 8 and 10 then 'expired'
                    else 'published' end as state,
               case when entry = 'newsletter' and n < 2 then 'paused' when entry = 'report' and n in (14, 15, 16)
                    then 'coalesced' when entry = 'sync stock' and n in (8, 9, 10) then 'misfire_grace' end as reason,
               case when entry = 'report' and n = 13 then interval '6 s'
                    when entry = 'sync stock' and n in (0, 7) then interval '4.2 s'
                    else interval '11 ms' + interval '5 ms' * (n * 7 % 11) end as lateness
          from generate_series(0, 300) n,
               (values ('report', interval '30 s'), ('invoices', interval '5 min'),
                       ('nightly backup', interval '1 day'), ('sync stock', interval '1 min'),
                       ('newsletter', interval '1 h'), ('clean up', interval '10 min')) e(entry, every)
         where n < 40 or entry in ('report', 'sync stock')) s;
update pgleader.terms set gained_at = now() - interval '48 min' where term = 5;
update pgleader.elections set gained_at = now() - interval '48 min';
insert into pgleader.terms (election, term, node, backend_pid, gained_at, ended_at, reason, seen_at)
values ('shop', 1, 'celery@a', 1, now() - interval '27 h', now() - interval '5 h', 'stopped', null),
       ('shop', 2, 'celery@b', 1, now() - interval '5 h', now() - interval '3 h', 'resigned', null),
       ('shop', 3, 'celery@c', 1, now() - interval '3 h' + interval '4 ms', now() - interval '110 min', 'lost',
        now() - interval '110 min 4 s'),
       ('shop', 4, 'celery@a', 1, now() - interval '110 min', now() - interval '48 min 7 ms', 'handed over to celery@b',
        null);
insert into pgleader.notifications (channel, payload, sent_at)
select 'orders', '1', now() - interval '400 ms' from generate_series(1, 3);
insert into pgleader.dead_letters (id, uid, channel, payload, sent_at, attempts, error)
values (-1, gen_random_uuid(), 'parcels', '1', now(), 5, 'LookupError: no task shop.on_parcel in this app')
"""


@pytest.fixture
def scene(stage: tuple[Dashboard, str]) -> tuple[Dashboard, str]:
    """Give the same as ever, though the module may have taken longer than it is until the next slot."""
    execute(stage[1], "update pgleader.entries set next_slot = next_slot + (now() - anchor), anchor = now()")
    return stage


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, modules_database: str, modules_valkey: str
) -> Iterator[tuple[Dashboard, str]]:
    """Give a dashboard of an election in which much has happened, of which everything can be seen; and its database."""
    folder = tmp_path_factory.mktemp("scene")
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(folder, modules_database, modules_valkey, election="shop"))
        workers.environment |= {"PGLEADER_TTL": "60", "PGLEADER_DASHBOARD_TOKEN": TOKEN}
        workers.query("insert into pgleader.terms values ('shop', 4, 'celery@a', 1, now(), now(), 'stopped', now())")
        leading = Leading(modules_database, stack, "shop")
        leading.lead("celery@b")
        leading.follow("celery@a")
        leading.follow("celery@c")
        execute(modules_database, "delete from pgleader.terms where term = 4", SCENE)
        yield stack.enter_context(serving(APP, workers.environment, folder, "--allow-actions")), modules_database


@pytest.mark.parametrize(("scheme", "size"), LOOKS)
def test_page_is_accessible_and_no_wider_than_the_window(
    scene: tuple[Dashboard, str], browser: Browser, scheme: Any, size: dict[str, Any]
) -> None:
    """axe-core has nothing to complain of."""
    with looking(browser, scene[0].url, color_scheme=scheme, **size) as page:
        expect(page.locator("#live")).to_have_text("live")
        for summary in page.locator("summary").all():
            summary.click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("link", name="report").click()
        expect(page.get_by_role("heading", name="report", exact=True)).to_be_visible()
        expect(page.locator("tbody tr")).to_have_count(200)
        assert violations(page) == []
        page.goto(f"{scene[0].url}sign-in")
        assert violations(page) == []


def test_page_can_be_used_by_keyboard(scene: tuple[Dashboard, str], browser: Browser) -> None:
    """Everything that can be clicked, and what is live does not take the focus away."""
    with looking(browser, scene[0].url, **DESK) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?hours=1")
        page.get_by_label("Find entries").focus()
        page.keyboard.type("sync")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?q=sync*")
        expect(page.locator("#pager")).to_contain_text("1 to 1 of 1")
        assert page.get_by_role("row", name="sync stock").get_by_role("img").get_attribute("aria-label")
        page.get_by_role("link", name="sync stock").focus()
        # Meanwhile it is filled in anew, more than once.
        heard = page.evaluate("heardAt")
        page.wait_for_function("before => heardAt > before + 2000", arg=heard)
        expect(page.get_by_role("link", name="sync stock")).to_be_focused()


def test_entries_can_be_found(scene: tuple[Dashboard, str]) -> None:
    """By name, by task, and those that somebody should look at; nonsense in the address is left out."""
    assert "1 to 6 of 6" in scene[0].get("/?page=x&hours=99999999&show=all")
    assert "1 to 1 of 1" in scene[0].get("/?q=SYNC")
    assert "None of the 6 entries is meant" in scene[0].get("/?q=nothing")
    assert "0 to 0 of 6" in scene[0].get("/?page=7")
    eventually(lambda: "1 to 2 of 2" in scene[0].get("/?show=trouble"), timeout=PATIENCE)
    troubled = scene[0].get("/?show=trouble")
    assert "newsletter" in troubled
    assert "sync stock" in troubled


def test_pictures_of_the_documentation_are_drawn(
    scene: tuple[Dashboard, str], browser: Browser, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As wide as they should be; written to the documentation if that is asked for."""
    folder: Path = request.config.getoption("--images") or tmp_path
    for name, scheme, size in (("light", "light", DESK), ("dark", "dark", DESK), ("phone", "dark", PHONE)):
        # Without a fraction, so that no picture depends on the screen.
        with looking(browser, scene[0].url, color_scheme=scheme, reduced_motion="reduce", **size) as page:
            expect(page.locator("#live")).to_have_text("live")
            page.locator("#lateness canvas").wait_for()
            page.evaluate("document.querySelector('.election span').textContent = 'shop on db'")
            picture = folder / f"dashboard-{name}.png"
            page.screenshot(path=picture, full_page=name != "phone")
            assert picture.stat().st_size > 10_000


def test_page_shows_the_backlog_as_it_grows(scene: tuple[Dashboard, str], browser: Browser) -> None:
    """What waits is seen at once."""
    dashboard, database = scene
    with looking(browser, dashboard.url, **DESK) as page:
        expect(page.locator("#letters")).to_contain_text("orders")
        expect(page.locator("#tiles")).to_contain_text("3 waiting")
        many = "insert into pgleader.notifications (channel, payload) select 'more', '1' from generate_series(1, 39)"
        execute(database, many)
        try:
            expect(page.locator("#tiles")).to_contain_text("42 waiting")
            page.locator("#backlog canvas").wait_for()
        finally:
            execute(database, "delete from pgleader.notifications where channel = 'more'")


@pytest.mark.parametrize("slots", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_many_slots_cost_a_scrape_and_a_paint_little(
    slots: int, tmp_path: Path, valkey: str, postgres: EmbeddedPostgres, template: str, browser: Browser
) -> None:
    """Each of a thousand entries, beside two hundred nodes; next to an election of one node without slots, in turns."""
    with ExitStack() as stack:
        served = []
        many = [text.replace("(0, 999)", f"(0, {slots - 1})") for text in MANY]
        for name, statements in (("few", []), ("many", [*many, MANY_NODES])):
            database = stack.enter_context(copied(postgres, template))
            Leading(database, stack, "shop").lead("celery@a")
            execute(database, *statements)
            folder = tmp_path / name
            folder.mkdir()
            workers = stack.enter_context(Workers(folder, database, valkey, election="shop"))
            served.append(stack.enter_context(serving(APP, workers.environment, folder)))
        painted: list[list[float]] = [[], []]
        scraped: list[list[float]] = [[], []]
        for _ in range(4):
            for dashboard, figures in zip(served, painted, strict=True):
                with looking(browser, dashboard.url, **DESK) as page:
                    expect(page.locator("#live")).to_have_text("live")
                    figures.append(page.evaluate(PAINT))
                    if dashboard is served[1]:
                        expect(page.locator("#nodes tr")).to_have_count(201)
                        expect(page.locator("#entries tr")).to_have_count(50)
                        expect(page.locator("#pager")).to_contain_text("1 to 50 of 1000")
        for _ in range(40):
            for dashboard, figures in zip(served, scraped, strict=True):
                began = time.perf_counter()
                dashboard.get("/metrics")
                figures.append(time.perf_counter() - began)
        print(f"first paint after {painted} ms, the quickest scrapes took {[min(each) for each in scraped]} s")
        # As much as fifty thousand times would be in proportion to the slots, and two hundredfold to the nodes.
        assert min(painted[1]) < 20 * min(painted[0])
        assert min(scraped[1]) < 20 * min(scraped[0])
