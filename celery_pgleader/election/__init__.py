"""The election: who leads, for which term, and for how long that may be believed.

Guarantee
    At most one session of a Postgres database holds an election's advisory lock. A node that has won it is
    the *leader* for one *term*, a number that only rises. "Exactly one leader" is not promised, and cannot
    be: nobody leads for the moment between two leaders, and a stopped process does not know that it was
    replaced. What is kept is that a leader which acts only while `Leadership.trusted()` says yes has stopped
    before the server lets anybody else lead.

How a node gets there (`state` holds this table, and nothing else decides)

    away ──connect──▶ polling ──place taken──▶ successor ──lock granted──▶ elected ──term minted──▶ leader
      ▲                │   ▲                       │                          │                       │  ▲
      │                ▼   │ every poll_interval   │ session lost             │ too late, not held    ▼  │ renewed
      │              follower                      │                          │                    renewing
      └────────────────────────────────────────────┴────── releasing ◀────────┴───────────────────────┘

    Who was elected, and is not to lead (an operator's order, or a node that cannot run the schedule), hands the lock on
    in place of minting a term, and is a follower again.

Waiting
    Two followers, the successors, each hold one of two place locks and wait for the election's lock inside
    Postgres, so that they get it the moment it is free. They wait in slices shorter than `deadlock_timeout`:
    a longer wait would pin the database's oldest snapshot, and with it VACUUM, for as long as it lasted, and
    would show in the server's log. The other followers ask for a free place every `poll_interval`.

The trust window
    trusted_until = when the last successful renewal was sent + ttl - trust_margin

    on the monotonic clock. The server ends a session that it has not heard of for `ttl`
    (`idle_session_timeout`), and starts to count only when it has answered, which is after the leader did. No
    two clocks are ever compared.

What goes wrong                         What happens
    the process dies                    the server sees its socket close and frees the lock at once
    the process hangs or is stopped     no renewals: the server ends its session within ttl; once it wakes, its
                                        trust has run out
    the network is cut                  the same, and the leader steps down when its trust runs out
    the session is ended                the next renewal fails, and the leader steps down
    the server restarts                 all sessions are gone; every node comes back with a jittered backoff
"""

from celery_pgleader.election.elector import Elector
from celery_pgleader.election.leadership import Change, Leadership, Term
from celery_pgleader.election.lock_session import LockSession, Presence, Standing, TermBook
from celery_pgleader.election.term_runner import TermRunner

__all__ = ["Change", "Elector", "Leadership", "LockSession", "Presence", "Standing", "Term", "TermBook", "TermRunner"]
