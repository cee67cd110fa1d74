"""Pickles that try to do harm, each by one trick."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

from tests.backbones.pickled import (
    HISTORY,
    HOOKS,
    array,
    attribute,
    buffer,
    call,
    group,
    name,
    storage,
    tensor,
    text,
    value,
)

# Functions that act, and arguments with which they make the file named {canary}.
ACTING = {
    'os.system': ('touch {canary}',),
    'posix.system': ('touch {canary}',),
    'os.mkdir': ('{canary}',),
    'subprocess.call': (('touch', '{canary}'),),
    'subprocess.check_output': (('touch', '{canary}'),),
    'builtins.eval': ("open('{canary}', 'w')",),
    'builtins.exec': ("open('{canary}', 'w')",),
    'builtins.open': ('{canary}', 'w'),
    '_io.open': ('{canary}', 'w'),
    'runpy._run_code': ("open('{canary}', 'w')", {}),
    'timeit.timeit': ('pass', "open('{canary}', 'w')"),
    'cProfile.run': ("open('{canary}', 'w')",),
    'profile.run': ("open('{canary}', 'w')",),
    'trace.Trace.run': (None, "open('{canary}', 'w')"),
    'shutil.copy': (os.devnull, '{canary}'),
    'pathlib.Path.touch': (None,),
    'numpy.savetxt': ('{canary}', [1.0]),
    'torch.save': ([], '{canary}'),
    'logging.FileHandler': ('{canary}',),
    'tarfile.open': ('{canary}', 'w'),
    'zipfile.ZipFile': ('{canary}', 'w'),
    'sqlite3.connect': ('{canary}',),
}
# Functions that would act in their place, or lead to others.
LEADING = {
    'pdb.run': ("open('{canary}', 'w')",),
    'os.popen': ('touch {canary}',),
    'builtins.__import__': ('antigravity',),
    'builtins.compile': ('1', 'x', 'eval'),
    'builtins.getattr': ('', 'format'),
    'builtins.map': (None, []),
    'builtins.bytearray': (1 << 40,),
    'builtins.type': ('x', (), {}),
    'builtins.delattr': (None, 'x'),
    'importlib.import_module': ('antigravity',),
    'operator.attrgetter': ('system',),
    'operator.methodcaller': ('system', 'x'),
    'functools.partial': (None, 'x'),
    'functools.reduce': (None, []),
    'copyreg._reconstructor': (None, None, None),
    'copyreg.__newobj__': (None,),
    'copyreg.add_extension': ('os', 'system', 1),
    'pickle.loads': (b'.',),
    '_pickle.loads': (b'.',),
    'marshal.loads': (b'.',),
    'types.FunctionType': (None, {}),
    'types.CodeType': (0,),
    'webbrowser.open': ('file:///dev/null',),
    'pip._internal.main': (['--version'],),
    'pip.main': (['--version'],),
    'bdb.Bdb': (),
    'code.interact': (),
    'pty.spawn': ('true',),
    'socket.create_connection': (('127.0.0.1', 9),),
    'urllib.request.urlopen': ('http://127.0.0.1:9/',),
    'ctypes.CDLL': ('libc.so.6',),
    'asyncio.run': (None,),
    'multiprocessing.Process': (),
    'doctest.debug_script': ('1',),
    'logging.config.fileConfig': ('x',),
    'torch.load': ('{other}', None, None),
    'torch.serialization.load': ('{other}',),
    'torch.storage._load_from_bytes': (b'.',),
    'torch.jit.load': ('{other}',),
    'torch.jit._script.unpackage_script_module': (None, None, None, None),
    'torch.hub.load': ('x/y', 'z'),
    'torch.hub.download_url_to_file': ('http://127.0.0.1:9/', '{canary}'),
    'torch.package.PackageImporter': ('{other}',),
    'torch.utils.cpp_extension.load_inline': ('x', ''),
    'torch._dynamo.guards.GuardBuilder': (),
    'torch._inductor.codecache.FxGraphCache': (),
    'torch.fx._symbolic_trace._assert_is_none': (None, 'x'),
    'torch.distributed.rpc.internal._internal_rpc_pickler.deserialize': (b'.', []),
    'torch.classes.load_library': ('libc.so.6',),
    'torch.ops.load_library': ('libc.so.6',),
    'torch.UntypedStorage': (1 << 40,),
    'torch.FloatTensor': (1 << 38,),
    'torch._utils._rebuild_tensor': (None, 0, (1,), (1,)),
    'torch._utils._rebuild_sparse_tensor': (None, ()),
    'torch._utils._rebuild_qtensor': (None, 0, (), (), (), False, None),
    'torch._utils._rebuild_nested_tensor': (None, None, None, None),
    'torch._utils._rebuild_meta_tensor_no_storage': (None, (1 << 40,), (1,), False),
    'torch._utils._rebuild_device_tensor_from_numpy': (None, None, 'cpu', False),
    'torch._utils._rebuild_wrapper_subclass': (None, None, (1,), (1,), 0, None, 'cpu', False),
    'torch._tensor._rebuild_from_type_v2': (None, None, (), {}),
    'torch.nn.modules.container.Sequential': (),
    'numpy.load': ('{other}', None, True),
    'numpy.core.multiarray.scalar': (None, b'x'),
    'numpy.core.multiarray._reconstruct': (None, (1 << 40,), b'b'),
    'numpy.memmap': ('{canary}',),
    'numpy.testing._private.utils.runstring': ('1', {}),
    'numpy.f2py.crackfortran.myeval': ('1',),
    '_codecs.encode': ('x', 'rot13'),
    'codecs.open': ('{canary}', 'w'),
    'collections.Counter': ([1],),
    'mmengine.config.Config.fromfile': ('{other}',),
    'mmengine.config.Config': (),
    'mmengine.logging.history_buffer.HistoryBuffer.register_statistics': (None,),
    'mmengine.utils.import_modules_from_strings': ('antigravity',),
    'mmengine.fileio.load': ('{other}',),
    'argparse.Namespace': (),
}


def acting(function: str, canary: Path) -> bytes:
    """A call of a function of `ACTING`, which makes the canary, or of `LEADING`."""
    if function == 'pathlib.Path.touch':
        inner = call('pathlib.PosixPath', text(str(canary)))
        return attribute(function) + group(inner) + b'R'
    if function == 'trace.Trace.run':
        run = attribute(function, of=call('trace.Trace'))
        return run + group(text(f"open('{canary}', 'w')")) + b'R'
    return call(function, *map(value, _filled((ACTING | LEADING)[function], canary)))


def _filled(arguments: object, canary: Path) -> object:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_filled(item, canary) for item in arguments)
    if isinstance(arguments, str):
        return arguments.replace('{canary}', str(canary)).replace('{other}', f'{canary}.other')
    return arguments


def objects(canary: Path) -> dict[str, bytes]:
    """Pickles of single hostile objects by what they try."""
    system, touch = name('posix.system'), text(f'touch {canary}')
    act = group(touch)
    log = dict(max_length=value(5), _log_history=array(), _count_history=array())
    return {
        'INST': b'(' + touch + b'iposix\nsystem\n',
        'OBJ': b'(' + system + touch + b'o',
        'STACK_GLOBAL': text('posix') + text('system') + b'\x93' + act + b'R',
        'EXT1': b'\x82\x01' + act + b'R',
        'NEWOBJ': system + act + b'\x81',
        'NEWOBJ_EX': system + act + b'}\x92',
        'by memo': system + b'q\x010h\x01' + act + b'R',
        'function as a value': b'](' + system + b'e',
        'allowed function as a value': b'](' + name('_codecs.encode') + b'e',
        'python 2 name': call('__builtin__.eval', text(f"open('{canary}', 'w')")),
        'name of a dunder': call('torch.Size.__class__', value(())),
        'dotted': b'ctorch\nserialization.os.system\n' + act + b'R',
        'name without end': b'cos' + b'a' * 5000,
        'rebuild from type': call(
            'torch._tensor._rebuild_from_type_v2', system, name('torch.Tensor'), act, b'}'
        ),
        'getattr of a method': attribute('__globals__', of=attribute(f'{HISTORY}.min')),
        'getattr of the buffer': attribute(f'{HISTORY}.__init__'),
        'tensor hooks': tensor(hooks=HOOKS + b'(' + value(0) + system + b'u'),
        'tensor hooks dict': tensor(hooks=b'}'),
        'tensor BUILD': tensor() + value({'numpy': 1}) + b'b',
        'dict BUILD': b'}' + value({'a': 1}) + b'b',
        'ordered BUILD': HOOKS + b'}(' + text('items') + system + b'ub',
        'ordered BUILD plain': HOOKS + value({'keys': 1}) + b'b',
        'setstate': call('torch.nn.modules.module.Module') + value({'x': 1}) + b'b',
        'buffer with other statistics': buffer(
            **log, statistics_methods=b'}' + text('mean') + attribute(f'{HISTORY}.min') + b's'
        ),
        'buffer with more': buffer(**log, mean=value(1)),
        'buffer of texts': buffer(max_length=value(5), _log_history=text('a')),
        'buffer of two lengths': buffer(**log | dict(_count_history=array((2,), data=b'\0' * 16))),
        'array of objects': array(dtype='O8'),
        'array of strings': array(dtype='U8'),
        'array of records': array(dtype='V8'),
        'array larger than its bytes': array((1 << 40,)),
        'array with a negative side': array((-1,)),
        'array in 40 dimensions': array((1,) * 40),
        'dtype of numpy itself': array(copy=False, code='>'),
        'persistent module': group(text('module'), system, text('f'), text('s')) + b'Q',
        'persistent text': text('storage') + b'Q',
        'persistent number': value(5) + b'Q',
        'persistent by PERSID': b'Pstorage\n',
        'persistent nothing': b')Q',
        'storage of another type': tensor(stored=storage(kind='torch.nn.Module')),
        'storage of a type that acts': tensor(stored=storage(kind='os.system')),
        'storage larger than its record': tensor((99,), stored=storage(count=99)),
        'storage much larger': tensor((1 << 40,), stored=storage(count=1 << 40)),
        'storage smaller than its record': tensor((1,), stored=storage(count=1)),
        'storage below zero': tensor((0,), stored=storage(count=-4)),
        'storage that is not there': tensor(stored=storage(key='7')),
        'storage by a path': tensor(stored=storage(key='../../../../etc/passwd')),
        'storage elsewhere': tensor(stored=storage(location='file:///etc')),
        'tensor larger than its storage': tensor((1 << 34,)),
        'tensor behind its storage': tensor(offset=1 << 40),
        'tensor before its storage': tensor(offset=-8),
        'tensor with a negative side': tensor((-4,)),
        'tensor with a negative stride': tensor(stride=(-1,)),
        'tensor with a huge stride': tensor((2,), (1 << 62,)),
        'tensor repeated without memory': tensor((1 << 40,), (0,)),
        'tensor of many sides': tensor((1,) * 1000, (1,) * 1000),
        'tensor of two ranks': tensor((1, 1), (1,)),
        'tensor of no storage': tensor(stored=value('x')),
        'tensors of one storage': b'](' + tensor((4,)) * 300000 + b'e',
        'laughs': _doubled(40),
        'laughs as a key': b'}' + _doubled(40) + b'Ns',
        'laughs of lists': b']q\0' + b'](h\x00h\x00eq\x00' * 40,
        'deep': b')' + b'\x85' * 200000,
        'deep lists': b']' * 200000 + b'a' * 199999,
        'itself': b']q\x00h\x00a',
        'itself inside': b']q\x00]q\x01h\x00ah\x01a',
        'colliding keys': b'}(' + b''.join(_long((1 << 61) * i) + b'N' for i in range(9000)) + b'u',
        'tuple as a key': b'}' + value((1, 2)) + b'Ns',
        'odd items': b'}(' + value(1) + b'u',
        'dicts without end': b'(' + b'}' * 2000000 + b't',
        'marks without end': b'(' * 2000000 + b'N',
        'memo without end': b'N' + b''.join(
            b'r' + struct.pack('<I', i) for i in range(700000)
        ),
        'much doing nothing': b'N' + b'q\0' * 6000000,
        'text larger than the file': b'X' + struct.pack('<I', 0xFFFFFFF0) + b'a',
        'text of 20 MB': text('a' * (20 << 20)),
        'texts of wide characters': b'](' + text('a' * (4 << 20) + '\U0001F600') * 4 + b'e',
        'bytes again and again': b'](' + text('a' * 100000) + b'q\0' + (
            name('_codecs.encode') + b'(h\0' + text('latin1') + b'tR'
        ) * 2000 + b'e',
        'arrays of the same bytes': b'](' + value(b'a' * 100000) + b'q\1' + (
            array((12500,), data=b'').replace(value(b''), b'h\1')
        ) * 1000 + b'e',
        'doubling encoder': b'](' + text('a' * 64) + b'q\1' + (
            name('_codecs.encode') + b'(h\1' + text('hex_codec') + b'tRq\1'
        ) * 30 + b'e',
        'counters of one dict': b'](}(' + b''.join(
            value(i) + b'K\1' for i in range(1000)
        ) + b'uq\1' + (name('collections.Counter') + b'(h\1tR') * 3000 + b'e',
        'reduce of data': value('a') + b')R',
        'build of nothing': b'NNb',
        'get of nothing': b'h\x09',
        'stack empty': b'0000',
        'pop of a mark': b't',
        'put of nothing': b'q\1',
        'two results': b'NN',
        'protocol 4': b'\x80\x04N',
        'frame': b'\x95' + b'\xff' * 8 + b'N',
        'unknown instruction': b'\xee',
        'nothing': b'',
    }  # fmt: skip


def _doubled(levels: int) -> bytes:
    return b')q\0' + b'h\0h\0\x86q\0' * levels


def _long(number: int) -> bytes:
    data = pickle.encode_long(number)
    return b'\x8a' + bytes([len(data)]) + data
