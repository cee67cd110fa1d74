"""tools/estimate_communication.py"""

from __future__ import annotations


def test_prints_the_table(call):
    done = call('estimate_communication.py', 'poolformer_s12', '--nodes', '8', '--step', '100')
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith('| backbone | gradients | 1 Gbit/s |')
    assert done.stdout.splitlines()[-1].startswith('| poolformer_s12 | 46 MB | 639 (638.')


def test_mistakes_are_one_line(call):
    for given, said in (
        (['poolformer_s99'], 'error: there is no preset poolformer_s99; there are poolformer_s12,'),
        (['--nodes', '0'], 'error: --nodes must be at least 1'),
        (['--step', '-1'], 'error: --nodes must be at least 1 and --step more than 0'),
    ):
        done = call('estimate_communication.py', *given)
        assert done.returncode == 2
        assert done.stderr.startswith(said)
