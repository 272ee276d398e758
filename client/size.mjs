// The size of the core in an application that imports `Socket`: bundled, minified, gzipped.
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 6 * 1024;
const { outputFiles } = await build({
  stdin: { contents: 'export { Socket } from "./src/index.ts";', resolveDir: import.meta.dirname },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  write: false,
});
const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
console.log(`core: ${size} bytes gzipped, at most ${LIMIT}`);
process.exit(size > LIMIT ? 1 : 0);
