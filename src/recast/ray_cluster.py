"""The connection to a Ray cluster: one on this machine, or one that runs somewhere.

This module owns how a process starts or joins a cluster, and what Ray's exceptions say about the
work that failed. It refuses to know what runs on the cluster.
"""

import logging
import os
from typing import Any

from recast.errors import BadCall, missing_extra, reason_of

LOCAL = "local"
"""The address that starts a new cluster on this machine."""
_CLIENT = "ray://"


def connected(address: str) -> Any:
    """The module `ray`, connected to a cluster. Whoever calls this ends with `ray.shutdown()`.

    `address` is "local" or the address of a cluster. Raises `BadCall` if Ray is not installed, or
    if no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default Ray's workers have a lower priority than every other process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with missing_extra("ray"):
        import ray
    if address.startswith(_CLIENT):
        raise BadCall(
            f"`ray` is {address}, an address of Ray Client, which cannot deliver results one by "
            "one; start this on a machine of the cluster, and give HOST:PORT"
        )
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:  # starts a new cluster, even if one is running on this machine
        options["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise BadCall(
            f"`ray` is {address}, and no cluster answers there ({reason_of(error)}); give the "
            "address of a cluster, or local; a cluster that asks for a token needs "
            "RAY_AUTH_MODE=token in the environment"
        ) from error
    return ray


def cause_of(ray: Any, error: BaseException) -> BaseException:
    """What an exception of Ray is about: the exception of the remote code, or else the exception
    itself, for a process or a machine that was lost."""
    # The text of a RayTaskError begins with a traceback.
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
