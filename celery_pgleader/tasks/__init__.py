"""Leader-only tasks: where their messages go, who consumes them, and what is done with those that went astray.

And the guard of runs that must not be repeated, or must not overlap.
"""

from celery_pgleader.tasks.leader_only import LeaderOnlyTask, queue_name, route_leader_only_tasks

__all__ = ["LeaderOnlyTask", "queue_name", "route_leader_only_tasks"]
