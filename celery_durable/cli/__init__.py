"""``celery durable ...``: a plugin of the ``celery`` command, found by its entry point."""

from celery_durable.worker import control  # noqa: F401  so that `celery control` knows durable_cancel

from .acting import cancel, purge, restart, retry, wake
from .copying import export, import_
from .examining import doctor, versions
from .group import durable
from .looking import list_, show, watch
from .monitoring import flower
from .recovery import recover

for _command in (
    list_, show, watch, retry, restart, cancel, wake, purge, recover, export, import_, doctor, versions, flower,
):  # fmt: skip
    durable.add_command(_command)

__all__ = ["durable"]
