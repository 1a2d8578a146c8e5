"""Every statement that the dashboard sends, but for those of the rooms below."""

from __future__ import annotations

COUNTERS = """
select name, label, sum(value) from pgleader.counters where election in ('', %(election)s) group by name, label
"""

# What waits, by channel, and for how long the oldest has. Of a backlog that is longer than that the oldest are counted.
BACKLOG = """
select channel, count(*), greatest(0, extract(epoch from clock_timestamp() - min(sent_at)))::float
  from (select channel, sent_at from pgleader.notifications order by id limit 100000) oldest
 group by channel
 order by channel
"""

DEAD_LETTERS = "select channel, count(*) from pgleader.dead_letters group by channel order by channel"

SCHEDULED = """
select count(*), count(*) filter (where paused_at is not null) from pgleader.entries
 where election = %(election)s and retired_at is null
"""

TERM = "select term from pgleader.elections where election = %(election)s"

# The latest slots of some entries, or stretches of slots, oldest first.
LATEST = """
select w.entry, s.slot, s.through, s.slots, s.state, s.reason, s.term, s.settled_at
  from unnest(%(entries)s::text[]) w(entry)
 cross join lateral (select * from pgleader.slots s
                      where s.election = %(election)s and s.entry = w.entry
                      order by s.slot desc limit %(limit)s) s
 order by w.entry, s.slot
"""

# How late slots were published, by the minute in which they were due, in seconds: on average, and the latest. By the
# statement's own time, since with that of the clock no index would do.
LATENESS_BY_MINUTE = """
select extract(epoch from minute)::int, count, greatest(0, extract(epoch from mean))::float,
       greatest(0, extract(epoch from worst))::float
  from (select date_bin('1 minute', slot, 'epoch') as minute, count(*), avg(settled_at - slot) as mean,
               max(settled_at - slot) as worst
          from pgleader.slots
         where election = %(election)s and state = 'published' and reason is distinct from 'run-now'
           and slot > statement_timestamp() - interval '1 hour' and slot <= statement_timestamp()
         group by 1) minutes
 order by minute
"""
