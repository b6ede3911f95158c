"""A walk over the instructions of a pickle before it is run.

Restricting the names that a pickle may use is not enough: one instruction of five bytes makes the unpickler allocate
a memo of gigabytes, others reach objects through the process-wide extension registry or ask for external objects. Such
instructions occur in no checkpoint, so they are refused by their code.

Tuples need more than that. The unpickler hashes the keys of dicts, and Python hashes nested tuples in C without a
limit: a million levels overflow the stack and end the process, and forty levels of a tuple that holds the same tuple
twice take hours. The walk therefore keeps the books that the unpickler will keep, with a number in place of each
object: how many elements hashing it would visit, and how deep.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass

# Deeper than any tuple that a planner makes; Python's hash needs about 100 bytes of stack for each level.
_MAX_DEPTH = 100
# An honest key costs a few visits and takes as many bytes; this many visits per byte end within seconds.
_VISITS_PER_BYTE = 8
_LEAST_VISITS = 10_000

# The number of an object: its depth times this, plus the visits.
_LEVEL = 1 << 48
_VISITS = _LEVEL - 1
_ATOM = 1

# Instructions by what they do to the stack. All others are refused: calls by position of a mark and containers made
# from one (protocol 0), objects from outside, the copyreg registry, buffers from outside, duplicates, undoing.
_PUSHES = frozenset(
    "BININT BININT1 BININT2 NONE NEWTRUE NEWFALSE BINFLOAT EMPTY_LIST EMPTY_TUPLE EMPTY_DICT EMPTY_SET".split()  # noqa: SIM905
)
_PUSHES_COUNTED = frozenset(
    "LONG1 LONG4 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BINUNICODE SHORT_BINUNICODE "  # noqa: SIM905
    "BINUNICODE8".split()
)
_PUSHES_LINES = frozenset({"INT", "LONG", "STRING", "UNICODE", "FLOAT", "GLOBAL"})
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}
_ARGUMENTS = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}
_FIXED = {_CODES[name]: 1 + _ARGUMENTS[_CODES[name]] for name in _PUSHES}
_COUNTED = {_CODES[name]: _LENGTH_BYTES[_ARGUMENTS[_CODES[name]]] for name in _PUSHES_COUNTED}
_LINES = {_CODES[name]: 2 if name == "GLOBAL" else 1 for name in _PUSHES_LINES}
_SKIPPED = {_CODES["PROTO"]: 2, _CODES["FRAME"]: 9}
# How many objects an instruction takes from the top of the stack; what is below them stays, and takes them in.
_CALLS = {_CODES["REDUCE"]: 1, _CODES["NEWOBJ"]: 1, _CODES["NEWOBJ_EX"]: 2}
_LONG4 = _CODES["LONG4"]
_LONGS = frozenset({_CODES["LONG1"], _LONG4})
_BINGET, _LONG_BINGET, _GET = _CODES["BINGET"], _CODES["LONG_BINGET"], _CODES["GET"]
_MEMOIZE, _BINPUT, _LONG_BINPUT, _PUT = _CODES["MEMOIZE"], _CODES["BINPUT"], _CODES["LONG_BINPUT"], _CODES["PUT"]
_MARK, _STOP, _STACK_GLOBAL = _CODES["MARK"], _CODES["STOP"], _CODES["STACK_GLOBAL"]
_TUPLE, _TUPLES = _CODES["TUPLE"], {_CODES["TUPLE1"]: 1, _CODES["TUPLE2"]: 2, _CODES["TUPLE3"]: 3}
_APPENDS, _TAKES_TOP = _CODES["APPENDS"], frozenset({_CODES["APPEND"], _CODES["BUILD"]})
_SETITEM, _SETITEMS = _CODES["SETITEM"], _CODES["SETITEMS"]
_FROZENSET = _CODES["FROZENSET"]
_SETS = frozenset({_CODES["ADDITEMS"], _FROZENSET})
_EMPTY_TUPLE, _BINPERSID = _CODES["EMPTY_TUPLE"], _CODES["BINPERSID"]
_RECORD = b")\x81\x94}\x94("  # EMPTY_TUPLE NEWOBJ MEMOIZE EMPTY_DICT MEMOIZE MARK, after a class
_SIZE = b"\x94\x85\x94R\x94"  # MEMOIZE TUPLE1 MEMOIZE REDUCE MEMOIZE, after torch.Size and a tuple
_FOUR = struct.Struct("<I").unpack_from


class RefusedInstructionError(ValueError):
    """The pickle uses an instruction that no checkpoint needs, or would take memory or time beyond its length."""


def scan_pickle(data: bytes | memoryview, *, may_have_storages: bool = False) -> int:
    """Check that a pickle consists of harmless instructions; the names it uses are not looked at.

    Args:
        data: The pickle, and whatever follows it.
        may_have_storages: Whether it may ask for objects beside it, as those in archives of ``torch.save`` do.

    Returns:
        Its length.

    Raises:
        RefusedInstructionError: It uses a refused instruction, or tuples that cannot be hashed safely.
        ValueError: It is cut off or no pickle.
    """
    try:
        return _Walk(bytes(data), may_have_storages=may_have_storages).run()
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError("the pickle is cut off, or takes more from its stack than it has") from error


@dataclass(slots=True)
class _Budget:
    """Bounds the time that hashing takes by the length of the pickle."""

    visits: int

    def spend(self, keys: list[int]) -> None:
        self.visits -= sum(key & _VISITS for key in keys)
        if self.visits < 0:
            raise RefusedInstructionError("its keys would take too long to hash")


class _Walk:
    """One walk; a method only where an instruction is rare, because a large pickle has tens of millions."""

    def __init__(self, data: bytes, *, may_have_storages: bool) -> None:
        self._data = data
        self._may_have_storages = may_have_storages
        self._budget = _Budget(max(_VISITS_PER_BYTE * len(data), _LEAST_VISITS))
        self._memo: dict[int, int] = {}

    def run(self) -> int:  # noqa: PLR0915 - a branch for each kind of instruction, frequent ones first
        data, memo, budget = self._data, self._memo, self._budget
        stack: list[int] = []
        marks: list[int] = []
        push = stack.append
        at = 0
        while True:
            code = data[at]
            if code == _LONG_BINGET:
                push(memo[_FOUR(data, at + 1)[0]])
                at += 5
            elif code == _BINGET:
                push(memo[data[at + 1]])
                at += 2
            elif code == _EMPTY_TUPLE and data[at : at + len(_RECORD)] == _RECORD:
                # The beginning of every record, which is an eighth of a checkpoint's instructions.
                memo[len(memo)] = stack[-1]
                memo[len(memo)] = _ATOM
                push(_ATOM)
                marks.append(len(stack))
                at += len(_RECORD)
            elif code in _FIXED:
                push(_ATOM)
                at += _FIXED[code]
            elif code == _MEMOIZE:
                memo[len(memo)] = stack[-1]
                at += 1
            elif code in _TUPLES:
                count = _TUPLES[code]
                elements = stack[-count:]
                made = _LEVEL + count + 1 if elements.count(_ATOM) == count else self._tuple(elements)
                del stack[-count:]
                at += 1
                if data[at : at + len(_SIZE)] == _SIZE:
                    # The end of every size and offset, a sixth of all instructions.
                    memo[len(memo)] = made
                    memo[len(memo)] = stack[-1] = made + _LEVEL + 1
                    memo[len(memo)] = stack[-1]
                    at += len(_SIZE)
                else:
                    push(made)
            elif code == _SETITEMS:
                mark = marks.pop()
                keys = stack[mark::2]
                if keys.count(_ATOM) != len(keys):
                    budget.spend(keys)
                del stack[mark:]
                at += 1
            elif code in _TAKES_TOP:
                stack.pop()
                at += 1
            elif code == _MARK:
                marks.append(len(stack))
                at += 1
            elif code in _CALLS:
                for _ in range(_CALLS[code]):
                    taken = stack.pop()
                    stack[-1] = max(stack[-1], taken)
                at += 1
            elif code in _COUNTED:
                start = at + 1 + _COUNTED[code]
                length = int.from_bytes(data[at + 1 : start], "little")
                # Python hashes a long integer anew each time, eight bytes or so at once.
                push(_ATOM + length // 8 if code in _LONGS else _ATOM)
                at = start + length
            elif code == _TUPLE:
                mark = marks.pop()
                stack[mark:] = [self._tuple(stack[mark:])]
                at += 1
            elif code == _STOP:
                return at + 1
            else:
                at = self._rare(code, at, stack, marks)

    def _rare(self, code: int, at: int, stack: list[int], marks: list[int]) -> int:
        """Take an instruction that occurs seldom, and give the place of the next one."""
        if code == _SETITEM:
            stack.pop()
            self._budget.spend([stack.pop()])
        elif code == _APPENDS:
            del stack[marks.pop() :]
        elif code == _STACK_GLOBAL:
            stack[-2:] = [_ATOM]
        elif code in _SETS:
            mark = marks.pop()
            self._budget.spend(stack[mark:])
            stack[mark:] = [_ATOM] if code == _FROZENSET else []
        elif code == _BINPERSID and self._may_have_storages:
            stack[-1] = _ATOM
        elif code in _SKIPPED:
            return at + _SKIPPED[code]
        elif code in _LINES:
            end = at + 1
            for _ in range(_LINES[code]):
                end = self._line_end(end)
            stack.append(_ATOM)
            return end
        elif code == _GET:
            end = self._line_end(at + 1)
            stack.append(self._memo[int(self._data[at + 1 : end - 1])])
            return end
        else:
            return self._put(code, at, stack)
        return at + 1

    def _put(self, code: int, at: int, stack: list[int]) -> int:
        if code == _BINPUT:
            end, index = at + 2, self._data[at + 1]
        elif code == _LONG_BINPUT:
            end, index = at + 5, int.from_bytes(self._data[at + 1 : at + 5], "little")
        elif code == _PUT:
            end = self._line_end(at + 1)
            index = int(self._data[at + 1 : end - 1])
        elif code in _NAMES:
            raise RefusedInstructionError(f"it uses the pickle instruction {_NAMES[code]}")
        else:
            raise ValueError(f"byte {at} is no pickle instruction")
        # Writers count up from 0. A gap would cost memory; worse, MEMOIZE of the unpickler writes to the place that has
        # the number of the filled ones, so that behind a gap two readers may disagree on what is where.
        if not 0 <= index <= len(self._memo):
            raise RefusedInstructionError(f"it writes entry {index} of a memo of {len(self._memo)} entries")
        self._memo[index] = stack[-1]
        return end

    def _tuple(self, elements: list[int]) -> int:
        visits = sum(element & _VISITS for element in elements) + 1
        depth = max(elements, default=0) // _LEVEL + 1
        if depth > _MAX_DEPTH or visits > max(len(self._data), _LEAST_VISITS):
            raise RefusedInstructionError("it nests tuples deeper, or holds more of them, than any checkpoint does")
        return depth * _LEVEL + visits

    def _line_end(self, at: int) -> int:
        return self._data.index(b"\n", at) + 1
