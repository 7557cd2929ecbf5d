"""Runs without a network: connections to other machines are refused and noted, those to this machine are left alone.

Of this process alone: a library that connects from a process of its own is kept off the network by environment
variables of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

FOLDER = "{folder}"  # in the value of an environment variable: a temporary folder of the process


@contextmanager
def without_network(variables: Mapping[str, str | None]) -> Iterator[list[str]]:
    """Run the block without a network; yield the hosts that it tried to reach.

    variables  of the environment inside the block; None removes one
    """
    tried: list[str] = []
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refused(host: Any) -> OSError:
        tried.append(host.decode() if isinstance(host, bytes) else str(host))
        return ConnectionRefusedError(f"a check connects to no other machine, as {tried[-1]}")

    def only_here(function: Any) -> Any:
        def checked(self: socket.socket, address: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None) and not is_here(address[0]):
                raise refused(address[0])
            return function(self, address)

        return checked

    def only_this_machine(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_here(host):
            raise refused(host)
        return look_up(host, *arguments, **options)

    given = {name: value.replace(FOLDER, _folder().name) for name, value in variables.items() if value is not None}
    with (
        patch.dict(os.environ, {"NO_PROXY": "*", "no_proxy": "*", **given}),  # a proxy on this machine reaches others
        patch.object(socket.socket, "connect", only_here(connect)),
        patch.object(socket.socket, "connect_ex", only_here(connect_ex)),
        patch.object(socket, "getaddrinfo", only_this_machine),
    ):
        for name in variables.keys() - given.keys():
            os.environ.pop(name, None)
        yield tried


def is_here(host: Any) -> bool:
    """Return whether a host is this machine; None and an empty name are."""
    name = host.decode() if isinstance(host, bytes) else host
    if not name or name in ("localhost", socket.gethostname()):
        return True
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@cache  # libraries read some variables once in a process
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="neoplug-check-", ignore_cleanup_errors=True)
