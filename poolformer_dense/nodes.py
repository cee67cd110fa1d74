"""What tools/launch.sh sees to before it starts torchrun: `python -m poolformer_dense.nodes`.

On node 0 the port must be free. The other nodes wait for node 0, and must not meet another run
there. Where there are several, a process stays beside torchrun, which waits without a word, and
says which nodes are missing; it ends when all are there, or when the script does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from .errors import UserError
from .ports import require_free_port
from .terminal import tell

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_PERIOD = 0.5  # seconds
_KEY = 'poolformer_dense/nodes'  # in torchrun's store


@dataclass
class Nodes:
    """The nodes of a run, as the variables of tools/launch.sh tell them.

    Attributes:
        address: Of node 0.
        port: Of torchrun's store on it.
        number: How many nodes there are.
        rank: Which one this is; None if torchrun decides.
        run: What distinguishes this run from others: the job's number.
        elastic: Whether a node that has failed may be replaced.
        report_after: Seconds after which a wait is reported, and again each time they double.
        give_up_after: Seconds after which a wait is an error.
        script: The process of the script.
    """

    address: str
    port: int
    number: int
    rank: int | None
    run: str
    elastic: bool
    report_after: float
    give_up_after: float
    script: int
    _began: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    @classmethod
    def from_environment(cls) -> Nodes:
        """Read the variables that the script exports.

        Raises:
            UserError: One is no number.
        """
        rank = os.environ.get('NODE_RANK')
        elastic = _number('MAX_RESTARTS', '0') > 0
        return cls(
            address=os.environ['MASTER_ADDR'],
            port=int(_number('PORT', '29500')),
            number=int(_number('NNODES', '1')),  # of MIN:MAX, the fewest that can start
            rank=int(_number('NODE_RANK', '0')) if rank or not elastic else None,
            run=os.environ['JOB_ID'],
            elastic=elastic,
            report_after=_number('REPORT_AFTER', '120'),
            give_up_after=_number('JOIN_TIMEOUT', '1800'),
            script=os.getppid(),
        )

    def prepare(self) -> None:
        """Do what this module is for; return once torchrun may be started.

        Raises:
            UserError: The port is in use, node 0 does not come, or another run is there.
        """
        if self.number == 1 or self.rank == 0:
            require_free_port(self.address, self.port)
        if self.number == 1:
            return
        sys.stderr.flush()
        if self.rank in (0, None):  # this node may be the one that opens the store
            if not os.fork():
                self._stay(None)
            return
        store = self._meet()
        if not os.fork():
            self._stay(store)

    def _meet(self) -> TCPStore:
        """Wait for the store; see whose it is."""
        from torch.distributed import DistError, TCPStore

        while True:
            try:
                socket.create_connection((self.address, self.port), 2).close()
                limit = timedelta(seconds=10)
                store = TCPStore(
                    self.address, self.port, None, False, limit, wait_for_workers=False
                )
                break
            except (OSError, DistError) as error:
                self._wait_longer(
                    f'torchrun of node 0 at {self.address}, port {self.port} ({error})'
                )
        there = store.compare_set(f'{_KEY}/run', '', self.run).decode()
        if there != self.run:
            raise UserError(
                f'{self.address}, port {self.port}, is the rendezvous of another run ({there}; '
                f'this one is {self.run}); give this run another port on all its nodes: '
                f'PORT={self.port + 1}'
            )
        hosts = self._hosts(store)
        if len(hosts) == self.number and not self.elastic:
            raise UserError(
                f'the run at {self.address}, port {self.port}, has its {self.number} nodes already '
                f'({", ".join(hosts.values())}); give this run another port on all its nodes: '
                f'PORT={self.port + 1}, or stop that one'
            )
        return store

    def _stay(self, store: TCPStore | None) -> None:
        """Say which nodes are missing until none is, and exit."""
        code = 0
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            store = store or self._meet()
            own = socket.gethostname()
            place = store.add(f'{_KEY}/count', 1) - 1 if self.rank is None else self.rank
            store.set(f'{_KEY}/{place}', own)
            while len(hosts := self._hosts(store)) < self.number:
                missing = [str(node) for node in range(self.number) if node not in hosts]
                which = f'{len(missing)} more' if self.rank is None else ', '.join(missing)
                self._wait_longer(
                    f'node{"s" * (len(missing) > 1)} {which} of {self.number}, '
                    f'at {self.address}, port {self.port}'
                )
        except UserError as error:
            tell(f'error: {error}')
            code = 2
        except RuntimeError:
            pass  # the store is closed: torchrun has ended, and says why
        os._exit(code)

    def _hosts(self, store: TCPStore) -> dict[int, str]:
        keys = {node: f'{_KEY}/{node}' for node in range(self.number)}
        return {node: store.get(key).decode() for node, key in keys.items() if store.check([key])}

    def _wait_longer(self, what: str) -> None:
        waited = time.monotonic() - self._began
        who = 'this node' if self.rank is None else f'node {self.rank}'
        text = f'{who} ({socket.gethostname()}) has been waiting for {waited:.0f} s for {what}'
        if waited >= self.give_up_after:
            raise UserError(f'{text}; it gives up after JOIN_TIMEOUT={self.give_up_after:g}')
        if waited >= max(self.report_after, 2 * self._reported):
            self._reported = waited
            tell(text)
        time.sleep(min(_PERIOD, self.report_after / 4))
        try:
            os.kill(self.script, 0)
        except ProcessLookupError:
            os._exit(0)


def _number(name: str, default: str) -> float:
    text = (os.environ.get(name) or default).partition(':')[0]
    try:
        return float(text)
    except ValueError:
        raise UserError(f'{name}={text}: it must be a number') from None


if __name__ == '__main__':
    try:
        Nodes.from_environment().prepare()
    except UserError as error:
        tell(f'error: {error}')
        sys.exit(2)
