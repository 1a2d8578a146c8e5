-- Have the transaction in which this is called fail if a term is not the latest any more: for the writes of leader-only
-- tasks. From here to the end of the transaction no other leader can be elected, so it belongs right before the commit;
-- a client that stops in between is disconnected by the server after two seconds.
create function pgleader.fence(election text, term bigint) returns void
language plpgsql as $$
begin
    perform pg_catalog.set_config('idle_in_transaction_session_timeout', '2s', true);
    -- Whatever the caller's search_path has, these are Postgres' own.
    perform from pgleader.elections e
      where e.election operator(pg_catalog.=) fence.election and e.term operator(pg_catalog.=) fence.term for share;
    if not found then
        raise exception 'pgleader: term % of election % is over', term, election
            using errcode = 'object_not_in_prerequisite_state';
    end if;
end
$$;
