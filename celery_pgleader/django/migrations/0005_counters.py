"""Runs the step of this name."""

from celery_pgleader.django.steps import migration

Migration = migration(__name__)
