// Arrays in JSON: {name: {type, dims, data}} with the bytes, little endian, in base64.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: globalThis.Float16Array ?? Uint16Array,
};

export function decode(ort, row) {
  const tensors = {};
  for (const [name, { type, dims, data }] of Object.entries(row)) {
    if (type === "string") {
      tensors[name] = new ort.Tensor("string", data, dims);
      continue;
    }
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    tensors[name] = new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
  }
  return tensors;
}

/** The largest difference of any output, relative to its largest value. */
export function worst(found, expected) {
  let most = 0;
  for (const [name, { data }] of Object.entries(expected)) {
    const [mine, theirs] = [found[name].data, data].map((values) => Array.from(values, Number));
    const size = theirs.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1e-30);
    const apart = theirs.reduce((largest, value, at) => Math.max(largest, Math.abs(value - mine[at])), 0);
    most = Math.max(most, apart / size);
  }
  return most;
}
