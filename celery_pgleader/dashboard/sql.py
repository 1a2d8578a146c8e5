"""Every statement that the dashboard sends, but for those of the rooms below."""

from __future__ import annotations

COUNTERS = "select name, label, value from pgleader.counters where election in ('', %(election)s)"

# What waits, by channel, and for how long the oldest has. Of a backlog that is longer than that the oldest are counted.
BACKLOG = """
select channel, count(*), greatest(0, extract(epoch from clock_timestamp() - min(sent_at)))::float
  from (select channel, sent_at from pgleader.notifications order by id limit 100000) oldest
 group by channel
 order by channel
"""

DEAD_LETTERS = "select channel, count(*), max(died_at) from pgleader.dead_letters group by channel order by channel"

SCHEDULED = """
select count(*), count(*) filter (where paused_at is not null) from pgleader.entries
 where election = %(election)s and retired_at is null
"""
