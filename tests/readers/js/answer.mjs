// Runs a model in onnxruntime-node or onnxruntime-web; its weights come from a pack, or are in it.

const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };

/**
 * @param {object} ort onnxruntime-node or -web.
 * @param {object} reader onnxshrink_pack.mjs.
 * @param {(name: string) => Promise<Uint8Array>} load Reads a file of the job.
 * @param {object} job Names of the files `model`, `pack` and `base` (the last two may be absent),
 *   whether the model is `packed`, and `feeds`: {name: {type, dims, data}}. `pack` is of version 1.
 * @returns {Promise<object>} Outputs as {name: {dims, data}}.
 */
export async function answer(ort, reader, load, job) {
  let model = await load(job.model);
  const options = { executionProviders: job.providers };
  const base = job.base && (await load(job.base));
  if (job.packed) {
    ({ model, externalData: options.externalData } = await reader.unpack(model, { base }));
  } else if (job.pack) {
    options.externalData = await reader.externalData(await load(job.pack), { model, base });
  }
  const session = await ort.InferenceSession.create(model, options);
  const feeds = {};
  for (const [name, { type, dims, data }] of Object.entries(job.feeds)) {
    const values = type === "int64" ? data.map(BigInt) : data;
    feeds[name] = new ort.Tensor(type, ARRAYS[type].from(values), dims);
  }
  const outputs = {};
  for (const [name, { dims, data }] of Object.entries(await session.run(feeds))) {
    outputs[name] = { dims, data: Array.from(data, Number) };
  }
  await session.release();
  return outputs;
}
