"""Whether a port is free, and who has it."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing, suppress
from pathlib import Path

from .errors import UserError

_LISTENING = '0A'  # in /proc/net/tcp


def require_free_port(address: str, port: int) -> None:
    """See to it that this host can open a port, if an address is one of its own.

    Args:
        address: An address or a host's name.
        port: Its number.

    Raises:
        UserError: Another program has the port; it is named, as far as the system tells.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return  # who connects will say so
    for each in (place, ('', port)):
        with closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(each)
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise UserError(
                        f'port {port} of this host ({socket.gethostname()}) is in use by '
                        f'{_holder(port)}; give this run another, the same on all its nodes: '
                        f'PORT={port + 1}'
                    ) from error
                return  # not an address of this host


def _holder(port: int) -> str:
    """Who listens at a port."""
    inodes = set()
    for table in ('/proc/net/tcp', '/proc/net/tcp6'):
        with suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(':')[2], 16) == port:
                    inodes.add(f'socket:[{fields[9]}]')
    holders = {}
    for process in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):
            if any(os.readlink(link) in inodes for link in (process / 'fd').iterdir()):
                parent = (process / 'stat').read_text().rpartition(')')[2].split()[1]
                words = (process / 'cmdline').read_bytes().decode(errors='replace').split('\0')
                holders[process.name] = parent, ' '.join(words).strip()[:200]
    for pid, (parent, command) in holders.items():
        if parent not in holders:  # whose children have inherited it
            return f'process {pid} ({command})'
    return 'a process that this user may not see'
