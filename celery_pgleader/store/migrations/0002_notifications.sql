-- Durable notifications: rows that are written in the sender's own transaction, and dispatched by the leader.

-- Only those that wait for their dispatch; the table is empty most of the time.
create table pgleader.notifications (
    id       bigint generated always as identity primary key,
    -- Task ids are made from it.
    uid      uuid not null default gen_random_uuid(),
    channel  text not null check (octet_length(channel) between 1 and 63),
    -- Notifications with the same key are dispatched in order.
    key      text,
    payload  jsonb not null,
    sent_at  timestamptz not null default clock_timestamp(),
    attempts integer not null default 0,
    error    text
);

-- Whether an older one with the same key still waits.
create index notifications_by_key on pgleader.notifications (channel, key, id) where key is not null;

-- Those that could not be dispatched, however often it was tried.
create table pgleader.dead_letters (
    id       bigint primary key,
    uid      uuid not null,
    channel  text not null,
    key      text,
    payload  jsonb not null,
    sent_at  timestamptz not null,
    attempts integer not null,
    error    text not null,
    died_at  timestamptz not null default clock_timestamp()
);

-- Write a notification, and wake the leader when the transaction commits, if it sleeps. A NOTIFY makes committing
-- transactions wait for each other, so none is sent to a leader that is up: it looks by itself. Nobody waits for a lock
-- here. The advisory locks are 1885826128, 1, shared by all whose notification is on its way, up to the end of their
-- transaction; and 1885826128, 0, shared by the relays that sleep. Whoever can have the second one alone, for a moment,
-- knows that nobody sleeps, and a relay that lies down sees from the first that this one is still on the way. It is given
-- back in the same expression, within which nothing can be cancelled.
-- With `set pgleader.wake = off`, for a session, a role or the whole database, there is neither NOTIFY nor lock, and the
-- leader sees the row when it next looks.
-- All of it is named with its schema, in place of a search_path of its own: changing that, and back, would take a tenth
-- of the time.
create function pgleader.notify(channel text, payload jsonb, key text default null) returns void
language plpgsql as $$
begin
    insert into pgleader.notifications (channel, key, payload) values (channel, key, payload);
    if (case when pg_catalog.current_setting('pgleader.wake', true) operator(pg_catalog.=) 'off' then false
             when not pg_catalog.pg_try_advisory_xact_lock_shared(1885826128, 1) then true
             when pg_catalog.pg_try_advisory_lock(1885826128, 0) then not pg_catalog.pg_advisory_unlock(1885826128, 0)
             else true end)
    then
        perform pg_catalog.pg_notify('pgleader', '');
    end if;
end
$$;
