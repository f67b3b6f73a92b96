// Runs a model on inputs from a file in onnxruntime-node or onnxruntime-web (WebAssembly, in Node).
//
//   node run_inputs.mjs FOLDER RUNTIME MODEL INPUTS ANSWERS [DATA ...] [--accuracy-level N]
//
// FOLDER has the runtime in its node_modules; RUNTIME is onnxruntime-node or onnxruntime-web; DATA
// are the files that hold the model's weights, if it has any. Inputs and answers: see run_inputs.py.
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { argv, exit } from "node:process";
import { pathToFileURL } from "node:url";

const LEVEL = "--accuracy-level";
const [RUNS, SECONDS] = [50, 0.3]; // that are timed, at most
const FORMAT = "onnxshrink values 1";
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: globalThis.Float16Array ?? Uint16Array,
};

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

function decode(ort, { type, dims, data }) {
  if (type === "string") return new ort.Tensor("string", data, dims);
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}

function encode({ type, dims, data }) {
  if (type === "string") return { type, dims, data: Array.from(data) };
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims, data: bytes.toString("base64") };
}

async function main(words) {
  const at = words.indexOf(LEVEL);
  const [, level] = at < 0 ? [] : words.splice(at, 2);
  const [folder, runtime, model, inputs, answers, ...data] = words;
  const require = createRequire(join(resolve(folder), "package.json"));
  const entry = require.resolve(runtime);
  const loaded = await import(pathToFileURL(entry));
  const ort = loaded.InferenceSession ? loaded : loaded.default;
  if (runtime === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  const [bytes, asked] = await Promise.all([readFile(model), readFile(inputs)]);
  const options = { executionProviders: [runtime === "onnxruntime-web" ? "wasm" : "cpu"] };
  if (level !== undefined) {
    options.extra = { session: { qdq_matmulnbits_accuracy_level: level } };
  }
  if (data.length) {
    const read = async (path) => ({ path: basename(path), data: new Uint8Array(await readFile(path)) });
    options.externalData = await Promise.all(data.map(read));
  }
  const session = await ort.InferenceSession.create(new Uint8Array(bytes), options);
  const feeds = JSON.parse(asked).rows.map((row) =>
    Object.fromEntries(Object.entries(row).map(([name, value]) => [name, decode(ort, value)])));
  const rows = [];
  for (const feed of feeds) {
    const found = await session.run(feed);
    rows.push(Object.fromEntries(Object.entries(found).map(([name, value]) => [name, encode(value)])));
  }
  const seconds = [];
  const end = performance.now() + SECONDS * 1e3;
  while (feeds.length && (!seconds.length || (performance.now() < end && seconds.length < RUNS))) {
    const start = performance.now();
    await session.run(feeds[seconds.length % feeds.length]);
    seconds.push((performance.now() - start) / 1e3);
  }
  seconds.sort((a, b) => a - b);
  const about = {
    engine: runtime,
    version: ort.env.versions?.[runtime === "onnxruntime-web" ? "web" : "node"] ?? ort.env.versions?.common,
    provider: options.executionProviders[0],
    elsewhere: {},
    seconds: seconds[seconds.length >> 1] ?? 0,
    model: sha256(bytes),
    inputs: sha256(asked),
  };
  await writeFile(answers, JSON.stringify({ format: FORMAT, about, rows }));
}

try {
  await main(argv.slice(2));
} catch (error) {
  console.error(`error: ${String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 400)}`);
  exit(3);
}
