"""A process that has imported what takes seconds, and forks for every tool that it is to run.

Each line of its standard input is a JSON object: the words of a command after the interpreter, the
working directory, the environment, and the files for what is printed. It answers with the exit
code. A fork becomes the tool as if Python had just been started with these words, except that
modules of other projects are there already; of ours none is. It ends without taking apart what was
imported, which takes as long as a short tool.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback

# Upstream prints while it is imported: standard output is for the answers alone.
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

import mmdet.utils  # noqa: E402

mmdet.utils.register_all_modules(init_default_scope=False)
sys.stdout.flush()  # or each fork would print what is left


def serve() -> None:
    """Answer until an empty line, or until the input ends."""
    gc.freeze()  # a collection in a fork would copy all of it
    for line in sys.stdin:
        if not line.strip():
            return
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            _become(**job)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for descriptor, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.alarm(600)  # the end of a tool that hangs
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    paths = env['PYTHONPATH'].split(os.pathsep) if env.get('PYTHONPATH') else []
    sys.path[:1] = [os.path.dirname(os.path.abspath(words[0])), *paths]
    code: int | str | None = 0
    try:
        runpy.run_path(words[0], run_name='__main__')
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == '__main__':
    serve()
