"""A walk over the instructions of a pickle before it is run.

Restricting the names that a pickle may use is not enough: one instruction of five bytes makes the unpickler allocate
a memo of gigabytes, others reach objects through the process-wide extension registry or ask for external objects. Such
instructions occur in no checkpoint, so they are refused by their code. The walk costs a fraction of the load.
"""

from __future__ import annotations

import pickletools
import re

# Calls by position of a mark (protocol 0 and 1), objects from outside, the copyreg registry, buffers from outside.
_REFUSED = frozenset(
    "INST OBJ PERSID BINPERSID EXT1 EXT2 EXT4 BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER".split()  # noqa: SIM905
)
_SINGLE = frozenset({"PUT", "LONG_BINPUT", "STOP"})
# pickletools: the argument ends with a newline, or follows its length in so many bytes
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_AT_ONCE = 4096
_LINE = re.compile(rb"[^\n]*\n")


class RefusedInstructionError(ValueError):
    """The pickle uses an instruction that no checkpoint needs, or a memo that does not fit its length."""


def _codes() -> tuple[re.Pattern[bytes], dict[int, int], dict[int, int], dict[int, str]]:
    """Sort the instructions: of fixed length, with counted argument, with lines as argument, refused."""
    fixed: dict[int, list[bytes]] = {}
    counted, lines, refused = {}, {}, {}
    for opcode in pickletools.opcodes:
        code = ord(opcode.code)
        length = 0 if opcode.arg is None else opcode.arg.n
        if opcode.name in _REFUSED:
            refused[code] = opcode.name
        elif opcode.name in _SINGLE:
            continue
        elif length >= 0:
            fixed.setdefault(length, []).append(re.escape(bytes([code])))
        elif length == pickletools.UP_TO_NEWLINE:
            lines[code] = 2 if opcode.name == "GLOBAL" else 1
        else:
            counted[code] = _LENGTH_BYTES[length]
    runs = [b"[%s]%s" % (b"".join(codes), b"+" if n == 0 else b".{%d}" % n) for n, codes in fixed.items()]
    # The count is bounded because the matcher remembers every repetition.
    return re.compile(b"(?:%s){1,%d}" % (b"|".join(runs), _AT_ONCE), re.DOTALL), counted, lines, refused


_FIXED, _COUNTED, _LINES, _REFUSED_CODES = _codes()
_STOP = ord(".")
_PUT = ord("p")
_LONG_BINPUT = ord("r")


def scan_pickle(data: bytes | memoryview) -> None:
    """Check that a pickle consists of harmless instructions; the names it uses are not looked at.

    Args:
        data: The pickle.

    Raises:
        RefusedInstructionError: It uses a refused instruction.
        ValueError: It is cut off or no pickle.
    """
    position, size = 0, len(data)
    while position < size:
        if match := _FIXED.match(data, position):
            position = match.end()
            continue
        code = data[position]
        position += 1
        if code in _COUNTED:
            start = position + _COUNTED[code]
            position = start + int.from_bytes(data[position:start], "little")
        elif code in _LINES:
            for _ in range(_LINES[code]):
                position = _line_end(data, position)
        elif code == _LONG_BINPUT:
            _check_memo(int.from_bytes(data[position : position + 4], "little"), size)
            position += 4
        elif code == _PUT:
            end = _line_end(data, position)
            _check_memo(int(bytes(data[position : end - 1])), size)
            position = end
        elif code == _STOP:
            return
        elif code in _REFUSED_CODES:
            raise RefusedInstructionError(f"it uses the pickle instruction {_REFUSED_CODES[code]}")
        else:
            raise ValueError(f"byte {position - 1} is no pickle instruction")
    raise ValueError("the pickle is cut off")


def _line_end(data: bytes | memoryview, position: int) -> int:
    match = _LINE.match(data, position)
    if match is None:
        raise ValueError("the pickle is cut off")
    return match.end()


def _check_memo(index: int, size: int) -> None:
    # Writers count up from 0, so no honest index reaches the length of the pickle.
    if not 0 <= index < size:
        raise RefusedInstructionError(f"it asks for a memo of {index} entries within {size} bytes")
