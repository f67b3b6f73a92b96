// node serve.mjs [PORT]: this folder on http://127.0.0.1:PORT, as a server on the web would send it.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { argv } from "node:process";

const TYPES = {
  ".html": "text/html", ".mjs": "text/javascript", ".json": "application/json",
  ".wasm": "application/wasm",
};
const folder = import.meta.dirname;

const server = createServer(async (request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
  try {
    const data = await readFile(join(folder, path === "/" ? "index.html" : path));
    const type = TYPES[extname(path) || ".html"] ?? "application/octet-stream";
    response.writeHead(200, { "content-type": type, "content-length": data.length });
    response.end(data);
  } catch {
    response.writeHead(404).end();
  }
});
server.listen(Number(argv[2] ?? 8000), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
