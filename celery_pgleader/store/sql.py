"""Every statement that the store sends, but for the migrations."""

from __future__ import annotations

from psycopg.sql import SQL

# What stands in front of each write that a leader makes: it finds the term's row only while the term is the latest, and
# holds up the next leader's election until it is committed. READ COMMITTED, so a row that changed is looked at again.
_FENCE = """
with fence as materialized (
    select term, paused_at is not null as paused
      from pgleader.elections where election = %(election)s and term = %(term)s for share
)
"""

# The condition under which the session of a leader holds its lock.
_HELD = """
  from pg_locks
 where locktype = 'advisory' and granted and pid = pg_backend_pid()
   and database = (select oid from pg_database where datname = current_database())
   and classid = %(classid)s::bigint::oid and objid = %(objid)s::bigint::oid and objsubid = %(objsubid)s
"""

# Whether a node's session is there.
PRESENT = "exists (select from pg_stat_get_activity(n.backend_pid) a where a.application_name like 'pgleader %%')"

# A node that is there, stands, and has all entries of this one's schedule and more: this one lacks a part of it.
_FULLER = (
    """
select n.node from pgleader.nodes n join pgleader.elections e using (election)
 where n.election = %(election)s and n.stands_back is null and n.node <> all(e.cordoned)
   and n.entries @> %(entries)s::text[] and not n.entries <@ %(entries)s::text[] and """
    + PRESENT
)

# Mint a term and write its history, in the session that is seen to hold the lock; give the place to the next follower.
# A number that is in the history is not given again, even where somebody has taken the election's row away; nor, on a
# server that was promoted, is one that its predecessor may have given and not passed on.
# If this node is not to lead, no term is minted, and the lock goes on to whoever waits for it: wholly, since a slice
# that was over in the very moment in which the lock was granted leaves it held twice.
MINT_TERM = SQL(
    """
with held as materialized (select pg_backend_pid() as pid """
    + _HELD
    + """), minted as (
    insert into pgleader.elections as e (election, term, node)
    select %(election)s,
           greatest(1 + coalesce((select max(term) from pgleader.terms where election = %(election)s), 0),
                    %(least_term)s),
           %(node)s
      from held
     where %(may_lead)s
       and not exists (select from pgleader.elections
                        where election = %(election)s
                          and (held_at is not null or %(node)s = any(cordoned)
                               or next_node <> %(node)s and next_until > clock_timestamp()))
       and not exists ("""
    + _FULLER
    + """)
    on conflict (election) do update
       set term = greatest(e.term + 1, excluded.term), node = excluded.node, gained_at = clock_timestamp(),
           next_node = null, next_until = null,
           -- What is ordered for later stands.
           resign_to = case when e.resign_at > clock_timestamp() then e.resign_to end,
           resign_term = case when e.resign_at > clock_timestamp() then e.resign_term end,
           resign_at = case when e.resign_at > clock_timestamp() then e.resign_at end
    returning term
), lost as (
    update pgleader.terms t set ended_at = clock_timestamp(), reason = 'lost'
      from minted where t.election = %(election)s and t.ended_at is null
), begun as (
    insert into pgleader.terms (election, term, node, backend_pid)
    select %(election)s, term, %(node)s, pid from minted, held
)
select term, pid, pg_advisory_unlock({place}),
       case when term is null then set_config('application_name', %(follower)s, false) end,
       case when term is null then set_config('idle_session_timeout', %(idle_ms)s::text, false) end,
       case when term is null then pg_advisory_unlock_all()::text end
  from held left join minted on true
"""
)

# It begins at 1, and rises by one whenever a server stops to be a standby, or is recovered from a backup.
TIMELINE = "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint"

# A renewal proves the lock and the term.
RENEW = (
    "select 1"
    + _HELD
    + """
   and pid = %(backend_pid)s
   and exists (select from pgleader.elections where election = %(election)s and term = %(term)s)
"""
)

# First it is written down, then the lock is free: the other way round the next leader might take the term for lost.
RELEASE = """
with ended as (
    update pgleader.terms set ended_at = clock_timestamp(), reason = %(reason)s
     where election = %(election)s and term = %(term)s and ended_at is null
    returning 1
)
select pg_advisory_unlock_all() from (select count(*) from ended) written
"""

# Right after connecting, in sessions that write for a leader.
GREET = """
select set_config('search_path', 'pg_catalog, pg_temp', false),
       set_config('TimeZone', 'UTC', false),
       set_config('DateStyle', 'ISO', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('synchronous_commit',
                  case current_setting('synchronous_commit') when 'off' then 'on'
                       else current_setting('synchronous_commit') end, false),
       set_config('idle_in_transaction_session_timeout', %(below_ttl)s::text, false),
       set_config('statement_timeout', %(longest)s::text, false)
"""

CLOCK = "select extract(epoch from clock_timestamp())::float"

ENTRIES = """
select n.entry, n.task, n.schedule, n.anchor, n.since, n.last_slot, n.retired_at is not null, n.next_slot,
       n.paused_at is not null or e.paused_at is not null
  from pgleader.entries n join pgleader.elections e using (election) where election = %(election)s
"""

# Entries that are new, came back, or have another schedule than before.
REGISTER = (
    _FENCE
    + """
insert into pgleader.entries as e (election, entry, task, schedule, anchor, since, next_slot)
select %(election)s, w.*
  from fence, unnest(%(entries)s::text[], %(tasks)s::text[], %(schedules)s::text[],
                     %(anchors)s::timestamptz[], %(sinces)s::timestamptz[], %(next_slots)s::timestamptz[]) w
on conflict (election, entry) do update
   set task = excluded.task, schedule = excluded.schedule, anchor = excluded.anchor, since = excluded.since,
       next_slot = excluded.next_slot, retired_at = null
returning 1
"""
)

RETIRE = (
    _FENCE
    + """
update pgleader.entries e set retired_at = clock_timestamp()
  from fence
 where e.election = %(election)s and e.entry = any(%(entries)s) and e.retired_at is null
returning 1
"""
)

# Claim slots, of several entries at once. An entry is claimed for only as long as nothing of what is to be claimed, or
# later, is accounted for already; that holds for ever, since last_slot only rises and is never pruned. Nor is it
# claimed for if it was paused, or resumed, after the leader decided what becomes of its slots. A slot may be in the
# ledger already if somebody has asked for a run at that very instant, which was that slot's then.
CLAIM = (
    _FENCE
    + """, claimed as (
    update pgleader.entries e
       set last_slot = w.newest, next_slot = w.next,
           last_run_at = case when w.runs > 0 then clock_timestamp() else e.last_run_at end,
           run_count = e.run_count + w.runs
      from fence, unnest(%(entries)s::text[], %(oldest)s::timestamptz[], %(newest)s::timestamptz[],
                         %(nexts)s::timestamptz[], %(runs)s::int[], %(paused)s::bool[])
                  w(entry, oldest, newest, next, runs, paused)
     where e.election = %(election)s and e.entry = w.entry and greatest(e.since, e.last_slot) < w.oldest
       and (fence.paused or e.paused_at is not null) = w.paused
    returning e.entry
), recorded as (
    insert into pgleader.slots
           (election, entry, slot, through, slots, state, reason, term, task_id, settled_at)
    select %(election)s, r.entry, r.slot, r.through, r.slots, r.state, r.reason, %(term)s, r.task_id,
           case when r.state <> 'claimed' then clock_timestamp() end
      from unnest(%(row_entries)s::text[], %(row_slots)s::timestamptz[], %(row_throughs)s::timestamptz[],
                  %(row_counts)s::bigint[], %(row_states)s::text[], %(row_reasons)s::text[],
                  %(row_task_ids)s::uuid[]) r(entry, slot, through, slots, state, reason, task_id)
      join claimed using (entry)
    on conflict (election, entry, slot) do nothing
)
select (select count(*) from fence), array(select entry from claimed)
"""
)

# What became of claimed slots. Not fenced: it is so, whoever leads. Losing the last of these in a crash of the server
# costs no more than a second publication under the same task id, so nobody waits for the disk. All lock in one order:
# a leader that is stopped in the midst of it and its successor could wait for each other.
SETTLE = """
with quickly as materialized (
    select set_config('synchronous_commit', 'off', true)
), settled as materialized (
    select s.entry, s.slot, w.state, w.reason
      from quickly, pgleader.slots s
      join unnest(%(entries)s::text[], %(slots)s::timestamptz[], %(states)s::text[], %(reasons)s::text[])
           w(entry, slot, state, reason) on s.entry = w.entry and s.slot = w.slot
     where s.election = %(election)s and s.state = 'claimed'
     order by s.entry, s.slot
       for update of s
)
update pgleader.slots s
   set state = w.state, reason = coalesce(w.reason, s.reason), settled_at = clock_timestamp()
  from settled w
 where s.election = %(election)s and s.entry = w.entry and s.slot = w.slot
"""

CLAIMED = """
select entry, slot, term from pgleader.slots
 where election = %(election)s and state = 'claimed'
 order by slot
 limit %(limit)s
"""

# A small batch of what is older than the retention time; what is still claimed stays.
PRUNE = """
with old as (
    select ctid from pgleader.slots
     where election = %(election)s and state <> 'claimed'
       and slot < clock_timestamp() - make_interval(secs => %(seconds)s)
       and through < clock_timestamp() - make_interval(secs => %(seconds)s)
     order by slot
     limit %(limit)s
       for update skip locked
), gone as (
    delete from pgleader.terms
     where election = %(election)s and ended_at < clock_timestamp() - make_interval(secs => %(seconds)s)
), finished as (
    delete from pgleader.finished
     where ctid = any(array(select ctid from pgleader.finished
                             where finished_at < clock_timestamp() - make_interval(secs => %(seconds)s)
                             limit %(limit)s))
)
delete from pgleader.slots s using old where s.ctid = old.ctid
"""

# What has been applied, and what the role may do; from the catalogue, since to_regclass fails where it may not look.
SCHEMA_STATE = """
select exists (select from pg_class where relname = 'migrations' and relnamespace = to_regnamespace('pgleader'))
           as migrated,
       to_regnamespace('pgleader') is not null as exists,
       current_user as role,
       current_database() as database
"""

VERSIONS = "select version from pgleader.migrations order by version"

RIGHTS = """
select bool_and(has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
                and has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete'))
  from pg_class c where c.relnamespace = 'pgleader'::regnamespace and c.relkind = 'r'
"""

# One at a time: workers that start together migrate together. The lock is taken before the transaction begins, since a
# session learns of tables that others have made only when a transaction does.
MIGRATION_LOCK = "select pg_advisory_lock(%(classid)s::int, 0)"
MIGRATION_LOCK_OF_TRANSACTION = "select pg_advisory_xact_lock(%(classid)s::int, 0)"
MIGRATION_UNLOCK = "select pg_advisory_unlock(%(classid)s::int, 0)"

APPLIED = "insert into pgleader.migrations (version) values (%(version)s)"

# Of these entries, those of which a run is going on.
RUNNING = """
select w.entry from unnest(%(entries)s::text[], %(keys)s::bigint[]) w(entry, key)
  join pg_locks l
    on l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and l.database = (select oid from pg_database where datname = current_database())
   and l.classid = ((w.key >> 32) & 4294967295)::oid and l.objid = (w.key & 4294967295)::oid
"""

# In the sessions of those who run tasks, or write for a leader. They may be idle for as long as a run takes, or nothing
# is due; but a host that is gone must not hold its locks for the two hours that TCP waits by default.
STAY = """
select set_config('search_path', 'pg_catalog, pg_temp', false),
       set_config('idle_session_timeout', '0', false),
       set_config('tcp_keepalives_idle', '15', false),
       set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false)
"""
# In the relay's session. What a crash of the server loses of it is dispatched again, under the same task ids, so nobody
# waits for the disk. Its few statements are asked over and over: each is planned once, and so without a look at how
# much is there. A plan that was made while nothing waited must not read through everything when a million do.
RELAY = """
select set_config('synchronous_commit', 'off', false),
       set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('enable_seqscan', 'off', false),
       set_config('jit', 'off', false)
"""

TRY_RUN = "select pg_try_advisory_lock(%(key)s::bigint)"
END_RUN = "select pg_advisory_unlock(%(key)s::bigint)"

HAS_FINISHED = "select exists (select from pgleader.finished where task_id = %(task_id)s)"

FINISH = "insert into pgleader.finished (task_id) values (%(task_id)s) on conflict do nothing returning 1"

SKIP = """
update pgleader.slots set state = 'skipped', reason = %(reason)s, settled_at = clock_timestamp()
 where election = %(election)s and entry = %(entry)s and slot = %(slot)s and state in ('claimed', 'published')
returning 1
"""

# Durable notifications: written by whoever sends them, in their own transaction.
NOTIFY = "select pgleader.notify(%(channel)s, %(payload)s::jsonb, %(key)s)"

# Those whose channels have a route here, but for what rests after a failure, and all that has the same key.
_AWAKE = """
       n.channel = any(%(channels)s) and n.id <> all(%(resting)s)
   and (n.key is null
        or (n.channel, n.key) not in (select * from unnest(%(rest_channels)s::text[], %(rest_keys)s::text[])))
"""

_LATEST = "exists (select from pgleader.elections where election = %(election)s and term = %(term)s)"

# The notifications that wait, oldest first, after some id; so many, and so many bytes, at most; and with each, how many
# were found before their bytes were counted. With `alone`, those behind an older one with the same key are left out.
# Nothing is written here, so there is nothing to be fenced: a lock of the term's row would have to be flushed to disk,
# and would be gone before anything is sent.
WAITING = (
    """
select id, uid, channel, key, payload, attempts, found
  from (select n.*, sum(pg_column_size(n.payload)) over (order by n.id) - pg_column_size(n.payload) as before,
               count(*) over () as found
          from (select n.* from pgleader.notifications n
                 where """
    + _LATEST
    + " and "
    + _AWAKE
    + """
                   and n.id > %(after)s
                   and (n.key is null or not %(alone)s
                        or not exists (select from pgleader.notifications o
                                        where o.channel = n.channel and o.key = n.key and o.id < n.id))
                 order by n.id limit %(limit)s) n) n
 where before < %(bytes)s
 order by id
"""
)

# Along the primary key: what was deleted, and not been vacuumed yet, is passed over there sooner.
IS_ANY_WAITING = (
    "select "
    + _LATEST
    + " and (select n.id from pgleader.notifications n where"
    + _AWAKE
    + " order by n.id limit 1) is not null"
)

NEWEST = "select coalesce(max(id), 0) from pgleader.notifications"

DISPATCHED = (
    _FENCE
    + """, gone as (
    delete from pgleader.notifications n using fence where n.id = any(%(ids)s)
)
select 1 from fence
"""
)

# One more attempt has failed.
TRIED = (
    _FENCE
    + """, tried as (
    update pgleader.notifications n set attempts = n.attempts + 1, error = %(error)s from fence where n.id = %(id)s
)
select 1 from fence
"""
)

BURY = (
    _FENCE
    + """, gone as (
    delete from pgleader.notifications n using fence where n.id = %(id)s returning n.*
), buried as (
    insert into pgleader.dead_letters (id, uid, channel, key, payload, sent_at, attempts, error)
    select id, uid, channel, key, payload, sent_at, attempts + 1, %(error)s from gone
)
select 1 from fence
"""
)

LISTEN = "listen pgleader"

# See `pgleader.notify`, and docs/adr/0013-sleep.md; the locks' class is 0x70676C50, beside those of the election. True
# if no sender is on the way who may have seen nobody sleep.
LIE_DOWN = """
select case when not pg_try_advisory_lock_shared(1885826128, 0) then false
            when pg_try_advisory_lock(1885826128, 1) then pg_advisory_unlock(1885826128, 1)
            when %(lightly)s then false
            else not pg_advisory_unlock_shared(1885826128, 0) end
"""
GET_UP = "select pg_advisory_unlock_all()"

# Each time that a node asks for a place: what it says of itself, and what it is told.
ANNOUNCE = (
    """
with announced as (
    insert into pgleader.nodes as n (election, node, instance, backend_pid, priority, stands_back, entries, schedule,
                                     app_version, package_version, clock_skew, started_at)
    values (%(election)s, %(node)s, %(instance)s, pg_backend_pid(), %(priority)s, %(stands_back)s, %(entries)s,
            %(schedule)s, %(app_version)s, %(package_version)s,
            %(clock)s - extract(epoch from clock_timestamp())::float, %(started_at)s)
    on conflict (election, node, instance) do update
       set backend_pid = excluded.backend_pid, stands_back = excluded.stands_back, clock_skew = excluded.clock_skew,
           seen_at = clock_timestamp()
)
select coalesce(e.held_at is not null or %(node)s = any(e.cordoned), false) or exists ("""
    + _FULLER
    + """),
       coalesce(%(node)s in (e.resign_to, e.next_node), false)
  from (select) one left join pgleader.elections e on e.election = %(election)s
"""
)

LISTEN_FOR_ORDERS = "listen pgleader_orders"

# What the leader is ordered to do: whether to hand over, and in how many seconds.
ORDERS = """
select case when resign_at is not null and (resign_term is null or resign_term = %(term)s)
            then greatest(0, extract(epoch from resign_at - clock_timestamp())::float) end,
       resign_to,
       %(node)s = any(cordoned)
  from pgleader.elections where election = %(election)s and term = %(term)s
"""

# A node that is to be preferred to the leader: it has more of the schedule, or a higher priority.
PREFERRED = (
    """
with fuller as ("""
    + _FULLER
    + """ order by n.priority desc, n.started_at limit 1
), higher as (
    select n.node from pgleader.nodes n join pgleader.elections e using (election)
     where n.election = %(election)s and n.stands_back is null and n.node <> all(e.cordoned)
       and n.priority > %(priority)s and e.held_at is null
       and (n.entries is null or %(entries)s::text[] is null or n.entries @> %(entries)s::text[]) and """
    + PRESENT
    + """ order by n.priority desc, n.started_at limit 1
)
select node, true from fuller union all select node, false from higher
"""
)

# Whether a node holds a place, and so waits for the lock.
IN_LINE = (
    """
select exists (
    select from pgleader.nodes n
      join pg_locks l
        on l.pid = n.backend_pid and l.locktype = 'advisory' and l.granted and l.objsubid = 2
       and l.objid = %(place_objid)s::bigint::oid
       and l.classid between %(first_place)s::bigint::oid and %(last_place)s::bigint::oid
       and l.database = (select oid from pg_database where datname = current_database())
     where n.election = %(election)s and n.node = %(node)s and """
    + PRESENT
    + """)
"""
)

# For so many seconds nobody else is elected.
PREFER = (
    _FENCE
    + """
update pgleader.elections e
   set next_node = %(next_node)s, next_until = clock_timestamp() + make_interval(secs => %(seconds)s)
  from fence where e.election = %(election)s
returning 1
"""
)

# The order to hand over is not carried out.
WITHDRAW = """
update pgleader.elections set resign_at = null, resign_to = null, resign_term = null
 where election = %(election)s and term = %(term)s
returning 1
"""

# That the leader is there, and what it has counted since it last said so.
REPORT = """
with seen as (
    update pgleader.terms set seen_at = clock_timestamp()
     where election = %(election)s and term = %(term)s and ended_at is null
    returning 1
)
select pgleader.count(%(election)s, w.name, w.label, w.value)
  from seen, unnest(%(names)s::text[], %(labels)s::text[], %(values)s::float[]) w(name, label, value)
"""

# The node's row may be looked at for a day after it was last there.
FORGET_NODES = (
    "delete from pgleader.nodes n where n.election = %(election)s"
    " and n.seen_at < clock_timestamp() - interval '1 day' and not " + PRESENT
)

# What an operator does with dead letters.
DEAD_LETTERS = """
select id, channel, key, sent_at, died_at, attempts, error, payload
  from pgleader.dead_letters
 where (%(ids)s::bigint[] is null or id = any(%(ids)s)) and (%(channel)s::text is null or channel = %(channel)s)
 order by id limit %(limit)s
"""

# They go to the end of the line: what was behind them has gone on.
RETRY_DEAD = """
with back as (
    delete from pgleader.dead_letters
     where (%(ids)s::bigint[] is null or id = any(%(ids)s)) and (%(channel)s::text is null or channel = %(channel)s)
    returning *
), woken as (
    insert into pgleader.notifications (uid, channel, key, payload, sent_at)
    select uid, channel, key, payload, sent_at from back order by id
    returning 1
)
select count(*), pg_notify('pgleader', '') from woken
"""

DROP_DEAD = """
delete from pgleader.dead_letters
 where (%(ids)s::bigint[] is null or id = any(%(ids)s)) and (%(channel)s::text is null or channel = %(channel)s)
returning 1
"""

BACKLOG = """
select channel, count(*), min(sent_at), extract(epoch from clock_timestamp() - min(sent_at))::float
  from pgleader.notifications group by channel order by channel
"""

# Who else has led, for as long as their messages could still be under way.
OTHER_LEADERS = """
select distinct node from pgleader.terms
 where election = %(election)s and node <> %(node)s and gained_at > clock_timestamp() - interval '1 day'
"""

# Of these names, those that a session has.
SESSIONS_NAMED = """
select application_name from pg_catalog.pg_stat_activity where application_name = any(%(names)s)
"""

# Take the turn to run leader-only tasks, if nobody has it; who does not answer for long does not keep it.
TRY_TURN = SQL("""
select pg_catalog.pg_try_advisory_lock({key}), pg_catalog.set_config('idle_session_timeout', %(ttl_ms)s::text, false)
""")
