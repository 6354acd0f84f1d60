"""Linking an object file of one kernel: its code and constants in one stretch, with its own addresses filled in.

The format: Tool Interface Standard, Executable and Linking Format 1.2; the relocations: System V ABI for AMD64,
table 4.9, and ELF for the Arm 64-bit Architecture, section 5.7. A kernel needs nothing from outside, but for
what an old processor lacks: whatever is asked for is refused by its name.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

X86_64, AARCH64 = 62, 183
SYMBOLS, RELOCATIONS, PROGRAM, ZEROS = 2, 4, 1, 8
ALLOCATED = 2
LARGEST = 1 << 26
"""Bytes of code and constants that are still a kernel."""


class LinkError(ValueError):
    """An object file that is none, or that asks for more than a kernel may."""


class OutsideError(LinkError):
    """It asks for a function from outside."""

    def __init__(self, function: str) -> None:
        super().__init__(f"something from outside: {function}")
        self.function = function


class Section(NamedTuple):
    """A row of the table of sections."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


class Symbol(NamedTuple):
    """A row of the table of symbols."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


def link(object_file: bytes, name: str, place: Callable[[int], int]) -> tuple[bytes, int]:
    """The bytes for the address that `place(length)` returns, a page's, and where the function of that name is then.

    Raises LinkError.
    """
    try:
        return _link(object_file, name, place)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise (
            error if isinstance(error, LinkError) else LinkError(f"a damaged object file: {error}")
        ) from error


def _link(data: bytes, name: str, place: Callable[[int], int]) -> tuple[bytes, int]:
    if data[:7] != b"\x7fELF\x02\x01\x01" or struct.unpack_from("<H", data, 16)[0] != 1:
        raise LinkError("not a relocatable ELF file of 64 bits")
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<2H", data, 58)
    sections = [Section._make(struct.unpack_from("<2I4Q2I2Q", data, table + size * i)) for i in range(count)]
    places, length = _layout(sections)
    image = bytearray(length)
    for i, begin in places.items():
        section = sections[i]
        if section.kind == PROGRAM:
            image[begin : begin + section.size] = _content(data, section)
    if len(image) != length:
        raise LinkError("a section ends outside of the file")
    tables = [section for section in sections if section.kind == SYMBOLS]
    if len(tables) != 1:
        raise LinkError("not one table of symbols")
    symbols = [Symbol._make(row) for row in struct.iter_unpack("<I2BH2Q", _content(data, tables[0]))]
    names = _content(data, sections[tables[0].link])
    base = place(length)
    for section in sections:
        if section.kind == RELOCATIONS and section.info in places:
            begin = places[section.info]
            for offset, what, addend in struct.iter_unpack("<2Qq", _content(data, section)):
                symbol = symbols[what >> 32]
                if symbol.section not in places:
                    raise OutsideError(_name(names, symbol))
                if offset + 4 > sections[section.info].size:
                    raise LinkError("a relocation outside of its section")
                to = places[symbol.section] + symbol.value + addend
                _relocate(machine, what & 0xFFFFFFFF, image, base, begin + offset, to)
    for symbol in symbols:
        if _name(names, symbol) == name and symbol.section in places:
            if symbol.value >= sections[symbol.section].size:
                raise LinkError("a function outside of its section")
            return bytes(image), base + places[symbol.section] + symbol.value
    raise LinkError(f"no function {name}")


def _content(data: bytes, section: Section) -> bytes:
    return data[section.offset : section.offset + section.size]


def _name(names: bytes, symbol: Symbol) -> str:
    return names[symbol.name : names.index(b"\0", symbol.name)].decode(errors="replace")


def _layout(sections: list[Section]) -> tuple[dict[int, int], int]:
    """Where each section that is needed at run time begins, and the length of all, in whole pages."""
    places: dict[int, int] = {}
    length = 0
    for i, section in enumerate(sections):
        if section.flags & ALLOCATED and section.kind in (PROGRAM, ZEROS):
            align = max(1, section.align)
            places[i] = -(-length // align) * align
            length = places[i] + section.size
            if align > mmap.PAGESIZE or length > LARGEST:
                raise LinkError("a section is too large for a kernel")
    return places, max(1, -(-length // mmap.PAGESIZE)) * mmap.PAGESIZE


PAGE_OFFSETS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""ADD and LDST8 to LDST128 relocations of AArch64: by how many bits the distance in the page is shifted."""


def _relocate(machine: int, kind: int, image: bytearray, base: int, at: int, to: int) -> None:
    """Fill in a distance or an address; `at` and `to` count from `base`, where the image will be."""
    distance = to - at
    if (machine, kind) in {(X86_64, 1), (AARCH64, 257)}:  # 64, ABS64
        struct.pack_into("<Q", image, at, base + to)
        return
    if (machine, kind) in {(X86_64, 2), (X86_64, 4), (AARCH64, 261)}:  # PC32, PLT32, PREL32
        struct.pack_into("<i", image, at, distance)
        return
    if machine != AARCH64:
        raise LinkError(f"relocation {kind} of machine {machine} is not known")
    (word,) = struct.unpack_from("<I", image, at)
    if kind in (282, 283):  # JUMP26, CALL26
        word |= distance >> 2 & 0x3FFFFFF
    elif kind == 275:  # ADR_PREL_PG_HI21
        pages = (to >> 12) - (at >> 12)
        word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    elif kind in PAGE_OFFSETS:
        word |= ((to & 0xFFF) >> PAGE_OFFSETS[kind]) << 10
    else:
        raise LinkError(f"relocation {kind} of AArch64 is not known")
    struct.pack_into("<I", image, at, word)
