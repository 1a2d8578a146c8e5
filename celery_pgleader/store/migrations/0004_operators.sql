-- What operators order, and which nodes there are.

-- Orders of all elections go into their rows: whoever claims or is elected reads and locks that row anyway.
alter table pgleader.elections
    -- Since when the schedule is paused: slots are skipped. Null: it is not.
    add column paused_at timestamptz,
    -- Since when nobody is elected; who leads goes on. Null: elections are held.
    add column held_at timestamptz,
    -- Nodes that are not to lead.
    add column cordoned text[] not null default '{}',
    -- When the lead is to be handed over, to whom (null: whoever is next), and of which term (null: any).
    add column resign_at timestamptz,
    add column resign_to text,
    add column resign_term bigint,
    -- Who alone may be elected until then; set by a leader that hands over.
    add column next_node text,
    add column next_until timestamptz;

-- Since when the entry's slots are skipped, and the next one that is not accounted for. Null: not paused; none, or not
-- known.
alter table pgleader.entries
    add column paused_at timestamptz,
    add column next_slot timestamptz;

-- What each node says of itself whenever it asks for a place. Whether it is still there is told by its session.
create table pgleader.nodes (
    election        text not null,
    node            text not null,
    -- Of several processes with one name.
    instance        uuid not null,
    backend_pid     integer not null,
    priority        integer not null,
    -- Why it does not stand. Null: it does.
    stands_back     text,
    -- Its schedule: the names of the entries and a hash of what they are. Null: the scheduler keeps it elsewhere.
    entries         text[],
    schedule        text,
    app_version     text not null,
    package_version text not null,
    -- Seconds by which its clock is ahead of the database's.
    clock_skew      double precision not null,
    started_at      timestamptz not null,
    seen_at         timestamptz not null default clock_timestamp(),
    primary key (election, node, instance)
);
