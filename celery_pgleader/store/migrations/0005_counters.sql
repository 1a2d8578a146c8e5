-- What is counted for metrics. Counters only rise, and what is counted is forgotten later; so they stand beside it.

-- When a leader last said that it was there, which it does every five seconds. Null: it is of a version that does not.
alter table pgleader.terms add column seen_at timestamptz;

-- A counter is the sum of its rows. It has more than one where transactions counted at the same time: nobody waits.
create table pgleader.counters (
    id       bigint generated always as identity primary key,
    -- Empty: of the whole database.
    election text not null,
    name     text not null,
    -- What of it. In a histogram a bucket's upper bound in seconds, each value in one bucket, and 'sum'.
    label    text not null,
    value    double precision not null
) with (fillfactor = 50);

create index counters_by_name on pgleader.counters (election, name, label);

create function pgleader.count(election text, name text, label text, value double precision) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgleader.counters c set value = c.value + count.value
     where c.id = (select n.id from pgleader.counters n
                    where n.election = count.election and n.name = count.name and n.label = count.label
                    limit 1 for update skip locked);
    if not found then
        insert into pgleader.counters (election, name, label, value) values (election, name, label, value);
    end if;
end
$$;

-- The least bound that is no less. Without a search_path of its own, so that Postgres puts it in place of its call.
create function pgleader.bucket(seconds double precision) returns text
language sql immutable as $$
    select (pg_catalog.string_to_array('0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,30,60,300,3600,+Inf', ','))[
        16 - pg_catalog.width_bucket(
            -seconds,
            '{-3600,-300,-60,-30,-10,-5,-2.5,-1,-0.5,-0.25,-0.1,-0.05,-0.025,-0.01,-0.005}'::pg_catalog.float8[]
        )
    ]
$$;

-- The triggers act with the rights of whoever made them: whoever may write a slot may have it counted. Nobody else can
-- hang them on a table.

create function pgleader.count_slots() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        perform pgleader.count(election, 'slots_' || state, reason, slots)
           from (select election, state, coalesce(split_part(reason, ':', 1), '') as reason, sum(slots) as slots
                   from written where state <> 'claimed' group by 1, 2, 3) counted;
    else
        -- What came to an end: those that have it now, less those that had it before.
        perform pgleader.count(election, 'slots_' || state, reason, slots)
           from (select election, state, coalesce(split_part(reason, ':', 1), '') as reason, sum(slots) as slots
                   from (select election, state, reason, slots from written
                         union all
                         select election, state, reason, -slots from was) both_of
                  where state <> 'claimed' group by 1, 2, 3 having sum(slots) > 0) counted;
        perform pgleader.count(election, 'lateness', label, value)
           from (select election, label, sum(value) as value
                   from (select election, 1 as sign, extract(epoch from settled_at - slot)::float as late
                           from written where state = 'published' and reason is distinct from 'run-now'
                         union all
                         select election, -1, extract(epoch from settled_at - slot)::float
                           from was where state = 'published' and reason is distinct from 'run-now') both_of,
                        lateral (values (pgleader.bucket(late), sign::float),
                                        ('sum', sign * greatest(0, late))) l(label, value)
                  group by 1, 2 having sum(value) > 0) counted;
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
        perform pgleader.count(n.election, case o.reason when 'lost' then 'gap_failover' else 'gap_handover' end,
                               l.label, l.value)
           from written n
           join lateral (select * from pgleader.terms o where o.election = n.election and o.term < n.term
                          order by o.term desc limit 1) o on o.ended_at is not null,
                lateral (select case o.reason when 'lost' then greatest(o.gained_at, o.seen_at)
                                              else o.ended_at end) ending(at),
                lateral (select greatest(0, extract(epoch from n.gained_at - ending.at))::float) gap(s),
                lateral (values (pgleader.bucket(gap.s), 1), ('sum', gap.s)) l(label, value);
    else
        perform pgleader.count(n.election, 'terms_ended',
                               case when n.reason in ('lost', 'stopped', 'resigned', 'cordoned', 'on hold',
                                                      'the beat failed') then n.reason
                                    when n.reason like 'handed over to %' then 'handed over'
                                    when n.reason like 'the beat has not moved %' then 'the beat hangs'
                                    else 'other' end, 1)
           from written n join was using (election, term)
          where was.ended_at is null and n.ended_at is not null;
    end if;
    return null;
end
$$;

create trigger count_begun after insert on pgleader.terms
    referencing new table as written for each statement execute function pgleader.count_terms();
create trigger count_ended after update on pgleader.terms
    referencing old table as was new table as written for each statement execute function pgleader.count_terms();

-- A notification leaves its table when it was dispatched, or became a dead letter.
create function pgleader.count_notifications() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgleader.count('', name, label, value)
       from (select name, label, sum(value) as value
               from (select 'notifications', case when d.id is null then 'dispatched' else 'dead' end, 1
                       from was left join pgleader.dead_letters d using (id)
                     union all
                     select 'lag', l.*
                       from was left join pgleader.dead_letters d using (id),
                            lateral (select greatest(0, extract(epoch from clock_timestamp() - was.sent_at))) lag(s),
                            lateral (values (pgleader.bucket(lag.s), 1), ('sum', lag.s)) l
                      where d.id is null
                    ) counted(name, label, value)
              group by 1, 2) counted;
    return null;
end
$$;

create trigger count_gone after delete on pgleader.notifications
    referencing old table as was for each statement execute function pgleader.count_notifications();

revoke execute on function pgleader.count_slots(), pgleader.count_terms(), pgleader.count_notifications() from public;
