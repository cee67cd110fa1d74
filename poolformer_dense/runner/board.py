"""Where the ranks of a run say what they are doing: a table that rank 0 keeps.

It has connections of its own, because those of torch's store wait without a limit for a host that
has stopped answering.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass

_LONGEST = 10_000  # bytes of a message to the board
_PATIENCE = 2.0  # seconds for a client that has connected


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself.

    Attributes:
        host: Its host's name.
        pid: Its process.
        count: How many places it has entered; who has entered fewer is behind.
        place: What it is doing, such as ``iteration 7``.
        call: The function in which it is that waits for all ranks, if in any.
        busy: Whether that may take long, so that nobody gives it up while it lives.
        lasted: For how many seconds it has been there.
        ended: Whether it is done, and will give no more signs.
        age: Seconds since the sign was given.
    """

    host: str
    pid: int
    count: int
    place: str
    call: str
    busy: bool
    lasted: float
    ended: bool = False
    age: float = 0.0


class Board:
    """The table, and the thread that answers the other ranks.

    Attributes:
        contact: What a `BoardClient` needs to reach it: the port, and a word that keeps others out.
    """

    def __init__(self) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(('', 0), family=family, dualstack_ipv6=dual)
        self._word = secrets.token_hex(16)
        self.contact = f'{self._listener.getsockname()[1]} {self._word}'
        self._signs: dict[int, tuple[float, Sign]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, name='board', daemon=True).start()

    def exchange(self, rank: int, sign: Sign, all_signs: bool) -> dict[int, Sign]:
        """Note a rank's sign; return those of all ranks that have given one, if asked for."""
        now = time.monotonic()
        with self._lock:
            self._signs[rank] = now, sign
            if not all_signs:
                return {}
            return {
                other: Sign(**asdict(given) | dict(age=now - at))
                for other, (at, given) in self._signs.items()
            }

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(_PATIENCE)
                    message = json.loads(connection.makefile('rb').readline(_LONGEST))
                    if not secrets.compare_digest(str(message['word']), self._word):
                        continue
                    sign = Sign(**message['sign'])
                    signs = self.exchange(int(message['rank']), sign, bool(message['all']))
                    answer = {str(rank): asdict(given) for rank, given in signs.items()}
                    connection.sendall(json.dumps(answer).encode() + b'\n')
                except (OSError, ValueError, KeyError, TypeError):
                    continue

    def close(self) -> None:
        self._listener.close()


class BoardClient:
    """The board, as another rank reaches it.

    Args:
        host: The address of rank 0.
        contact: The board's.
        patience: Seconds to wait for an answer.
    """

    def __init__(self, host: str, contact: str, patience: float) -> None:
        port, self._word = contact.split()
        # Looked up once: a name server could keep us waiting.
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4]
        self._address = str(found[0]), int(port)
        self._patience = patience

    def exchange(self, rank: int, sign: Sign, all_signs: bool) -> dict[int, Sign]:
        """As the board's.

        Raises:
            OSError: It does not answer.
        """
        message = dict(word=self._word, rank=rank, sign=asdict(sign), all=all_signs)
        with socket.create_connection(self._address, self._patience) as connection:
            connection.sendall(json.dumps(message).encode() + b'\n')
            answer = connection.makefile('rb').readline()
        if not answer:
            raise ConnectionError('no answer')
        return {int(rank): Sign(**given) for rank, given in json.loads(answer).items()}

    def close(self) -> None:
        """Nothing is kept open."""


def this_host() -> tuple[str, int]:
    """The name of this host, and this process."""
    return socket.gethostname(), os.getpid()
