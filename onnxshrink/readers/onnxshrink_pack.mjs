/**
 * Reads models packed by onnxshrink, format versions 1 and 2, in browsers and in Node.
 *
 *     import { unpack } from "./onnxshrink_pack.mjs";
 *
 *     const packed = new Uint8Array(await (await fetch("packed.onnx")).arrayBuffer());
 *     const { model, externalData } = await unpack(packed);
 *     const session = await ort.InferenceSession.create(model, { externalData });
 *
 * In version 1 the model lies beside its pack: `externalData(pack, { model })` is for those.
 *
 * A pack may come from anywhere: whatever it holds, the result is a PackError or the right bytes.
 * Needs DecompressionStream("deflate-raw") (Chrome 103, Firefox 113, Safari 16.4) or Node 18.
 *
 * SPDX-License-Identifier: Apache-2.0
 */

const MAX_HEADER = 2 ** 24;
const CHUNK = 2 ** 18;
const STORED = 0, DEFLATE = 1, BASE = 2;
const BITS = {
  BOOL: 8, INT2: 2, UINT2: 2, INT4: 4, UINT4: 4, FLOAT4E2M1: 4, INT8: 8, UINT8: 8,
  FLOAT8E4M3FN: 8, FLOAT8E4M3FNUZ: 8, FLOAT8E5M2: 8, FLOAT8E5M2FNUZ: 8, FLOAT8E8M0: 8,
  INT16: 16, UINT16: 16, FLOAT16: 16, BFLOAT16: 16, INT32: 32, UINT32: 32, FLOAT: 32,
  INT64: 64, UINT64: 64, DOUBLE: 64, COMPLEX64: 64, COMPLEX128: 128,
};

/** The pack is damaged, hostile, over the limit, or belongs to another model or base. */
export class PackError extends Error {}

/**
 * What a packed model holds: the model itself, and its weights as the runtime takes them.
 *
 * @param {Uint8Array} bytes The packed model, of version 2.
 * @param {object} [options] As for `open`.
 * @returns {Promise<{model: Uint8Array, externalData: {path: string, data: Uint8Array}[]}>}
 */
export async function unpack(bytes, options = {}) {
  const pack = await open(bytes, options);
  check(pack.graph.length, "no graph: the model lies beside a pack of version 1");
  const model = await pack.readGraph();
  return { model, externalData: [{ path: pack.dataName, data: await pack.readData() }] };
}

/**
 * What `externalData` of onnxruntime-web and onnxruntime-node takes: the unpacked data file.
 *
 * @param {Uint8Array} bytes The pack.
 * @param {object} [options] As for `open`.
 * @param {Uint8Array} [options.model] The .onnx file beside a pack of version 1, to make sure that
 *   the two belong together.
 * @returns {Promise<{path: string, data: Uint8Array}[]>}
 */
export async function externalData(bytes, { model, ...options } = {}) {
  const pack = await open(bytes, options);
  check(!model || (await sha256(model)) === pack.model, "this pack belongs to another model");
  return [{ path: pack.dataName, data: await pack.readData() }];
}

/**
 * Opens a pack and checks its header; nothing is decoded yet.
 *
 * @param {Uint8Array} bytes The pack.
 * @param {object} [options]
 * @param {number} [options.limit] Bytes that it may unpack to; 2 GiB by default.
 * @param {Uint8Array} [options.base] The pack that this one updates.
 * @returns {Promise<Pack>}
 */
export async function open(bytes, { limit = 2 ** 31, base } = {}) {
  return Pack.open(bytes, limit, base && (await Pack.open(base, limit)));
}

/** An open pack: `model`, `dataName`, `dataLength`, `tensors`, `readTensor`, `readData`, `readGraph`. */
class Pack {
  static async open(bytes, limit, base) {
    const head = readHead(bytes);
    const stored = bytes.subarray(head.text, head.text + head.stored);
    check(crc32(stored) === head.crc, "the header is damaged");
    const text = head.version === 1 ? stored : await inflate(stored, head.length);

    const pack = new Pack();
    pack.version = head.version;
    pack.chunkBytes = bytes.subarray(head.start);
    pack.base = base;
    parse(pack, decodeText(text), limit);
    if (base) {
      pack.checkBase();
      check((await sha256(base.preamble)) === pack.baseId, "not the base of this pack");
    }
    pack.preamble = bytes.subarray(head.at, head.text + head.stored);
    return pack;
  }

  checkBase() {
    check(this.base.baseId === null, "the base is an update itself");
    for (const c of this.chunks) {
      if (c.method !== BASE) continue;
      const there = this.base.chunks[c.offset];
      check(there && there.raw === c.raw && there.crc === c.crc, "a chunk is not in the base");
    }
  }

  /** The bytes of one tensor, as ONNX' raw_data would hold them. */
  async readTensor(name) {
    const tensor = this.tensors.find((t) => t.name === name);
    check(tensor, `no tensor ${JSON.stringify(name)}`);
    const out = new Uint8Array(tensor.nbytes);
    await this.decode(tensor, out);
    return out;
  }

  /** The unpacked data file: every tensor at its offset. */
  async readData() {
    const out = new Uint8Array(this.dataLength);
    for (const t of this.tensors) {
      await this.decode(t, out.subarray(t.offset, t.offset + t.nbytes));
    }
    return out;
  }

  /** The model whose external data the tensors are; empty in a pack of version 1. */
  async readGraph() {
    const out = new Uint8Array(rawBytes(this, this.graph));
    let at = 0;
    for (const number of this.graph) {
      const raw = await this.chunk(number);
      out.set(raw, at);
      at += raw.length;
    }
    return out;
  }

  /** Puts the bytes of a tensor into `out`; rows that are dealt to parts, each in its place. */
  async decode(t, out) {
    if (!t.parts.length) return this.decodeCoded(t, out);
    const dealt = new Uint8Array(t.coded), row = t.nbytes / t.coded;
    await this.decodeCoded(t, dealt);
    for (const [number, part] of t.parts.entries()) {
      const places = [];
      dealt.forEach((other, at) => other === number && places.push(at));
      check(places.length * row === part.coded, "a part of other rows");
      const values = new Uint8Array(part.coded);
      await this.decodeCoded(part, values);
      places.forEach((at, k) => out.set(values.subarray(k * row, (k + 1) * row), at * row));
    }
  }

  async decodeCoded(t, out) {
    if (!t.coded) return;
    const table = t.table === null ? null : await this.chunk(t.table);
    const symbols = (t.coded * 8) / t.unit;
    for (let from = 0, id = 0; from < symbols; from += t.block, id += t.streams) {
      const ids = t.chunks.slice(id, id + t.streams);
      const streams = await Promise.all(ids.map((number) => this.chunk(number)));
      const block = decodeBlock(streams, t, Math.min(t.block, symbols - from), table);
      out.set(block, (from * t.unit) / 8);
    }
  }

  async chunk(number) {
    const c = this.chunks[number];
    if (c.method === BASE) {
      check(this.base, "this pack is an update: give the pack it updates as the base");
      const raw = await this.base.chunk(c.offset);
      check((await sha256(raw)) === c.sha256, "a chunk is not what the base holds");
      return raw;
    }
    const payload = this.chunkBytes.subarray(c.offset, c.offset + c.packed);
    const raw = c.method === STORED ? payload : await inflate(payload, c.raw);
    check(crc32(raw) === c.crc, `chunk ${number} is damaged`);
    return raw;
  }
}

// ------------------------------------------------------------------------------ the head

// An ONNX model that tells runtimes what a pack of version 2 is; the length of the rest follows it.
const TELLS = "this model is packed: 'onnxshrink unpack' makes it plain, onnxshrink's readers open it";
const STUB =
  "\x08\x03\x12\nonnxshrink\x1a\x11format of packs 2:~\ng\x12\x01y\"V" + TELLS +
  ":\nonnxshrink\x12\x06packedb\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00" +
  "B\x04\n\x00\x10\x07B\x0e\n\nonnxshrink\x10\x01\x82\xb5\x18";
const AT = STUB.length + 5;

/** Which version a pack is of, and where its header is: `text`, `stored` bytes, `length` inflated. */
function readHead(bytes) {
  check(bytes.length >= 32, "too short for a packed model");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const word = (at) => view.getUint32(at, true);
  const latin1 = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  let head;
  if (latin1(0, 8) === "ONXSPAK1") {
    check(word(8) === 1, "another version of the format");
    check(word(12) === 0 && word(28) === 0 && word(20) === 0, "unknown flags, or too long");
    const stored = word(16), start = align(32 + stored, 64);
    head = { version: 1, at: 0, text: 32, stored, length: stored, crc: word(24), start };
  } else {
    check(latin1(AT, AT + 8) === "ONXSPAK2" && bytes.length >= AT + 32, "not a packed model");
    const rest = bytes.length - AT;
    const said = [0, 7, 14, 21, 28].map((shift) => (Math.floor(rest / 2 ** shift) % 128) | 128);
    said[4] &= 127;
    const begins = STUB + String.fromCharCode(...said);
    check(latin1(0, AT) === begins, "what runtimes see is not what packed models show them");
    check(word(AT + 8) === 0 && word(AT + 24) === 0 && word(AT + 28) === 0, "unknown flags");
    const stored = word(AT + 12), length = word(AT + 16), text = AT + 32;
    check(length <= 64 * stored, "a header that long does not come from so few bytes");
    head = { version: 2, at: AT, text, stored, length, crc: word(AT + 20), start: text + stored };
  }
  const fits = Math.max(head.stored, head.length) <= MAX_HEADER && head.start <= bytes.length;
  check(fits, "the header is too long");
  return head;
}

// ------------------------------------------------------------------------------ the header

function parse(pack, document, limit) {
  const first = pack.version === 1;
  const top = keys(document, first ? "model" : "graph", "base", "data", "chunks", "tensors");
  const data = keys(top.data, "name", "length");
  pack.model = first ? digestOrNull(top.model) : null;
  pack.baseId = digestOrNull(top.base);
  pack.dataName = string(data.name);
  pack.dataLength = integer(data.length);
  check(pack.dataLength <= limit, `it unpacks to ${pack.dataLength} bytes, over the limit`);
  const { dataName: name } = pack;
  const plain = /^(?!\.\.?$)[^/\\:\x00-\x1f\x7f]+$/u.test(name) && byteLength(name) <= 255;
  check(plain, "the data file's name is not plain");
  pack.chunks = parseChunks(list(top.chunks), pack);
  pack.graph = first ? [] : list(top.graph);
  pack.graph.forEach((id) => check(integer(id) < pack.chunks.length, "a chunk does not exist"));
  check(pack.dataLength + rawBytes(pack, pack.graph) <= limit, "its graph is over the limit");
  pack.tensors = list(top.tensors).map((t) => parseTensor(t, pack));
  check(new Set(pack.tensors.map((t) => t.name)).size === pack.tensors.length, "a name twice");
  let end = 0;
  for (const t of pack.tensors) {
    check(t.offset >= end, "tensors overlap");
    end = t.offset + t.nbytes;
  }
  check(end === pack.dataLength, "the tensors do not end where the data file does");
}

function parseChunks(rows, { version, chunkBytes, baseId }) {
  let end = 0;
  const chunks = rows.map((row) => {
    const c = parseChunk(list(row), version, end), { method, offset, packed, raw, crc } = c;
    check(raw <= CHUNK && crc < 2 ** 32 && method <= BASE, "a chunk's fields are out of range");
    if (method === BASE) {
      check(baseId !== null && !packed, "a chunk refers to a base that the pack does not name");
      return c;
    }
    check(
      method === STORED ? packed === raw : packed > 0 && packed < raw && raw <= 1032 * packed,
      "a chunk's lengths break the format",
    );
    const aligned = version === 1 ? align(end, method === STORED ? 64 : 8) : end;
    check(offset === aligned, "a chunk is not where it must be");
    end = offset + packed;
    check(end <= chunkBytes.length, "a chunk ends after the end of the file");
    return c;
  });
  check(end === chunkBytes.length, "bytes after the last chunk");
  return chunks;
}

/** A row of the table; version 2 leaves out what follows from the chunks before. */
function parseChunk(row, version, end) {
  const inBase = row[0] === BASE;
  check(row.length === (version === 1 ? 5 : 4) + inBase, "a chunk's fields are too few or many");
  const sha256 = inBase ? digest(row.at(-1)) : null;
  const numbers = (inBase ? row.slice(0, -1) : row).map(integer);
  if (version === 2) {
    const [method, place, raw, crc] = numbers;
    return inBase ? { method, offset: place, packed: 0, raw, crc, sha256 }
      : { method, offset: end, packed: place, raw, crc };
  }
  const [method, offset, packed, raw, crc] = numbers;
  return { method, offset, packed, raw, crc, sha256 };
}

/** Bytes of some chunks when decoded. */
function rawBytes({ chunks }, numbers) {
  return numbers.reduce((sum, number) => sum + chunks[number].raw, 0);
}

const CODING = ["unit", "bits", "gaps", "rotate", "table", "block", "chunks"];

function parseTensor(value, { version, chunks }) {
  const own = ["name", "dtype", "shape", "offset"];
  const t = keys(value, ...own, ...CODING, ...(version === 1 ? [] : ["parts"]));
  check(/^[^\x00-\x1f\x7f]+$/u.test(string(t.name)) && byteLength(t.name) <= 4096, "a bad name");
  check(Object.hasOwn(BITS, string(t.dtype)), "an unknown type");
  integer(t.offset);
  list(t.shape).forEach(integer);
  t.nbytes = tensorBytes(t.shape, BITS[t.dtype]);
  t.parts = version === 1 ? [] : list(t.parts).map((part) => {
    const p = keys(part, "length", ...CODING);
    return checkCoding(p, integer(p.length), chunks);
  });
  if (!t.parts.length) return checkCoding(t, t.nbytes, chunks);
  const rows = t.shape[0] ?? 0, row = t.nbytes / rows;
  check(rows && row && t.nbytes % rows === 0, "no rows that could be dealt");
  check(t.parts.length >= 2 && t.parts.length <= 256, "too few or too many parts");
  const sum = t.parts.reduce((total, part) => total + part.coded, 0);
  check(sum === t.nbytes && t.parts.every((p) => p.coded % row === 0), "parts of other rows");
  return checkCoding(t, rows, chunks);
}

/** Checks how so many bytes are coded, and notes them and what follows from it. */
function checkCoding(t, coded, chunks) {
  t.coded = coded;
  for (const field of ["unit", "bits", "block"]) integer(t[field]);
  check(typeof t.rotate === "boolean", "rotate is not true or false");
  check(["none", "mask", "runs", "joint"].includes(t.gaps), "unknown gaps");
  list(t.chunks).forEach((id) => check(integer(id) < chunks.length, "a chunk does not exist"));

  const { unit, bits, block, gaps } = t;
  check([2, 4, 8, 16, 32, 64].includes(unit), "an unknown unit");
  check(t.table === null ? bits === unit : [1, 2, 4, 8].includes(bits) && bits <= unit, "bits");
  check((gaps !== "joint" || bits <= 4) && (!t.rotate || bits > 8), "stages that do not fit");
  check(block >= 64 && block <= 2 ** 21 && !(block & (block - 1)), "a bad block");
  if (t.table !== null) {
    check(integer(t.table) < chunks.length, "a table does not exist");
    const size = bytesOf(unit), { raw } = chunks[t.table];
    check(raw > 0 && raw <= size * 2 ** bits && raw % size === 0, "a table of a wrong length");
  }
  t.planes = gaps === "joint" ? 0 : bytesOf(bits);
  t.streams = t.planes + (gaps === "none" ? 0 : 1);
  const symbols = coded * (8 / unit); // exact: unit is a power of two
  check(Number.isInteger(symbols), "not a whole number of elements");
  const blocks = Math.ceil(symbols / block);
  check(t.chunks.length === blocks * t.streams, "too few or too many chunks");
  for (let number = 0; number < blocks; number++) {
    const ids = t.chunks.slice(number * t.streams, (number + 1) * t.streams);
    const count = Math.min(block, symbols - number * block);
    check(lengthsFit(t, count, ids.map((id) => chunks[id].raw)), "chunks of wrong lengths");
  }
  return t;
}

function tensorBytes(shape, bits) {
  check(shape.length <= 64, "too many dimensions");
  const count = shape.includes(0) ? 0n : shape.reduce((n, dim) => n * BigInt(dim), 1n);
  const bytes = (count * BigInt(bits) + 7n) / 8n;
  check(bytes <= BigInt(Number.MAX_SAFE_INTEGER), "a shape overflows");
  return Number(bytes);
}

function lengthsFit(t, symbols, lengths) {
  const narrow = Math.min(t.bits, 8), most = Math.ceil((symbols * narrow) / 8);
  const values = lengths.slice(t.streams - t.planes), first = lengths[0];
  if (t.gaps === "mask" && first !== Math.ceil(symbols / 8)) return false;
  if ((t.gaps === "runs" || t.gaps === "joint") && first > symbols) return false;
  const wanted = { none: most, runs: Math.ceil((first * narrow) / 8) }[t.gaps] ?? values[0];
  return values.every((length) => length === wanted && length <= most);
}

function keys(value, ...names) {
  const fits = value instanceof Map && value.size === names.length;
  check(fits && names.every((name) => value.has(name)), `not the keys ${names}`);
  return Object.fromEntries(value);
}

function list(value) {
  check(Array.isArray(value), "a list is missing");
  return value;
}

function string(value) {
  check(typeof value === "string", "a text is missing");
  return value;
}

function integer(value) {
  check(typeof value === "number", "an integer is missing");
  return value;
}

function digest(value) {
  check(/^[0-9a-f]{64}$/.test(string(value)), "not a sha256");
  return value;
}

function digestOrNull(value) {
  return value === null ? null : digest(value);
}

// ------------------------------------------------------------------------------ JSON
// JSON.parse lets the last of two equal keys win and rounds large numbers; readers must not differ.

function decodeText(bytes) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new PackError("the header is not UTF-8");
  }
  const token = /[ \t\n\r]*(?:([{}[\],:]|true|false|null)|(0|[1-9]\d{0,15})(?![\d.eE])|("))/uy;
  let kind, value;
  const next = () => {
    const found = token.exec(text);
    check(found, "the header is not the JSON it must be");
    if (found[1] !== undefined) kind = found[1];
    else if (found[2] !== undefined) {
      [kind, value] = ["number", Number(found[2])];
      check(Number.isSafeInteger(value), "a number is too large");
    } else {
      let end = token.lastIndex;
      while (end < text.length && text[end] !== '"') end += text[end] === "\\" ? 2 : 1;
      check(end - token.lastIndex < 2 ** 16, "a text is too long");
      try {
        [kind, value] = ["string", JSON.parse(text.slice(token.lastIndex - 1, end + 1))];
      } catch {
        throw new PackError("a text is not the JSON it must be");
      }
      check(!/\p{Surrogate}/u.test(value), "half of a surrogate pair");
      token.lastIndex = end + 1;
    }
  };
  const item = (depth) => {
    check(depth < 8, "the header is nested too deeply");
    if (kind === "number" || kind === "string") return value;
    if (kind === "{" || kind === "[") return kind === "{" ? object(depth) : array(depth);
    check(kind === "true" || kind === "false" || kind === "null", "a value is missing");
    return { true: true, false: false, null: null }[kind];
  };
  const array = (depth) => {
    const items = [];
    next();
    if (kind === "]") return items;
    for (;;) {
      items.push(item(depth + 1));
      next();
      if (kind === "]") return items;
      check(kind === ",", "a comma is missing");
      next();
    }
  };
  const object = (depth) => {
    const items = new Map();
    next();
    if (kind === "}") return items;
    for (;;) {
      check(kind === "string" && !items.has(value), "a key is missing or occurs twice");
      const key = value;
      next();
      check(kind === ":", "a colon is missing");
      next();
      items.set(key, item(depth + 1));
      next();
      if (kind === "}") return items;
      check(kind === ",", "a comma is missing");
      next();
    }
  };
  next();
  const document = item(0);
  check(/^[ \t\n\r]*$/.test(text.slice(token.lastIndex)), "something follows the header");
  return document;
}

// ------------------------------------------------------------------------------ decoding

function decodeBlock(streams, t, count, table) {
  const width = bytesOf(t.bits);
  let symbols;
  if (t.gaps === "none") {
    symbols = gather(streams, t, count, width);
  } else {
    symbols = new Uint8Array(count * width);
    const put = (at, values, k) => {
      for (let p = 0; p < width; p++) symbols[at * width + p] = values[k * width + p];
    };
    if (t.gaps === "mask") {
      const [mask] = streams, kept = [];
      for (let i = 0; i < count; i++) if ((mask[i >> 3] >> (i & 7)) & 1) kept.push(i);
      const values = gather(streams.slice(1), t, kept.length, width);
      kept.forEach((at, k) => put(at, values, k));
    } else {
      let runs = streams[0], values;
      if (t.gaps === "joint") {
        values = runs.map((byte) => byte & ((1 << t.bits) - 1));
        runs = runs.map((byte) => byte >> t.bits);
      } else {
        values = gather(streams.slice(1), t, runs.length, width);
      }
      for (let k = 0, at = 0; k < runs.length; k++, at++) {
        at += runs[k];
        check(at < count, "a run goes past the end");
        put(at, values, k);
      }
    }
  }
  return packBits(table === null ? symbols : lookUp(symbols, t, table), t.unit);
}

/** `count` symbols of `width` bytes each, from packed bits or from byte planes. */
function gather(streams, { bits, rotate }, count, width) {
  const length = Math.ceil((count * Math.min(bits, 8)) / 8);
  check(streams.every((stream) => stream.length === length), "too few or too many values");
  if (bits === 8) return streams[0];
  const out = new Uint8Array(count * width);
  if (bits < 8) {
    for (let i = 0; i < count; i++) {
      out[i] = (streams[0][(i * bits) >> 3] >> ((i * bits) & 7)) & ((1 << bits) - 1);
    }
    return out;
  }
  streams.forEach((stream, plane) => {
    for (let i = 0, at = plane; i < count; i++, at += width) out[at] = stream[i];
  });
  for (let at = 0; rotate && at < out.length; at += width) {
    let low = out[at] & 1; // the sign, which goes back to the top
    for (let p = width - 1; p >= 0; p--) {
      const byte = out[at + p];
      out[at + p] = (byte >> 1) | (low << 7);
      low = byte & 1;
    }
  }
  return out;
}

function lookUp(indices, { unit }, table) {
  const size = bytesOf(unit), entries = table.length / size;
  check(unit >= 8 || table.every((element) => element >> unit === 0), "the table is too wide");
  const out = new Uint8Array(indices.length * size);
  for (let i = 0; i < indices.length; i++) {
    check(indices[i] < entries, "an index points beyond the table");
    for (let p = 0; p < size; p++) out[i * size + p] = table[indices[i] * size + p];
  }
  return out;
}

function packBits(symbols, unit) {
  if (unit >= 8) return symbols;
  const out = new Uint8Array((symbols.length * unit) / 8);
  for (let i = 0; i < symbols.length; i++) out[(i * unit) >> 3] |= symbols[i] << ((i * unit) & 7);
  return out;
}

/** Raw deflate that must hold exactly `length` bytes; never makes more than that and a block. */
async function inflate(payload, length) {
  if (inNode()) {
    const { inflateRawSync } = await import(/* @vite-ignore */ /* webpackIgnore: true */ NODE_ZLIB);
    let result;
    try {
      result = inflateRawSync(payload, { maxOutputLength: length, info: true });
    } catch (error) {
      throw new PackError(`damaged deflate stream: ${error.message}`);
    }
    const { buffer, engine } = result;
    check(buffer.length === length && engine.bytesWritten === payload.length, "a wrong length");
    return buffer;
  }
  const stream = new DecompressionStream("deflate-raw");
  const writer = stream.writable.getWriter();
  const written = Promise.all([writer.write(payload), writer.close()]);
  written.catch(() => {}); // the reader sees the same error
  const out = new Uint8Array(length), reader = stream.readable.getReader();
  let at = 0;
  try {
    for (let part; !(part = await reader.read()).done; at += part.value.length) {
      check(at + part.value.length <= length, "a chunk is longer than it says");
      out.set(part.value, at);
    }
    await written;
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error instanceof PackError ? error : new PackError(`damaged deflate stream: ${error}`);
  }
  check(at === length, "a chunk is shorter than it says");
  return out;
}

// Names in variables keep bundlers for the browser from looking for these.
const NODE_ZLIB = "node:zlib", NODE_CRYPTO = "node:crypto";

function inNode() {
  return typeof globalThis.process?.versions?.node === "string";
}

async function sha256(bytes) {
  const { subtle } =
    globalThis.crypto ??
    (await import(/* @vite-ignore */ /* webpackIgnore: true */ NODE_CRYPTO)).webcrypto;
  check(subtle, "sha256 needs a secure context (https or localhost)");
  const hash = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Bytes that hold one element or symbol of this many bits. */
function bytesOf(bits) {
  return bits < 8 ? 1 : bits / 8;
}

function align(offset, to) {
  return Math.ceil(offset / to) * to;
}

function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

function check(holds, message) {
  if (!holds) throw new PackError(message);
}
