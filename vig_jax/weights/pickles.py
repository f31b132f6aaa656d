"""Reads the data in a pickle without running any code that the pickle names.

Python's unpickler imports and calls anything that a file names. Here `pickletools` only decodes the
opcodes, and a stack machine builds plain values and containers from them. A global becomes its
name and is never imported. Of an object only the name of its class is kept. A call works only for
the names that the caller implements; any other is an error with the name.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vig_jax.errors import WeightsError

# Checkpoints need less than 1 MB, but mmengine's store the history of all logged numbers, 16 bytes
# for each. Decoding the most operations takes half a minute.
MAX_BYTES = 128 * 2**20
MAX_OPERATIONS = 4 * 2**20
RESAVE = (
    "if you trust it, save its weights again with PyTorch: torch.save(torch.load(FILE, "
    "map_location='cpu', weights_only=False)['model'], NEW); mmsegmentation has 'state_dict' "
    "instead of 'model'"
)
_KEYS = (str, int, float, bool, bytes, type(None))


class Global(NamedTuple):
    """The name of something in a Python module.

    Besides text and numbers it is the only value from a file that messages may contain: the text of
    a few nested tuples can exceed the memory.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque(NamedTuple):
    """An object that only foreign code could build; its state is dropped."""

    kind: str  # e.g. "yacs.config.CfgNode"


Function = Callable[..., Any]


def _same(values: Any = ()) -> Any:
    return values


def _attribute(owner: Any, name: Any) -> Opaque:
    """Returns an opaque value for an attribute of a class, such as a method."""
    if not (isinstance(owner, Global) and isinstance(name, str)):
        raise refusal("builtins.getattr")
    return Opaque(f"{owner.module}.{owner.name}")


# Python 2 and 3 name builtins differently, and protocol 2 writes the names of Python 2.
_CONTAINERS: dict[str, Function] = {
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _attribute),
    "collections.OrderedDict": lambda: {},  # the items follow
    **{
        f"{module}.{name}": _same
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list", "tuple")
    },
}
# Calls whose results are never weights: the result is opaque.
_VALUES = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "__builtin__.bytearray",
        "__builtin__.complex",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "copy_reg._reconstructor",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib.PureWindowsPath",
        "torch.Size",
        "torch.device",
    }
)


def refusal(name: str) -> WeightsError:
    """Returns the error for a file that asks to call `name`."""
    return WeightsError(
        f"it asks to run {name}, which is refused: no code from a file runs here; {RESAVE}"
    )


def loads(
    data: bytes, *, functions: Mapping[str, Function], persistent: Callable[[Any], Any]
) -> Any:
    """Returns the object in a pickle of any protocol.

    Sets become lists. The state of objects is dropped, and so are dictionary entries whose keys are
    not plain values.

    Args:
        data: the pickle.
        functions: implementations, by the dotted name that the pickle uses.
        persistent: returns the object for a persistent identifier.

    Raises:
        WeightsError: the pickle is damaged, too large, or calls something else.
    """
    if len(data) > MAX_BYTES:
        raise WeightsError(
            f"its pickle has {len(data):,} bytes; up to {MAX_BYTES:,} are read: {RESAVE}"
        )
    machine = _Machine(functions, persistent)
    try:
        return machine.run(data)
    except WeightsError:
        raise
    except Exception as error:  # hostile or damaged bytes can fail in every possible way
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"its pickle is damaged ({reason[:200]})") from error


def _is_long(key: Any) -> bool:
    """Returns whether a key is an integer that takes long to hash, which Python does each time."""
    return isinstance(key, int) and key.bit_length() > 64


class _Machine:
    """The pickle machine: a stack, a memo, and marks on the stack."""

    def __init__(self, functions: Mapping[str, Function], persistent: Callable[[Any], Any]) -> None:
        self._functions = _CONTAINERS | dict(functions)
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPERATIONS:
                raise WeightsError(
                    f"its pickle has more than {MAX_OPERATIONS:,} operations: {RESAVE}"
                )
            name = opcode.name
            if name == "STOP":
                (result,) = self._stack
                return result
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            else:
                step = _STEPS.get(name)
                if step is None:
                    raise WeightsError(f"its pickle uses {name}, which checkpoints do not need")
                step(self, argument)
        raise ValueError("no end")

    def pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise ValueError("nothing left above the mark")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def pop_one(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self.pop_to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self._stack.append(self.pop_to_mark())

    def dict_to_mark(self, _: Any) -> None:
        values = self.pop_to_mark()
        self._stack.append({})
        self._set(values)

    def append(self, _: Any) -> None:
        self._extend([self.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise TypeError(f"{type(target).__name__} is not a list")

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if isinstance(key, _KEYS) and not _is_long(key):
                    target[key] = value
        elif not isinstance(target, Opaque):
            raise TypeError(f"{type(target).__name__} is not a dictionary")

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(module, name))

    def name_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name is not a string")
        self._stack.append(Global(module, name))

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    def instance(self, argument: str) -> None:
        arguments = self.pop_to_mark()
        self.name(argument)
        self._call(self.pop(), tuple(arguments))

    def object(self, _: Any) -> None:
        function, *arguments = self.pop_to_mark()
        self._call(function, tuple(arguments))

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Opaque):
            raise refusal(function.kind)
        if not (isinstance(function, Global) and isinstance(arguments, tuple)):
            raise TypeError("a call of something that is not a function")
        name = str(function)
        if name in self._functions:
            self._stack.append(self._functions[name](*arguments))
        elif name in _VALUES:
            # `_reconstructor` makes an object of the class that it is called with.
            classes = [value for value in arguments[:1] if isinstance(value, Global)]
            made = classes[0] if classes and name.endswith("._reconstructor") else function
            self._stack.append(Opaque(str(made)))
        else:
            raise refusal(name)

    def new_object(self, _: Any) -> None:
        self.pop()
        self._new(self.pop())

    def new_object_with_keywords(self, _: Any) -> None:
        self.pop()
        self.new_object(None)

    def _new(self, kind: Any) -> None:
        if not isinstance(kind, Global):
            raise TypeError("an object without a class")
        self._stack.append(Opaque(str(kind)))

    def build(self, _: Any) -> None:
        self.pop()  # the state of an object

    def persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self.pop()))


_LITERALS = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_to_mark,
    "FROZENSET": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark,
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.appends),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.reduce,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
