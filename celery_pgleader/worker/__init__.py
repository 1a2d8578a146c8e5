"""The one place where everything is put together: a Celery worker that takes part in the election."""

from celery_pgleader.worker.install import PgLeader

__all__ = ["PgLeader"]
