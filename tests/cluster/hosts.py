"""Hosts of a cluster, each in namespaces of the kernel, with links that can be cut or made worse.

A host has its own network, host name, processes, mounts and ``/dev/shm``; the file system is the
machine's, but for what is mounted in the host alone. Nothing of this is visible outside, and all
of it ends with the process that made it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = dict.fromkeys(('unshare', 'nsenter', 'mount'), 'util-linux')
PACKAGES |= dict.fromkeys(('ip', 'tc', 'ss'), 'iproute2')
LONGEST = 300.0  # seconds that a command may take


def missing(programs: dict[str, str]) -> str | None:
    """Say what keeps hosts from being made here; None if nothing does.

    Args:
        programs: The Debian package of each program that is needed.
    """
    if os.geteuid():
        return 'only root can make network namespaces'
    packages = {package for name, package in programs.items() if shutil.which(name) is None}
    if packages:
        return f'needs apt-get install {" ".join(sorted(packages))}'
    try:
        with Namespaces('true'):
            return None
    except RuntimeError as error:
        return f'this machine makes no namespaces: {error}'


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = LONGEST, interval: float = 0.05
) -> None:
    """Wait until something is so, looking every so many seconds.

    Raises:
        AssertionError: It was not in that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'waited {seconds:g} s in vain: {what}'
        time.sleep(interval)


class Namespaces:
    """New namespaces with a first process, which ends with this object or its process.

    Args:
        script: What the first process does before all else.

    Raises:
        RuntimeError: The kernel or the script refuses.
    """

    def __init__(self, script: str) -> None:
        kinds = ['--net', '--uts', '--mount', '--ipc', '--pid', '--mount-proc']
        # Bash, for it takes leave of orphans; it waits for the end of its input.
        init = ['bash', '-ec', f'{script}\necho ready; exec >&-; read -r _ || :']
        self._process = subprocess.Popen(
            ['unshare', *kinds, '--fork', '--kill-child', *init], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        if self._process.stdout.readline() != 'ready\n':
            self._process.stdin.close()
            said = self._process.stderr.read().strip()
            self._process.wait()
            raise RuntimeError(said)
        pid = self._process.pid
        self.pid = int(Path(f'/proc/{pid}/task/{pid}/children').read_text())
        self._pids = os.readlink(f'/proc/{self.pid}/ns/pid')

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def entering(self, command: Sequence[object]) -> list[str]:
        """A command, to be run in here."""
        return ['nsenter', f'--target={self.pid}', '-n', '-u', '-m', '-i', '-p', *map(str, command)]

    def run(self, *command: object, **variables: object) -> str:
        """Run a command of the system in here; return what it prints.

        Raises:
            AssertionError: It failed.
        """
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        done = subprocess.run(
            self.entering(command), env=environment, capture_output=True, text=True, timeout=LONGEST
        )
        assert done.returncode == 0, f'{command}: {done.stderr}'
        return done.stdout

    def processes(self) -> list[int]:
        """What runs in here beside the first process, by the machine's numbers."""
        found = []
        for entry in Path('/proc').iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and os.readlink(entry / 'ns/pid') == self._pids:
                    state = (entry / 'stat').read_text().rpartition(')')[2].split()[0]
                    found += [int(entry.name)] if state not in 'ZX' else []
        return [pid for pid in found if pid != self.pid]


class Job:
    """A command that runs on a host.

    Attributes:
        log: The file of what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with open(log, 'w') as output:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors='replace')

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float = LONGEST) -> int:
        """Wait for its end; return its exit code, negative for a signal.

        Raises:
            AssertionError: It has not ended in that time.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'still runs after {seconds:g} s: {self.said[-3000:]}') from None


class Host(Namespaces):
    """A host on the cluster's switch.

    Args:
        name: Its host name.
        address: Its address.
        folder: For its temporary files and the logs of its jobs.
        names: A file that serves as its /etc/hosts.
        switch: What it is connected to.

    Attributes:
        cwd: Where its commands run; at first a folder that all hosts share.
    """

    def __init__(self, name: str, address: str, folder: Path, names: Path, switch: Switch) -> None:
        super().__init__(
            f'hostname {name}; ip link set lo up; mount -t tmpfs tmpfs /dev/shm; '
            f'mount --bind {names} /etc/hosts'
        )
        self.name, self.address, self.folder = name, address, folder
        self.temporary = folder / 'tmp'
        self.temporary.mkdir(parents=True)
        self.cwd = folder.parent
        self.jobs: list[Job] = []
        self._switch = switch
        switch.connect(self)

    def start(self, *command: object, **variables: object) -> Job:
        """Start a command in `cwd`, with the project's environment.

        Args:
            command: Its words.
            variables: Further environment variables.
        """
        environment = os.environ | {
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'VIRTUAL_ENV': sys.prefix, 'OMP_NUM_THREADS': '1',
            'TMPDIR': str(self.temporary), 'HOSTNAME': self.name,
        } | {name: str(value) for name, value in variables.items()}  # fmt: skip
        log = self.folder / f'job{len(self.jobs)}.log'
        self.jobs.append(
            Job(self.entering(['env', f'--chdir={self.cwd}', *command]), log, environment)
        )
        return self.jobs[-1]

    def mount(self, source: Path, target: Path) -> None:
        """Make a folder appear under another path, on this host alone."""
        self.run('mount', '--bind', source, target)

    def ranks(self) -> dict[int, int]:
        """The processes of a training that run here, by rank."""
        found: dict[int, int] = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
                found |= {int(word[5:]): pid for word in words if word.startswith(b'RANK=')}
        return found

    def kill(self) -> None:
        """Kill all that runs here at once."""
        self.run('bash', '-c', 'kill -KILL -1')

    def listening(self) -> list[str]:
        """The ports on which something listens."""
        return [line.split()[3] for line in self.run('ss', '-Htln').splitlines()]

    def cut(self) -> None:
        """Lose all that this host sends and receives, as when a switch fails."""
        self._switch.run('ip', 'link', 'set', self.name, 'nomaster')

    def restore(self) -> None:
        """Undo `cut`."""
        self._switch.run('ip', 'link', 'set', self.name, 'master', 'switch')

    def shape(self, *qdisc: object) -> None:
        """Make what this host sends slower, or lose some of it.

        Args:
            qdisc: As for ``tc qdisc``, e.g. netem delay 20ms loss 1%.

        Raises:
            AssertionError: The kernel does not have it.
        """
        self.run('tc', 'qdisc', 'replace', 'dev', 'eth0', 'root', *qdisc)

    def dropped(self) -> int:
        """How many packets `shape` has lost."""
        return int(
            self.run('tc', '-s', 'qdisc', 'show', 'dev', 'eth0').split('dropped ')[1].split(',')[0]
        )

    def left(self) -> list[str]:
        """What runs here or holds a port, in words."""
        found = [f'{self.name}: port {port}' for port in self.listening()]
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')
                found.append(f'{self.name}: process {words or pid}')
        return found


class Switch(Namespaces):
    """What connects hosts."""

    def __init__(self) -> None:
        super().__init__('ip link add switch type bridge; ip link set switch up')

    def connect(self, host: Host) -> None:
        """Lay a cable to a host."""
        self.run('ip', 'link', 'add', host.name, 'type', 'veth', 'peer', 'name', 'eth0')
        # From the switch's network but the machine's processes, among which the host has a number.
        command = ['ip', 'link', 'set', 'eth0', 'netns', str(host.pid)]
        subprocess.run(['nsenter', f'--target={self.pid}', '-n', *command], check=True)
        self.run('ip', 'link', 'set', host.name, 'master', 'switch', 'up')
        host.run('ip', 'address', 'add', f'{host.address}/24', 'dev', 'eth0')
        host.run('ip', 'link', 'set', 'eth0', 'up')


@contextlib.contextmanager
def cluster(folder: Path, names: Sequence[str]) -> Iterator[list[Host]]:
    """Make hosts that know each other by name; at the end nothing of them is left.

    Args:
        folder: For what they write.
        names: Their host names.
    """
    addresses = {name: f'10.15.0.{number}' for number, name in enumerate(names, start=1)}
    folder.mkdir(exist_ok=True)
    table = folder / 'hosts'
    table.write_text(
        '127.0.0.1 localhost\n' + ''.join(f'{a} {name}\n' for name, a in addresses.items())
    )
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch())
        yield [
            stack.enter_context(Host(name, address, folder / name, table, switch))
            for name, address in addresses.items()
        ]


def nothing_left(hosts: Sequence[Host], seconds: float = 30.0) -> None:
    """See that no process runs and no port is held on any host.

    Raises:
        AssertionError: Something was still there after some seconds.
    """

    def left() -> list[str]:
        return [line for host in hosts for line in host.left()]

    deadline = time.monotonic() + seconds
    while found := left():
        assert time.monotonic() < deadline, f'left behind: {found}'
        time.sleep(0.2)


def stop(pid: int) -> None:
    """Stop a process; it keeps its connections and does nothing."""
    os.kill(pid, signal.SIGSTOP)
