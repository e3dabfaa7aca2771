"""Tells whether bytes are a pickle that would load, or would call something before it failed. Nothing is executed.

A pickle is a program for a small stack machine. The walk here follows that machine's opcodes and the depth of its
stack, protocols 0 to 5, without building a value: what breaks the machine's rules is no pickle, whatever its name or
first bytes; what reaches a call through a global can run code, whatever comes after it. Archives are for `safety`.
"""

import pickletools
import re
from typing import NamedTuple

_PROTO, _STOP = 0x80, 0x2E
_GLOBAL_LINE = re.compile(rb"c[A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n")
_STACK_GLOBAL = re.compile(rb"(\x8c[\x01-\xc8][A-Za-z_][\w.]{0,200}(\x94|q.)?){2}\x93", re.DOTALL)
_NAME = re.compile(rb"[A-Za-z_][\w.]*")
_WORD = re.compile(rb"[^\x00-\x20]+")
# As C's strtol and strtod take them: space before, a sign, any base's prefix, and nothing looked at behind a NUL.
_DECIMAL = re.compile(rb"[\t-\r ]*[-+]?[0-9][0-9A-Za-z_]*[\t-\r ]*(\x00.*)?", re.DOTALL)
_FLOAT = re.compile(
    rb"[\t-\r ]*[-+]?([0-9._][0-9A-Za-z._+-]*|inf(inity)?|nan)[\t-\r ]*(\x00.*)?", re.DOTALL | re.IGNORECASE
)
_LONGEST_LINE = 4096
"""Bytes of a text argument in a pickle that is hidden inside of something else: bounds the search of each start."""
_MOST_STEPS = 500_000
"""Opcodes that are followed, about two seconds. What goes on for longer is taken for a pickle that will call something."""

_GLOBALS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
_CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "SHORT_BINSTRING", "BINSTRING"}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}
_LINES = {
    "decimalnl_short": _DECIMAL,
    "decimalnl_long": _DECIMAL,
    "floatnl": _FLOAT,
    "stringnl": re.compile(rb"'.*'|\".*\"", re.DOTALL),
}


class _Op(NamedTuple):
    """One opcode. fixed: bytes of its argument, if that has a fixed length; width, signed: of the length that stands
    before an argument of any length (0: none); lines: ended by newlines; pops: from the top mark on, if to_mark.
    """

    name: str
    fixed: int
    width: int
    signed: bool
    lines: int
    line: "re.Pattern[bytes] | None"
    to_mark: bool
    pops: int
    pushes: int


def _op(code: pickletools.OpcodeInfo) -> _Op:
    argument = code.arg
    length = argument.n if argument else 0
    width, signed = _LENGTHS.get(length, (0, False))
    lines = (2 if argument and argument.name == "stringnl_noescape_pair" else 1) * (length == pickletools.UP_TO_NEWLINE)
    before = list(code.stack_before)
    to_mark = pickletools.markobject in before
    pops = before.index(pickletools.markobject) if to_mark else len(before)
    return _Op(
        name=code.name,
        fixed=max(length, 0),
        width=width,
        signed=signed,
        lines=lines,
        line=_LINES.get(argument.name) if argument else None,
        to_mark=to_mark,
        pops=pops,
        pushes=len(code.stack_after),
    )


_OPS = {ord(code.code): _op(code) for code in pickletools.opcodes}
_FIRST = bytes(code for code, op in _OPS.items() if not op.pops and not op.to_mark)
_HEADER = re.compile(rb"\x80[\x00-\x05](?=[" + re.escape(_FIRST) + rb"])")


class _Walk:
    """One run of the machine over `data` from `at` on. hidden: in the midst of other bytes, where chance produces
    opcodes, so that more is asked of them.
    """

    def __init__(self, data: bytes, at: int, *, hidden: bool) -> None:
        self.data, self.at, self.hidden = data, at, hidden
        self.depth = 0
        self.marks: list[int] = []
        self.names = 0
        self.globals = 0
        self.stopped = False
        self.steps = 0
        # Behind a protocol's header a name may be anything; without one, text must not be taken for a name.
        self.name = _NAME if hidden else None if data[at : at + 1] == b"\x80" else _WORD

    def run(self, most: int) -> bool:
        """Whether it loads, calls something first, or takes more than `most` steps."""
        while self.steps < most:
            self.steps += 1
            op = _OPS.get(self.data[self.at]) if self.at < len(self.data) else None
            if op is None or not self._step(op):
                return False
            if op.name in _CALLS and self.globals:
                return True
            if self.stopped:
                return True
        return True

    def _step(self, op: _Op) -> bool:
        """Reads the argument and moves the stack. False: the machine would have failed here."""
        self.at += 1
        return self._argument(op) and self._move(op)

    def _argument(self, op: _Op) -> bool:
        if op.lines:
            return all(self._line(op) for _ in range(op.lines))
        size = op.fixed
        if op.width:
            given = self.data[self.at : self.at + op.width]
            size = int.from_bytes(given, "little", signed=op.signed)
            self.at += op.width
            if len(given) < op.width or size < 0:
                return False
        if self.at + size > len(self.data):
            return False
        if op.name == "PROTO" and self.data[self.at] > 5:  # noqa: PLR2004 - the newest protocol
            return False
        if op.name in _TEXT and 0 < size <= _LONGEST_LINE:
            self.names += _NAME.fullmatch(self.data, self.at, self.at + size) is not None
        self.at += size
        return True

    def _line(self, op: _Op) -> bool:
        end = self.data.find(b"\n", self.at, self.at + _LONGEST_LINE if self.hidden else len(self.data))
        if end < 0 and not self.hidden:
            end = len(self.data) - 1  # the machine in Python drops the last byte of a line, whatever it is
        if end < self.at:
            return False
        pattern = self.name if op.lines > 1 else op.line  # two lines: a module and a name
        fits = pattern is None or pattern.fullmatch(self.data, self.at, end) is not None
        self.names += op.name in _TEXT
        self.at = end + 1
        return fits

    def _move(self, op: _Op) -> bool:
        if op.name == "MARK":
            self.marks.append(self.depth)
            return True
        if op.name == "POP":  # takes a mark as well
            if self.marks and self.marks[-1] == self.depth:
                self.marks.pop()
                return True
        elif op.name == "STACK_GLOBAL" and self.hidden and self.names < 2:  # noqa: PLR2004 - module and name
            return False
        if op.to_mark:
            if not self.marks:
                return False
            self.depth = self.marks.pop()
        floor = self.marks[-1] if self.marks else 0
        if self.depth - op.pops < floor:
            return False
        self.depth += op.pushes - op.pops
        self.globals += op.name in _GLOBALS
        self.stopped = self.data[self.at - 1] == _STOP and op.name == "STOP"
        return True


def is_pickle(data: bytes) -> bool:
    """Whether the bytes, read from their beginning, load as a pickle or call something before they fail.

    Text that begins like one is none: of bytes without a protocol's header, such as those of protocols 0 and 1, only
    what ends where the bytes end counts, or what takes a global.
    """
    walk = _Walk(data, 0, hidden=False)
    if not walk.run(_MOST_STEPS):
        return False
    return data[:1] == b"\x80" or walk.globals > 0 or walk.at >= len(data)


def hidden(data: bytes) -> int:
    """Where in the bytes a pickle begins that would call something, -1 if there is none: such as in a model's tensor."""
    left = _MOST_STEPS
    for pattern in (_HEADER, _GLOBAL_LINE, _STACK_GLOBAL):
        for match in pattern.finditer(data):
            walk = _Walk(data, match.start(), hidden=True)
            if walk.run(left) and (walk.globals or walk.steps >= left):
                return match.start()
            left -= walk.steps
    return -1
