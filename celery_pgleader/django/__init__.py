"""For Django projects: the schema by `manage.py migrate`, and the ledger in the admin.

Add `celery_pgleader.django` to `INSTALLED_APPS`. The election needs none of it.
"""
