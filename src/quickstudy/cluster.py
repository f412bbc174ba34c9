"""Work on Ray: join a cluster, or start one on this machine, for as long as a piece of work takes.

Ray is an extra and slow to import, so it is imported inside functions only.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from quickstudy.errors import ClusterError, OptionError
from quickstudy.process import default_variable, usable_cores

AUTO = "auto"
_ANSWER_SECONDS = 3.0
# Memory for what travels between the processes of one machine; Ray's default is a third of all.
_LOCAL_OBJECT_STORE_BYTES = 256 << 20
_LOOPBACK = "127.0.0.1"
# Ray speaks gRPC over HTTP/2, whose servers answer a client's preface with a frame of settings (RFC 9113, section 3.4).
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
_QUIETLY: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_EXPECTED = "expected auto, HOST:PORT as `ray start --head` prints it, or ray://HOST:PORT"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Work on the Ray cluster at `address`; afterwards, what was started here is shut down, and nothing else.

    `auto` is the cluster that RAY_ADDRESS names or that `ray start` has made this machine a part of, and where there is
    neither, a private one with a worker a core, which listens on the loopback device only. Where Ray is connected
    already, that connection is used and stays.

    Raises:
        OptionError: the address is malformed.
        ClusterError: nobody answers there within seconds, or it is not a Ray cluster.
    """
    # Ray's head reads it when it starts, and Ray Data whenever it runs something, to report that to Ray's makers.
    with default_variable("RAY_USAGE_STATS_ENABLED", "0"):
        found = _running_cluster() if address == AUTO else address
        if found is not None:
            _require_answer(found)
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            if found is None:
                _start_private()
            else:
                ray.init(address=address, **_QUIETLY)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            ray.shutdown()
            place = (
                f"The Ray cluster at '{found}' cannot be joined" if found else "Ray cannot be started on this machine"
            )
            raise ClusterError(f"{place}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _start_private() -> None:
    import ray
    from ray._private import ray_constants

    # On Linux, Ray takes the loopback address for a slip, puts the machine's outward one in its place, and then listens
    # on all addresses. This switch of its own, off on macOS and Windows, keeps it from doing so; below, it is checked
    # that it has.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            _node_ip_address=_LOOPBACK,
            **_QUIETLY,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
    if (address := ray.util.get_node_ip_address()) != _LOOPBACK:
        raise RuntimeError(f"it listens at {address} instead of {_LOOPBACK} alone; start a cluster with `ray start`")


def _running_cluster() -> str | None:
    """Find the address of the cluster that this machine is a part of, as RAY_ADDRESS or `ray start` has it.

    Ray's own search joins any Ray process that it finds on the machine, another program's private one included.
    """
    named = os.environ.get("RAY_ADDRESS", AUTO)
    if named not in ("", AUTO):
        return None if named == "local" else named
    from ray._private.utils import read_ray_address

    noted: str | None = read_ray_address()
    if not noted:
        return None
    try:
        _require_answer(noted)
    except (ClusterError, OptionError):  # it has gone without taking its note along, or the note is damaged
        return None
    return noted


def _require_answer(address: str) -> None:
    """Try to reach an address before Ray does, which retries for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise OptionError(f"'{address}' is not the address of a Ray cluster; {_EXPECTED}")
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except OSError as error:
        raise ClusterError(
            f"No Ray cluster answers at '{address}' ({error.strerror or error}); {_EXPECTED}. "
            "Is it running, and does a firewall let this machine through?"
        ) from None
    if answer[3:4] != _SETTINGS and os.environ.get("RAY_USE_TLS") != "1":
        raise ClusterError(f"What answers at '{address}' is not a Ray cluster; {_EXPECTED}")
