"""Packs made by hand, sound and hostile, that the readers of every language are tested on.

Version 1 is written nowhere else any more.
"""

import json
import zlib

import numpy as np

from onnxshrink.sidecar.head import FIRST, HEAD, MAGIC, STUB, preamble, stub
from onnxshrink.sidecar.header import align

BIG = (1 << 53) - 1
GRAPH = b"a graph, a graph, a graph, a graph", b", and its end"


def is_second(pack):
    """Whether a pack is of version 2, or what is left of one."""
    return not pack.startswith(MAGIC[1])


def header_at(pack):
    """Where the header's text begins and ends in a sound pack, and how long it is."""
    if is_second(pack):
        _, _, stored, length, _, _ = HEAD.unpack(pack[STUB : STUB + HEAD.size])
        return STUB + HEAD.size, STUB + HEAD.size + stored, length
    length = FIRST.unpack(pack[: FIRST.size])[3]
    return FIRST.size, FIRST.size + length, length


def text_bytes(pack):
    """Bytes of a pack, its header inflated; as its head says, as far as a reader goes along."""
    said = header_at(pack)[2] if len(pack) >= STUB + HEAD.size else 0
    return max(len(pack), min(said, 64 * len(pack)))


def take_apart(pack):
    """The header's document, and the bytes of the chunks."""
    start, end, _ = header_at(pack)
    if is_second(pack):
        return json.loads(zlib.decompress(pack[start:end], -15)), pack[end:]
    return json.loads(pack[start:end]), pack[align(end, 64) :]


def put_together(document, area, version=None):
    """A pack of this document, or of these very bytes of JSON, with a right checksum."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    if version is None:
        version = 1 if "model" in document else 2
    if version == 2:
        return preamble(text, len(area)) + area
    head = FIRST.pack(MAGIC[1], 1, 0, len(text), zlib.crc32(text), 0)
    return (head + text).ljust(align(len(head) + len(text), 64), b"\0") + area


def second(pack, graph=GRAPH):
    """A sound pack of version 1 as one of version 2, with a graph of these chunks."""
    document, area = take_apart(pack)
    rows, packed = [], b""
    for method, offset, length, raw, crc in document["chunks"]:
        rows.append([method, length, raw, crc])
        packed += area[offset : offset + length]
    numbers = []
    for part in graph:
        numbers.append(len(rows))
        payload = raw_deflate(part)
        method, payload = (1, payload) if len(payload) < len(part) else (0, part)
        rows.append([method, len(payload), len(part), zlib.crc32(part)])
        packed += payload
    del document["model"]
    for tensor in document["tensors"]:
        tensor["parts"] = []
    return put_together(document | {"chunks": rows, "graph": numbers}, packed)


def dealt(pack, rows=b"\1\0\1\1", parts=(b"abc", b"defghijkl"), **fields):
    """A pack of version 2 with one more tensor, of 4 x 3 bytes whose rows are dealt to parts."""
    document, area = take_apart(pack)

    def coding(data):
        document["chunks"].append([0, len(data), len(data), zlib.crc32(data)])
        return {
            "unit": 8, "bits": 8, "gaps": "none", "rotate": False, "table": None, "block": 64,
            "chunks": [len(document["chunks"]) - 1],
        }  # fmt: skip

    document["tensors"].append(
        {"name": "dealt", "dtype": "INT8", "shape": [4, 3], "offset": 960, **coding(rows)}
        | {"parts": [{"length": len(part), **coding(part)} for part in parts]} | fields
    )  # fmt: skip
    document["data"]["length"] = 972
    return put_together(document, area + rows + b"".join(parts))


def raw_deflate(data, strategy=zlib.Z_DEFAULT_STRATEGY):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(data) + coder.flush()


def by_hand(streams, *, table=None, **fields):
    """A pack of one tensor with these stored or ready-made chunks.

    Args:
        streams: Raw bytes, or a full row with its payload: (method, payload, raw length, crc).
        table: Bytes of the table.
        fields: What differs from an INT8 tensor of 8 elements without a filter.
    """
    rows, area, ids = [], b"", []
    for stream in streams if table is None else [*streams, table]:
        stored = isinstance(stream, bytes)
        method, payload, raw, crc = (
            (0, stream, len(stream), zlib.crc32(stream)) if stored else stream
        )
        area = area.ljust(align(len(area), 8 if method else 64), b"\0")
        ids.append(len(rows))
        rows.append([method, len(area), len(payload), raw, crc])
        area += payload
    tensor = {
        "name": "w", "dtype": "INT8", "shape": [8], "offset": 0, "unit": 8, "bits": 8,
        "gaps": "none", "rotate": False, "table": None, "block": 64, "chunks": ids,
    } | fields  # fmt: skip
    if table is not None:
        tensor["table"] = ids.pop()
    bits = {"INT8": 8, "INT4": 4, "FLOAT16": 16, "FLOAT": 32}.get(tensor["dtype"], 8)
    length = (int(np.prod(tensor["shape"], dtype=object)) * bits + 7) // 8
    document = {
        "model": None, "base": None, "data": {"name": "w.data", "length": length},
        "chunks": rows, "tensors": [tensor],
    }  # fmt: skip
    return put_together(document, area)


def sound(version=1):
    """A small pack of three tensors, stored, deflated and with a table, in twelve chunks."""
    return _sound() if version == 1 else dealt(second(_sound()))


def _sound():
    rng = np.random.default_rng(11)
    floats = rng.normal(size=200).astype("<f4").tobytes()
    planes = [floats[i::4] for i in range(4)]
    top = raw_deflate(planes[3])
    rows, area = [], b""
    for stream in (*planes[:3], (1, top, planes[3])):
        method, payload, raw = (0, stream, stream) if isinstance(stream, bytes) else stream
        area = area.ljust(align(len(area), 8 if method else 64), b"\0")
        rows.append([method, len(area), len(payload), len(raw), zlib.crc32(raw)])
        area += payload
    for stream in (b"\x02\x05\x00", b"\x07\x08\x09", b"\x10\x21", b"\x00\x80", b"\x81", b"\x05"):
        area = area.ljust(align(len(area), 64), b"\0")
        rows.append([0, len(area), len(stream), len(stream), zlib.crc32(stream)])
        area += stream
    common = {"rotate": False, "table": None, "block": 256}
    tensors = [
        {"name": "f", "dtype": "FLOAT", "shape": [10, 20], "offset": 0, "unit": 32, "bits": 32,
         "gaps": "none", "chunks": [0, 1, 2, 3]},
        {"name": "runs/../é", "dtype": "INT8", "shape": [12], "offset": 832, "unit": 8, "bits": 8,
         "gaps": "runs", "chunks": [4, 5]},
        {"name": "table", "dtype": "UINT8", "shape": [2, 2], "offset": 896, "unit": 8, "bits": 4,
         "gaps": "none", "chunks": [6], "table": 11},
    ]  # fmt: skip
    # The table of four elements stands last, so that an index can be made to point beyond it.
    area = area.ljust(align(len(area), 64), b"\0")
    rows.append([0, len(area), 4, 4, zlib.crc32(b"abcd")])
    area += b"abcd"
    tensors[2]["table"] = len(rows) - 1
    document = {
        "model": "ab" * 32, "base": None, "data": {"name": "model.onnx.data", "length": 900},
        "chunks": rows, "tensors": [common | tensor for tensor in tensors],
    }  # fmt: skip
    return put_together(document, area)


def _edits_of_first():
    """(name, path into the document, new value) that make a sound pack of version 1 unsound."""
    chunk = ("chunks", 0)
    yield "offset past the end", (*chunk, 1), 1 << 20
    yield "offset at the largest integer", (*chunk, 1), BIG
    yield "offset beyond it", (*chunk, 1), BIG + 1
    yield "offset that overflows 64 bits", (*chunk, 1), 1 << 64
    yield "offset and length that wrap around", ("chunks", 0), [0, BIG - 99, 200, 200, 0]
    yield "negative offset", (*chunk, 1), -64
    yield "unaligned offset", ("chunks", 1, 1), 255
    yield "overlap", ("chunks", 1, 1), 0
    yield "stored with two lengths", (*chunk, 3), 199
    yield "chunk longer than a chunk may be", ("chunks", 3, 3), (1 << 18) + 1
    yield "ratio that deflate cannot reach", ("chunks", 3), [1, 704, 1, 1033, 0]
    yield "coded longer than raw", ("chunks", 3, 3), 10
    yield "wrong crc", (*chunk, 4), 1
    yield "crc of 33 bits", (*chunk, 4), 1 << 32
    for method in (2, 3, 4, 7, BIG):
        yield f"method {method}", (*chunk, 0), method
    yield "chunk without fields", chunk, []
    yield "chunk with four fields", chunk, [0, 0, 200, 200]
    yield "chunk with six fields", chunk, [0, 0, 200, 200, 0, "ab" * 32]
    yield "chunk that is no list", chunk, {}
    yield "chunk of a base that is not named", chunk, [2, 0, 0, 200, 0, "ab" * 32]
    yield "model that is no digest", ("model",), "AB" * 32
    yield "model of 63 digits", ("model",), "a" * 63
    yield "a graph", ("graph",), []


def _edits_of_second():
    """The same for version 2."""
    chunk = ("chunks", 0)
    yield "2: stored with two lengths", (*chunk, 2), 199
    yield "2: one byte fewer", chunk, [0, 199, 199, 0]
    yield "2: packed at the largest integer", (*chunk, 1), BIG
    yield "2: packed beyond it", (*chunk, 1), BIG + 1
    yield "2: packed that overflows 64 bits", (*chunk, 1), 1 << 64
    yield "2: chunk longer than a chunk may be", ("chunks", 3, 2), (1 << 18) + 1
    yield "2: ratio that deflate cannot reach", ("chunks", 3), [1, 1, 1033, 0]
    yield "2: coded longer than raw", ("chunks", 3, 2), 10
    yield "2: coded in nothing", ("chunks", 3, 1), 0
    yield "2: wrong crc", (*chunk, 3), 1
    yield "2: crc of 33 bits", (*chunk, 3), 1 << 32
    for method in (2, 3, 4, 7, BIG):
        yield f"2: method {method}", (*chunk, 0), method
    yield "2: chunk without fields", chunk, []
    yield "2: chunk with three fields", chunk, [0, 200, 200]
    yield "2: chunk with an offset", chunk, [0, 0, 200, 200, 0]
    yield "2: chunk with six fields", chunk, [0, 0, 200, 200, 0, "ab" * 32]
    yield "2: chunk that is no list", chunk, {}
    yield "2: chunk of a base that is not named", chunk, [2, 0, 200, 0, "ab" * 32]
    yield "2: graph out of range", ("graph", 0), 99
    yield "2: graph at the largest integer", ("graph", 0), BIG
    yield "2: graph of negative chunks", ("graph", 0), -1
    yield "2: graph that is no list", ("graph",), None
    yield "2: graph that is text", ("graph",), "ab" * 32
    yield "2: graph of lists", ("graph",), [[0]]
    yield "2: graph over the limit", ("graph",), [0] * 100_000
    yield "2: a model", ("model",), None
    table, part = ("tensors", 3), ("tensors", 3, "parts", 0)
    yield "2: no list of parts", (*table, "parts"), None
    yield "2: parts in an object", (*table, "parts"), {}
    yield "2: no parts after all", (*table, "parts"), []
    yield "2: parts of what has no rows", ("tensors", 0, "parts"), [{}]
    yield "2: a part that is a number", part, 0
    yield "2: a part that is empty", part, {}
    yield "2: a part too short", (*part, "length"), 2
    yield "2: a part that is half a row longer", (*part, "length"), 4
    yield "2: a part of the largest length", (*part, "length"), BIG
    yield "2: a part of a negative length", (*part, "length"), -3
    yield "2: a part of too many chunks", (*part, "chunks"), [0, 0]
    yield "2: a part of a chunk that is not there", (*part, "chunks"), [99]
    yield "2: a part with a name", (*part, "name"), "part"
    yield "2: a part of parts", (*part, "parts"), []
    yield "2: a part of an unknown unit", (*part, "unit"), 12
    yield "2: a part without blocks", (*part, "block"), 0
    yield "2: a part with a table that is not there", (*part, "table"), 99
    yield "2: parts of a scalar", (*table, "shape"), []
    yield "2: parts of no rows", (*table, "shape"), [0, 3]
    yield "2: parts of other rows", (*table, "shape"), [3, 4]
    yield "2: parts of half a byte a row", (*table, "shape"), [24]


def _edits():
    """The same for what both versions have."""
    float_, runs, table = ("tensors", 0), ("tensors", 1), ("tensors", 2)
    yield "chunk number out of range", (*float_, "chunks", 0), 99
    yield "negative chunk number", (*float_, "chunks", 0), -1
    yield "largest chunk number", (*float_, "chunks", 0), BIG
    yield "one chunk too few", (*float_, "chunks"), [0, 1, 2]
    yield "one chunk too many", (*float_, "chunks"), [0, 1, 2, 3, 3]
    yield "no chunks", (*float_, "chunks"), []
    yield "planes of different lengths", (*float_, "chunks"), [0, 1, 2, 4]
    yield "table out of range", (*table, "table"), 99
    yield "negative table", (*table, "table"), -1
    yield "table too long", (*table, "table"), 0
    yield "table of one element for an index of 3", (*table, "table"), 9
    yield "narrow bits without a table", (*table, "table"), None
    yield "the same name twice", (*runs, "name"), "f"
    yield "empty name", (*runs, "name"), ""
    yield "name with a zero byte", (*runs, "name"), "a\0b"
    yield "name with a newline", (*runs, "name"), "a\nb"
    yield "name too long", (*runs, "name"), "n" * 4097
    yield "name that is half a surrogate", (*runs, "name"), "\ud800"
    yield "name that is the other half", (*runs, "name"), "\udc00x"
    yield "name that is no text", (*runs, "name"), 5
    yield "shape that overflows", (*float_, "shape"), [1 << 32, 1 << 32]
    yield "shape that overflows to the right size", (*float_, "shape"), [1 << 33, 1 << 31, 200]
    yield "shape just beyond the integers", (*float_, "shape"), [1 << 51]
    yield "shape that is zero after all", (*float_, "shape"), [BIG, BIG, 0]
    yield "negative shape", (*float_, "shape"), [-10, -20]
    yield "shape of 65 dimensions", (*float_, "shape"), [200] + [1] * 64
    yield "shape of fractions", (*float_, "shape"), [10.0, 20]
    yield "shape too large", (*float_, "shape"), [201]
    yield "shape too small", (*float_, "shape"), [199]
    yield "unknown type", (*float_, "dtype"), "FLOAT128"
    yield "strings", (*float_, "dtype"), "STRING"
    yield "type that is no text", (*float_, "dtype"), 1
    yield "other unit", (*float_, "unit"), 16
    yield "unknown unit", (*float_, "unit"), 12
    yield "unit of 2**32", (*float_, "unit"), 1 << 32
    yield "unit 0", (*float_, "unit"), 0
    yield "other bits", (*float_, "bits"), 8
    yield "unknown gaps", (*float_, "gaps"), "some"
    yield "joint with wide symbols", (*runs, "gaps"), "joint"
    yield "mask of too few bytes", (*runs, "gaps"), "mask"
    yield "rotated bytes", (*runs, "rotate"), True
    yield "rotate that is a number", (*float_, "rotate"), 1
    for block in (0, 1, 32, 65, 255, 1 << 22, BIG, (1 << 32) + 64):
        yield f"blocks of {block}", (*float_, "block"), block
    yield "block too small for the chunks", (*float_, "block"), 64
    for name in ("../w", "/w", "a/w", "a\\w", "..", ".", "", "C:w", "w\0", "w\n", "w" * 256):
        yield f"data named {name!r}", ("data", "name"), name
    yield "data too short", ("data", "length"), 899
    yield "data too long", ("data", "length"), 901
    yield "data of the largest length", ("data", "length"), BIG
    yield "tensors that overlap", (*runs, "offset"), 799
    yield "tensor that ends at the largest integer", (*runs, "offset"), BIG - 5
    yield "true for an integer", (*runs, "offset"), True
    yield "null for an integer", (*runs, "offset"), None
    yield "text for an integer", (*runs, "offset"), "832"
    yield "an unknown key", ("more",), 1
    yield "an unknown key in data", ("data", "more"), 1
    yield "an unknown key in a tensor", (*runs, "more"), 1
    yield "tensors that are no list", ("tensors",), {}
    yield "a tensor that is no object", float_, [1]
    yield "base that is no digest", ("base",), 5


def _texts(text):
    """(name, other bytes of JSON): what a parser must not let pass."""
    offset = b'"offset": 832'
    for value in (
        b"NaN", b"Infinity", b"-Infinity", b"1e400", b"832.0", b"8.32e2", b"832e0", b"-0", b"0832",
        b"+832", b"0x340", b"9" * 5000, b"18446744073710384448", b"4294968128000000000000",
    ):  # fmt: skip
        yield f"number {value[:24].decode()}", text.replace(offset, b'"offset": ' + value)
    yield "the same key twice", text.replace(offset, offset + b", " + offset)
    yield "the same key twice at the top", text.replace(b'"base"', b'"base": null, "base"')
    yield "the same key spelt two ways", text.replace(offset, offset + b', "\\u006fffset": 832')
    yield "the same key with two data", text.replace(b'"length"', b'"length": 900, "length"')
    yield "bytes that are not UTF-8", text.replace(b"runs", b"r\xffns")
    yield "overlong UTF-8", text.replace(b"runs", b"r\xc0\xafns")
    yield "a surrogate in UTF-8", text.replace(b"runs", b"r\xed\xa0\x80ns")
    yield "beyond the last character", text.replace(b"runs", b"r\xf4\x90\x80\x80ns")
    yield "a control character", text.replace(b"runs", b"r\x01ns")
    yield "an unknown escape", text.replace(b"runs", b"r\\xns")
    yield "an escape cut short", text.replace(b"runs", b"r\\u12")
    yield "a byte order mark", b"\xef\xbb\xbf" + text
    yield "something after the end", text + b"{}"
    yield "a zero byte after the end", text + b"\0"
    yield "a comma too many", text[:-1] + b",}"
    yield "a comma too few", text.replace(b", ", b" ", 1)
    yield "a comment", text.replace(b"{", b"{/**/", 1)
    yield "single quotes", text.replace(b'"', b"'")
    yield "no header", b""
    yield "only a space", b" "
    yield "a number", b"1"
    yield "a list", b"[]"
    yield "an empty object", b"{}"
    yield "deep lists", b"[" * 100_000
    yield "deep objects", b'{"chunks":' * 50_000
    yield "deep lists in a place", text.replace(b'"chunks": [[', b'"chunks": ' + b"[" * 50_000, 1)
    yield "a name of a million escapes", text.replace(b"runs", b"\\n" * 1_000_000)
    yield "a name of a million letters", text.replace(b"runs", b"n" * 1_000_000)
    yield (
        "a million empty lists",
        text.replace(b'"tensors": [', b'"tensors": [' + b"[]," * 1_000_000),
    )
    for cut in range(1, len(text), 97):
        yield f"JSON cut at {cut}", text[:cut]


def _chunks():
    """(name, pack of one tensor whose header holds but whose chunks do not)."""
    eight = bytes(range(8))

    def coded(payload, raw=eight * 8):
        return by_hand([(1, payload, len(raw), zlib.crc32(raw))], shape=[len(raw)])

    good = raw_deflate(eight * 8)
    yield "deflate cut short", coded(good[:-1])
    yield "deflate with a tail", coded(good + b"\0")
    yield "deflate that says less", coded(raw_deflate(eight * 7))
    yield "deflate that says more", coded(raw_deflate(eight * 9))
    yield "a deflate bomb", coded(raw_deflate(bytes(30_000)))
    yield "deflate of other bytes", coded(raw_deflate(bytes(64)))
    yield "deflate with a zlib head", coded(zlib.compress(eight * 8))
    yield "deflate that never ends", coded(b"\0\x08\0\xf7\xff" + eight)
    yield "deflate of a reserved kind", coded(b"\xff" * 20)
    yield "deflate that looks back too far", coded(b"\x63\x00\x42\x00")
    yield "stored bytes of another crc", by_hand([(0, eight, 8, 1)])
    yield "runs past the end", by_hand([b"\xff", b"\1"], gaps="runs")
    yield "runs past the end by one", by_hand([b"\3\4", b"\1\1"], gaps="runs")
    yield "more runs than symbols", by_hand([bytes(9), bytes(9)], gaps="runs")
    yield "fewer values than runs", by_hand([b"\0\0", b"\1"], gaps="runs")
    yield "joint runs past the end", by_hand([b"\xf1"], gaps="joint", dtype="INT4", unit=4, bits=4)
    yield "a mask with more ones than values", by_hand([b"\xff", b"\1"], gaps="mask")
    yield "a mask with fewer ones than values", by_hand([b"\1", b"\1\2"], gaps="mask")
    yield "a mask too short", by_hand([b"", b""], gaps="mask")
    yield "an index beyond the table", by_hand([eight], table=b"abcdefg")
    yield "an empty table", by_hand([eight], table=b"")
    yield (
        "a table of half elements",
        by_hand([bytes(4)], table=b"abc", dtype="FLOAT16", shape=[8], unit=16, bits=4),
    )
    yield (
        "a table wider than its elements",
        by_hand([bytes(4)], table=b"\x10", dtype="INT4", unit=4, bits=4),
    )
    # 16 PiB from a kilobyte: every block is the same empty stream.
    yield "a bomb of nothing", by_hand([b"", b""], gaps="runs", shape=[1 << 50], block=1 << 21)
    many = by_hand([b"", b""], gaps="runs", shape=[1 << 36], block=1 << 21)
    document, area = take_apart(many)
    document["tensors"][0]["chunks"] = [0, 1] * (1 << 15)
    yield "a bomb that keeps every rule but the limit", put_together(document, area)


def attacks():
    """(name, bytes) of packs that every reader must refuse, opening or reading them."""
    first, later = sound(), sound(2)
    yield from _attacks(first, [*_edits_of_first(), *_edits()], 1)
    for name, data in _attacks(later, [*_edits_of_second(), *_edits()], 2):
        yield f"2: {name}".replace("2: 2:", "2:"), data
    yield (
        "a header longer than the file",
        first[:16] + (1 << 24).to_bytes(8, "little") + first[24:],
    )
    yield "a header longer than memory", first[:16] + b"\xff" * 8 + first[24:]
    yield (
        "a header that wraps around",
        first[:16] + (2**64 - 16).to_bytes(8, "little") + first[24:],
    )
    yield "an empty file", b""
    yield from _chunks()
    for name, data in _chunks():
        yield f"2: {name}", second(data)
    yield from _heads(later)
    alone, one, other = second(_sound()), b"abc", b"defghijkl"
    yield "2: a row of no part", dealt(alone, rows=b"\1\0\1\2")
    yield "2: a part with a row too many", dealt(alone, rows=b"\1\1\1\1")
    yield "2: a part with a row too few", dealt(alone, rows=b"\1\0\0\1")
    yield "2: a byte too few for the rows", dealt(alone, rows=b"\1\0\1")
    yield "2: one part", dealt(alone, rows=bytes(4), parts=[one + other])
    yield "2: more parts than a byte can tell", dealt(alone, parts=[one, other] + [b""] * 255)
    yield "2: parts for too few rows", dealt(alone, parts=[one, other[:6]])
    yield "2: parts for too many rows", dealt(alone, parts=[one, other, one])


def _heads(pack):
    """(name, bytes) of packs of version 2 whose stub or head lies."""
    (start, end, length), size = header_at(pack), len(pack)

    def head(name, **fields):
        names = ("magic", "flags", "stored", "length", "crc", "zero")
        values = dict(zip(names, HEAD.unpack(pack[STUB : STUB + HEAD.size]), strict=True))
        return f"2: {name}", pack[:STUB] + HEAD.pack(*(values | fields).values()) + pack[start:]

    yield head("a header longer than the file", stored=size)
    yield head("a header of no bytes", stored=0, crc=0)
    yield head("a header longer than memory", length=2**32 - 1)
    yield head("a header that says less", length=length - 1)
    yield head("a header that says more", length=length + 1)
    yield head("the other version", magic=MAGIC[1])
    yield head("a third version", magic=b"ONXSPAK3")
    yield head("a flag", flags=1)
    yield head("a last word", zero=1)
    yield "2: without a stub", pack[STUB:]
    yield "2: another model for runtimes", pack.replace(b"this model is", b"that model is")
    yield "2: a stub that says less", stub(size - STUB - 1) + pack[STUB:]
    yield "2: a stub that says more", stub(size - STUB + 1) + pack[STUB:]
    bomb = zlib.compress(b" " * 300_000 + b"{}", 9)[2:-4]
    yield "2: a bomb of spaces", _deflated_header(bomb, 300_002)
    yield "2: a bomb that says little", _deflated_header(bomb, 64 * len(bomb))
    text = zlib.decompress(pack[start:end], -15)
    yield "2: a header with a tail", _deflated_header(raw_deflate(text) + b"\0", length, pack[end:])
    yield "2: a header cut short", _deflated_header(raw_deflate(text)[:-1], length, pack[end:])
    yield "2: a header that is not deflated", _deflated_header(text, length, pack[end:])


def _deflated_header(stored, length, area=b""):
    head = HEAD.pack(MAGIC[2], 0, len(stored), length, zlib.crc32(stored), 0)
    return stub(len(head) + len(stored) + len(area)) + head + stored + area


def _attacks(pack, edits, version):
    """What is wrong in a header, of either version."""
    document, area = take_apart(pack)
    own = "model" if version == 1 else "graph"
    for name, path, value in edits:
        copy = json.loads(json.dumps(document))
        at = copy
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        yield name, put_together(copy, area, version)
    for key in (own, "base", "data", "chunks", "tensors"):
        less = {k: v for k, v in document.items() if k != key}
        yield f"no {key}", put_together(less, area, version)
    for key in document["tensors"][0]:
        copy = json.loads(json.dumps(document))
        del copy["tensors"][1][key]
        yield f"a tensor without {key}", put_together(copy, area, version)
    for name, text in _texts(json.dumps(document, ensure_ascii=False).encode()):
        yield name, put_together(text, area, version)
    for name, more in (("a byte", b"\0"), ("a page", bytes(4096))):
        yield f"{name} after the end", pack + more
        if version == 2:
            longer = area + more
            yield f"{name} after the end, of which the stub knows", put_together(document, longer)


def mutated(rng, document, area):
    """A document with one to three random changes, a number being nudged or made extreme."""
    copy = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        parent, key = None, None
        at = copy
        while isinstance(at, dict | list) and at and (parent is None or rng.random() < 0.9):
            parent, key = at, rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = parent[key]
        action = rng.randrange(5)
        if type(at) is int:
            near = [at - 1, at + 1, at ^ 1 << rng.randrange(54), at * 2, at // 2]
            parent[key] = rng.choice([*near, 0, 64, 256, 1 << 18, 1 << 31, 1 << 32, BIG, -1])
        elif action == 0 and isinstance(parent, list):
            parent.insert(key, json.loads(json.dumps(at)))
        elif action == 1 and parent:
            del parent[key]
        elif action == 2 and parent is not None:
            parent[key] = rng.choice([None, True, "", [], {}, 0, "joint", "mask", "runs", "none"])
        elif parent is not None:
            other = rng.choice(copy["tensors"] or [0])
            parent[key] = json.loads(json.dumps(rng.choice(list(other.values())))) if other else 0
        if not isinstance(copy.get("tensors"), list) or not all(
            isinstance(t, dict) and t for t in copy["tensors"]
        ):
            break
    version = 1 if "model" in document else 2
    data = bytearray(put_together(copy, area, version))
    if rng.random() < 0.3:
        data[rng.randrange(len(data) - len(area), len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)
