-- The shop's tables.

create table orders (
    id           bigint generated always as identity primary key,
    item         text not null,
    price        numeric(8, 2) not null,
    placed_at    timestamptz not null default clock_timestamp(),
    confirmed_at timestamptz
);

create table deliveries (
    id           bigint generated always as identity primary key,
    ordered_at   timestamptz not null default clock_timestamp()
);

-- The node that holds the election's lock at this very moment, as Postgres itself knows it.
-- 1885826048 is the class of celery-pgleader's locks; the holder's session is named "pgleader leader <node>".
create function leader() returns text language sql volatile as $$
    select substr(a.application_name, length('pgleader leader ') + 1)
      from pg_locks l join pg_stat_activity a using (pid)
     where l.locktype = 'advisory' and l.granted and l.classid = 1885826048 and l.objsubid = 2
       and l.database = (select oid from pg_database where datname = current_database())
$$;

-- What really happened: each run of a task adds a row, in the transaction in which it does its work.
create table facts (
    id      bigint generated always as identity primary key,
    kind    text not null,                                  -- order, tick, restock, gained, lost
    key     text not null,                                  -- which order, which delivery, which slot
    node    text not null,                                  -- the worker that ran the task
    run     text,                                           -- the task id
    term    bigint,                                         -- the term under which it was sent, where that is known
    sent_at timestamptz,                                    -- when the message was sent
    sent_by integer,                                        -- process id of who sent it
    at      timestamptz not null default clock_timestamp(), -- when it ran
    leader  text default leader()                           -- who led at that moment
);
