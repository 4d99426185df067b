"""Django's settings of the project: nothing but a database and Celery."""

import json
import os

from tests.django_project import DATABASE_VARIABLE, EAGER_VARIABLE, REUSE_VARIABLE

SECRET_KEY = "no secret"  # noqa: S105
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.django_project.shop"]
DATABASES = {
    "default": json.loads(os.environ.get(DATABASE_VARIABLE, "null"))
    or {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
}
CELERY_TASK_ALWAYS_EAGER = EAGER_VARIABLE in os.environ
CELERY_TASK_EAGER_PROPAGATES = os.environ.get(EAGER_VARIABLE) == "propagates"
CELERY_DB_REUSE_MAX = int(os.environ.get(REUSE_VARIABLE, "0")) or None
