-- What is counted for metrics. Counters only ever rise, and what is counted is forgotten later; so they stand beside it.

-- What a leader did last in its term, as far as it has said: every five seconds. Null: it is of a version that does not.
alter table pgleader.terms add column seen_at timestamptz;

create table pgleader.counters (
    -- Empty: of the whole database.
    election text not null,
    name     text not null,
    -- What of it. In a histogram a bucket's upper bound in seconds, each value in one bucket, and 'sum'.
    label    text not null,
    value    double precision not null,
    primary key (election, name, label)
) with (fillfactor = 50);

-- The functions below run with the rights of whoever made them: whoever may write a slot may have it counted.

create function pgleader.bucket(seconds double precision) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(min(bound)::text, '+Inf')
      from unnest('{0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,30,60,300,3600}'::numeric[]) bound
     where bound >= seconds
$$;

-- The rows that are to be counted are locked in one order, whoever counts.
create function pgleader.count_slots() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        insert into pgleader.counters as c
        select election, 'slots_' || state, coalesce(split_part(reason, ':', 1), ''), sum(slots)
          from written where state <> 'claimed'
         group by 1, 2, 3
         order by 1, 2, 3
            on conflict (election, name, label) do update set value = c.value + excluded.value;
    else
        insert into pgleader.counters as c
        select election, name, label, sum(value)
          from (select w.election, 'slots_' || w.state, coalesce(split_part(w.reason, ':', 1), ''), w.slots
                  from written w join was using (election, entry, slot)
                 where w.state <> was.state and w.state <> 'claimed'
                union all
                select w.election, 'lateness', l.*
                  from written w join was using (election, entry, slot),
                       lateral (select greatest(0, extract(epoch from w.settled_at - w.slot))::float) late(seconds),
                       lateral (values (pgleader.bucket(late.seconds), 1), ('sum', late.seconds)) l
                 where was.state = 'claimed' and w.state = 'published' and w.reason is distinct from 'run-now'
               ) counted(election, name, label, value)
         group by 1, 2, 3
         order by 1, 2, 3
            on conflict (election, name, label) do update set value = c.value + excluded.value;
    end if;
    return null;
end
$$;

create trigger count_claimed after insert on pgleader.slots
    referencing new table as written for each statement execute function pgleader.count_slots();
create trigger count_settled after update on pgleader.slots
    referencing old table as was new table as written for each statement execute function pgleader.count_slots();

create function pgleader.count_terms() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        insert into pgleader.counters as c
        select n.election, case when o.reason = 'lost' then 'gap_failover' else 'gap_handover' end, l.*
          from written n
          join lateral (select * from pgleader.terms o where o.election = n.election and o.term < n.term
                         order by o.term desc limit 1) o on o.ended_at is not null,
               lateral (select case when o.reason = 'lost' then greatest(o.gained_at, o.seen_at)
                                    else o.ended_at end) ending(at),
               lateral (select greatest(0, extract(epoch from n.gained_at - ending.at))::float) gap(seconds),
               lateral (values (pgleader.bucket(gap.seconds), 1), ('sum', gap.seconds)) l
         order by 1, 2, 3
            on conflict (election, name, label) do update set value = c.value + excluded.value;
    else
        insert into pgleader.counters as c
        select election, 'terms_ended',
               case when n.reason in ('lost', 'stopped', 'resigned', 'cordoned', 'on hold', 'the beat failed')
                    then n.reason
                    when n.reason like 'handed over to %' then 'handed over'
                    when n.reason like 'the beat has not moved %' then 'the beat hangs'
                    else 'other' end,
               count(*)
          from written n join was using (election, term)
         where was.ended_at is null and n.ended_at is not null
         group by 1, 2, 3
         order by 1, 2, 3
            on conflict (election, name, label) do update set value = c.value + excluded.value;
    end if;
    return null;
end
$$;

create trigger count_begun after insert on pgleader.terms
    referencing new table as written for each statement execute function pgleader.count_terms();
create trigger count_ended after update on pgleader.terms
    referencing old table as was new table as written for each statement execute function pgleader.count_terms();

-- A notification leaves its table when it was dispatched, or became a dead letter. None is counted when it is written:
-- senders would wait for each other's transactions.
create function pgleader.count_notifications() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into pgleader.counters as c
    select '', name, label, sum(value)
      from (select 'notifications', case when d.id is null then 'dispatched' else 'dead' end, 1
              from was left join pgleader.dead_letters d using (id)
            union all
            select 'lag', l.*
              from was left join pgleader.dead_letters d using (id),
                   lateral (select greatest(0, extract(epoch from clock_timestamp() - was.sent_at))::float) lag(seconds),
                   lateral (values (pgleader.bucket(lag.seconds), 1), ('sum', lag.seconds)) l
             where d.id is null
           ) counted(name, label, value)
     group by 1, 2, 3
     order by 1, 2, 3
        on conflict (election, name, label) do update set value = c.value + excluded.value;
    return null;
end
$$;

create trigger count_gone after delete on pgleader.notifications
    referencing old table as was for each statement execute function pgleader.count_notifications();
