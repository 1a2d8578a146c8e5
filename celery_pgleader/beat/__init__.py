"""The leader's beat: the app's own scheduler, run for as long as a term lasts."""

from celery_pgleader.beat.leader_beat import LeaderBeat

__all__ = ["LeaderBeat"]
