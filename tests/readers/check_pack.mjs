// What test_readers.py does with the JavaScript reader: see the end.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { argv } from "node:process";

const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
const load = (path) => new Uint8Array(readFileSync(path));
const limit = 2 ** 24;

const [, , command, reader, ...paths] = argv;
if (command === "browse") globalThis.process = undefined; // the path through DecompressionStream
const { PackError, externalData: read, open, unpack } = await import(reader);
/** All that a pack holds is decoded; what is in it of the data file. */
async function externalData(bytes, options) {
  const pack = await open(bytes, options);
  if (!pack.graph.length) return read(bytes, options);
  return (await unpack(bytes, options)).externalData;
}

if (command === "read" || command === "browse") {
  // read PACK [BASE]: digests of all it holds
  const bytes = load(paths[0]);
  const base = paths[1] && load(paths[1]);
  const pack = await open(bytes, { limit, base });
  const [{ path, data }] = await externalData(bytes, { limit, base });
  for (const t of pack.tensors) {
    const one = digest(await pack.readTensor(t.name));
    if (one !== digest(data.subarray(t.offset, t.offset + t.nbytes))) throw new Error(t.name);
    console.log([one, t.dtype, t.offset, t.name, `[${t.shape.join(", ")}]`].join("\t"));
  }
  const graph = pack.graph.length ? digest(await pack.readGraph()) : "-";
  console.log([digest(data), path, pack.model ?? "-", graph].join("\t"));
} else if (command === "damage") {
  // damage PACK: every bit of head and header, and every length, must be refused
  const bytes = load(paths[0]);
  const second = bytes[0] === 8, view = new DataView(bytes.buffer); // an ONNX model begins so
  const end = second ? 191 + 32 + view.getUint32(191 + 12, true) : 32 + view.getUint32(16, true);
  if (!(end < bytes.length)) throw new Error("no header ends there");
  const refused = async (damaged) =>
    externalData(damaged, { limit }).then(() => 0, (error) => {
      if (!(error instanceof PackError)) throw error;
      return 1;
    });
  let flips = 0, cuts = 0;
  for (let bit = 0; bit < 8 * end; bit++) {
    bytes[bit >> 3] ^= 1 << (bit & 7);
    flips += await refused(bytes);
    bytes[bit >> 3] ^= 1 << (bit & 7);
  }
  for (let length = 0; length < bytes.length; length++) {
    cuts += await refused(bytes.subarray(0, length));
  }
  console.log(`${8 * end - flips} flips and ${bytes.length - cuts} cuts passed`);
} else {
  // refuse PACK...: the message of each, a line; anything but a PackError is a bug
  for (const path of paths) {
    try {
      await externalData(load(path), { limit });
      console.log("");
    } catch (error) {
      if (!(error instanceof PackError)) throw error;
      console.log(error.message.replaceAll("\n", " "));
    }
  }
}
