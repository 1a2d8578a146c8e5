"""Every statement that operators send, but for those of the rooms below."""

from __future__ import annotations

from celery_pgleader.store.sql import PRESENT

HAS_SCHEMA = """
select exists (select from pg_class where relname = 'nodes' and relnamespace = to_regnamespace('pgleader'))
"""

ELECTION = """
select e.term, e.node, e.gained_at, e.paused_at, e.held_at, e.cordoned, e.resign_at, e.resign_to,
       (select max(version) from pgleader.migrations) as schema_version
  from (select) one left join pgleader.elections e on e.election = %(election)s
"""

# For how long the leader's session has sent nothing; null if its activity may not be seen.
SILENCE = """
select extract(epoch from clock_timestamp() - query_start)::float from pg_stat_activity where pid = %(backend_pid)s
"""

NODES = (
    """
select n.node, n.instance::text, n.backend_pid, n.priority, n.stands_back, n.node = any(coalesce(e.cordoned, '{}')),
       n.entries, n.schedule, n.app_version, n.package_version, n.clock_skew, n.started_at
  from pgleader.nodes n left join pgleader.elections e using (election)
 where election = %(election)s and """
    + PRESENT
    + """ order by n.node, n.started_at
"""
)

# Which other elections have nodes that are there.
OTHER_ELECTIONS_PRESENT = (
    """
select distinct n.election from pgleader.nodes n where n.election <> %(election)s and """
    + PRESENT
    + " order by n.election"
)

# By how much the schedule is behind, in seconds: the oldest slot that was due and is not accounted for, and the oldest
# that is claimed and not settled.
LATENESS = """
select coalesce((select extract(epoch from clock_timestamp() - min(next_slot)) from pgleader.entries
                  where election = %(election)s and retired_at is null and next_slot < clock_timestamp()), 0)::float,
       coalesce((select extract(epoch from clock_timestamp() - min(claimed_at)) from pgleader.slots
                  where election = %(election)s and state = 'claimed'), 0)::float
"""

# The terms, newest first. When a leader that was lost ended nobody knows; the last sign of it is what it
# has said of itself, or its last claim.
HISTORY = """
select t.term, t.node, t.gained_at, t.ended_at, t.reason, next.gained_at,
       greatest(t.gained_at, t.seen_at, (select s.claimed_at from pgleader.slots s
                                           where s.election = t.election and s.term = t.term
                                             and s.slot >= t.gained_at
                                             and s.slot <= coalesce(t.ended_at, clock_timestamp())
                                           order by s.slot desc limit 1))
  from pgleader.terms t
  left join lateral (select n.gained_at from pgleader.terms n
                      where n.election = t.election and n.term > t.term order by n.term limit 1) next on true
 where t.election = %(election)s
 order by t.term desc
 limit %(limit)s
"""

# Orders. Each wakes the leader when it is committed.
_WOKEN = """, woken as materialized (select pg_notify('pgleader_orders', ''))
"""

RESIGN = (
    """
with ordered as (
    update pgleader.elections
       set resign_at = coalesce(%(at)s::timestamptz, clock_timestamp()), resign_to = %(to)s,
           resign_term = case when %(at)s::timestamptz is null then term end
     where election = %(election)s
    returning term, node, resign_at
)"""
    + _WOKEN
    + "select ordered.* from ordered, woken"
)

CANCEL = (
    """
with was as materialized (select resign_at from pgleader.elections where election = %(election)s),
cancelled as (
    update pgleader.elections set resign_at = null, resign_to = null, resign_term = null where election = %(election)s
    returning 1
)"""
    + _WOKEN
    + "select was.resign_at from was, cancelled, woken"
)

# What became of the order to hand over.
CARRIED_OUT = """
select e.term, e.node, e.resign_at is not null,
       (select extract(epoch from n.gained_at - o.ended_at)::float
          from pgleader.terms o, pgleader.terms n
         where o.election = e.election and o.term = %(term)s and n.election = e.election and n.term = e.term)
  from pgleader.elections e where e.election = %(election)s
"""

# Null leaves it as it is.
PAUSE = (
    """
with paused as (
    insert into pgleader.elections as e (election, term, node, paused_at, held_at)
    values (%(election)s, 0, '', case when %(schedule)s then clock_timestamp() end,
            case when %(elections)s then clock_timestamp() end)
    on conflict (election) do update
       set paused_at = coalesce(e.paused_at, excluded.paused_at), held_at = coalesce(e.held_at, excluded.held_at)
    returning paused_at, held_at
)"""
    + _WOKEN
    + "select paused.* from paused, woken"
)

RESUME = (
    """
with was as materialized (select paused_at, held_at from pgleader.elections where election = %(election)s),
resumed as (
    update pgleader.elections
       set paused_at = case when %(schedule)s then null else paused_at end,
           held_at = case when %(elections)s then null else held_at end
     where election = %(election)s
    returning 1
)"""
    + _WOKEN
    + "select was.paused_at is not null and %(schedule)s, was.held_at is not null and %(elections)s"
    + " from was, resumed, woken"
)

CORDON = (
    """
with cordoned as (
    insert into pgleader.elections as e (election, term, node, cordoned)
    values (%(election)s, 0, '', array[%(node)s::text])
    on conflict (election) do update set cordoned = array_append(array_remove(e.cordoned, %(node)s), %(node)s)
    returning 1
)"""
    + _WOKEN
    + "select 1 from cordoned, woken"
)

UNCORDON = (
    """
with was as materialized (
    select %(node)s = any(cordoned) as cordoned from pgleader.elections where election = %(election)s
), uncordoned as (
    update pgleader.elections set cordoned = array_remove(cordoned, %(node)s) where election = %(election)s
    returning 1
)"""
    + _WOKEN
    + "select was.cordoned from was, uncordoned, woken"
)

ENTRIES = """
select n.entry, n.task, n.schedule, n.next_slot, n.paused_at, n.retired_at,
       s.slot, s.state, s.reason, s.settled_at, n.last_slot, n.since
  from pgleader.entries n
  left join lateral (select * from pgleader.slots s where s.election = n.election and s.entry = n.entry
                      order by s.slot desc limit 1) s on true
 where n.election = %(election)s
 order by n.entry
"""

PAUSE_ENTRY = """
update pgleader.entries set paused_at = coalesce(paused_at, clock_timestamp())
 where election = %(election)s and entry = %(entry)s
returning paused_at
"""

RESUME_ENTRY = """
with was as materialized (
    select paused_at from pgleader.entries where election = %(election)s and entry = %(entry)s
), resumed as (
    update pgleader.entries set paused_at = null where election = %(election)s and entry = %(entry)s
    returning 1
)
select was.paused_at is not null from was, resumed
"""

NOW = "select clock_timestamp()"

# A run that somebody asks for is a slot at that instant, claimed in the name of the latest term: the leader, or the
# next one, finds it and publishes it as every other. What the schedule is accounted for does not change.
RUN_NOW = (
    """
with asked as (
    insert into pgleader.slots (election, entry, slot, through, state, reason, term, task_id)
    select %(election)s, n.entry, %(slot)s, %(slot)s, 'claimed', 'run-now', e.term, %(task_id)s
      from pgleader.entries n join pgleader.elections e using (election)
     where election = %(election)s and n.entry = %(entry)s and n.retired_at is null
    returning 1
)"""
    + _WOKEN
    + "select 1 from asked, woken"
)

SLOT_STATE = """
select state, reason from pgleader.slots where election = %(election)s and entry = %(entry)s and slot = %(slot)s
"""

# The slots of an entry that lie in a stretch of time, or whose stretch does; those before and after.
SLOTS_AT = """
select slot, through, slots, state, reason, term, task_id::text, claimed_at, settled_at from pgleader.slots
 where election = %(election)s and entry = %(entry)s and slot < %(until)s and through >= %(from)s
 order by slot limit 1
"""
SLOT_BEFORE = """
select max(through) from pgleader.slots where election = %(election)s and entry = %(entry)s and slot < %(from)s
"""
SLOT_AFTER = """
select min(slot) from pgleader.slots where election = %(election)s and entry = %(entry)s and slot >= %(until)s
"""

TERM = """
select term, node, gained_at, ended_at, reason from pgleader.terms where election = %(election)s and term = %(term)s
"""

# The latest term that had begun by then.
TERM_AT = """
select term, node, gained_at, ended_at, reason from pgleader.terms
 where election = %(election)s and gained_at <= %(at)s
 order by term desc limit 1
"""

FIRST_TERM = "select min(gained_at) from pgleader.terms where election = %(election)s"

# What a server is, and the settings of it that would defeat an election; times in seconds.
SERVER = """
select current_setting('server_version_num')::int, pg_is_in_recovery(),
       current_setting('default_transaction_read_only')::bool,
       extract(epoch from current_setting('lock_timeout')::interval)::float,
       extract(epoch from coalesce(current_setting('transaction_timeout', true), '0')::interval)::float,
       extract(epoch from current_setting('deadlock_timeout')::interval)::float
"""

# The role's limit, and how many connections the server still has.
CONNECTIONS = """
select (select rolconnlimit from pg_roles where rolname = current_user),
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - (select count(*) from pg_stat_activity where backend_type = 'client backend')::int
"""

MAY_CREATE = """
select has_database_privilege(current_database(), 'create')
       and coalesce((select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = 'pgleader'), true)
"""

CLOCK = "select extract(epoch from clock_timestamp())::float"

OTHER_ELECTIONS = "select election from pgleader.elections where election <> %(election)s"
