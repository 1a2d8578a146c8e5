-- The ledger: who led when, and what became of every slot of the schedule.
-- Run as a role that may create schemas. Workers need no more than the rights granted at the end of `migrate --sql`.

create schema if not exists pgleader;

create table if not exists pgleader.migrations (
    version    integer primary key,
    applied_at timestamptz not null default clock_timestamp()
);

-- One row for each election. Whoever writes for a term first locks this row FOR SHARE and finds its own number in it;
-- a new leader's UPDATE waits for those, and after it they find another number.
create table pgleader.elections (
    election  text primary key,
    term      bigint not null,
    node      text not null,
    gained_at timestamptz not null default clock_timestamp()
);

create table pgleader.terms (
    election    text not null,
    term        bigint not null,
    node        text not null,
    backend_pid integer not null,
    gained_at   timestamptz not null default clock_timestamp(),
    -- Null while the term lasts. For a leader that was lost, when the next one was elected.
    ended_at    timestamptz,
    reason      text,
    primary key (election, term)
);

create table pgleader.entries (
    election    text not null,
    entry       text not null,
    task        text not null,
    schedule    text not null,
    -- Intervals are counted from here.
    anchor      timestamptz not null,
    -- Slots up to here are of no concern: the entry was not there yet, or had another schedule.
    since       timestamptz not null,
    -- Slots up to here are accounted for; it only ever rises. Null: none yet.
    last_slot   timestamptz,
    last_run_at timestamptz,
    run_count   bigint not null default 0,
    -- Null while the entry is in the schedule.
    retired_at  timestamptz,
    primary key (election, entry)
);

-- One row for each slot that was claimed; one for each stretch of slots that were not.
create table pgleader.slots (
    election    text not null,
    entry       text not null,
    slot        timestamptz not null,
    through     timestamptz not null,
    slots       bigint not null default 1,
    state       text not null check (state in ('claimed', 'published', 'skipped', 'expired')),
    reason      text,
    term        bigint not null,
    task_id     uuid,
    claimed_at  timestamptz not null default clock_timestamp(),
    -- When it was published, skipped or expired.
    settled_at  timestamptz,
    primary key (election, entry, slot)
);

create index slots_claimed on pgleader.slots (election, slot) where state = 'claimed';
create index slots_by_time on pgleader.slots (election, slot);

-- Tasks that are not to be run again when their message is delivered again: those that have come to their end.
create table pgleader.finished (
    task_id     uuid primary key,
    finished_at timestamptz not null default clock_timestamp()
);

create index finished_by_time on pgleader.finished (finished_at);
