// node node.mjs RUNTIME READER JOBS: the outputs of each job, as JSON.
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { argv } from "node:process";
import { pathToFileURL } from "node:url";
import { answer } from "./answer.mjs";

const [, , runtime, readerPath, jobsPath] = argv;
const ort = await import(runtime);
if (runtime === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const reader = await import(pathToFileURL(readerPath));
const load = async (name) => new Uint8Array(await readFile(join(dirname(jobsPath), name)));
const outputs = [];
for (const job of JSON.parse(await readFile(jobsPath, "utf-8"))) {
  outputs.push(await answer(ort, reader, load, job));
}
console.log(JSON.stringify(outputs));
