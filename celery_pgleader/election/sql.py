"""Every statement that the election sends.

Placeholders in braces are lock keys and numbers that a `DO` block cannot take as parameters; they are composed by
`psycopg.sql`, never by string formatting.
"""

from __future__ import annotations

from psycopg.sql import SQL

# Right after connecting: what the server is, and the settings of it that would defeat an election.
# A role's or database's default must not end a waiting session, nor cut a statement short; nor must a function that
# somebody has put into a schema on the search path be taken for Postgres' own.
GREET = """
select current_setting('server_version_num')::int as version,
       pg_is_in_recovery() as is_standby,
       extract(epoch from current_setting('deadlock_timeout')::interval)::float as deadlock_timeout,
       set_config('search_path', 'pg_catalog, pg_temp', false),
       set_config('statement_timeout', '0', false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('synchronous_commit',
                  case current_setting('synchronous_commit') when 'off' then 'on'
                       else current_setting('synchronous_commit') end, false),
       set_config('idle_session_timeout', %(idle_ms)s::text, false)
"""

# Take a free place, if there is one; who is asked for by name has one kept. Who holds a place is watched by the server
# as a leader is: it may be granted the lock while it hangs.
TAKE_PLACE = SQL("""
with attempt as materialized (
    select case when pg_try_advisory_lock({first}) then 1
                when pg_try_advisory_lock({second}) then 2
                when %(asked_for)s and pg_try_advisory_lock({kept}) then 3 end as place
)
select place,
       case when place is not null then set_config('idle_session_timeout', %(ttl_ms)s::text, false) end
  from attempt
""")

# Wait for the lock for one slice. Neither outcome is an error to the server, so neither is logged; which of the two
# it was is told by the session's name, which the server reports back by itself when it changes. The name also
# shows an operator who leads, in pg_stat_activity.
AWAIT_LOCK = SQL("""
do $$
begin
    perform set_config('lock_timeout', {slice}, true);
    perform pg_advisory_lock({key});
    perform set_config('application_name', {name}, false);
exception when lock_not_available or query_canceled then
    null;
end
$$
""")

# Mint a term, in the session that is seen to hold the lock, and give the place to the next follower.
# Postgres never hands out a transaction number twice. For that to be true after a crash as well, the transaction must
# have reached the log by the time it commits, which one that wrote nothing need not: hence the message, which nobody
# reads.
MINT_TERM = SQL("""
select pg_current_xact_id()::text::bigint as term,
       pg_backend_pid() as backend_pid,
       pg_advisory_unlock({place}),
       pg_logical_emit_message(true, 'pgleader', '')
  from pg_locks
 where locktype = 'advisory' and granted and pid = pg_backend_pid()
   and database = (select oid from pg_database where datname = current_database())
   and classid = %(classid)s::bigint::oid and objid = %(objid)s::bigint::oid and objsubid = %(objsubid)s
""")

# A renewal: proves that this very session holds the lock, and is the sign of life that the server waits for.
# Taking the lock again would prove nothing: its holder may take it as often as it likes.
RENEW = """
select 1
  from pg_locks
 where locktype = 'advisory' and granted and pid = pg_backend_pid() and pid = %(backend_pid)s
   and database = (select oid from pg_database where datname = current_database())
   and classid = %(classid)s::bigint::oid and objid = %(objid)s::bigint::oid and objsubid = %(objsubid)s
"""

RELEASE = "select pg_advisory_unlock_all()"

# Who holds the lock and the places.
HOLDERS = """
select case when l.classid = %(classid)s::bigint::oid and l.objid = %(objid)s::bigint::oid
                 and l.objsubid = %(objsubid)s then 'leader' else 'successor' end as role,
       a.application_name,
       l.pid,
       to_char(a.backend_start at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.granted
   and l.database = (select oid from pg_database where datname = current_database())
   and (l.classid = %(classid)s::bigint::oid and l.objid = %(objid)s::bigint::oid and l.objsubid = %(objsubid)s
        or l.objsubid = 2 and l.objid = %(place_objid)s::bigint::oid
           and l.classid between %(first_place)s::bigint::oid and %(last_place)s::bigint::oid)
 order by role, l.classid
"""
