// The size in an application, bundled, minified, gzipped: of the core, and of the whole index for `require`, of which bundlers
// leave nothing out (`npm run build` first). And that of the modules for Vue and Svelte, which leave everything else to it.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** Lines of source below which the composables and the stores stay. */
const LINES = 120;

const applications = [
  { format: "esm", contents: 'export { Socket } from "./dist/index.js";', limit: 6 * 1024 },
  { format: "cjs", contents: 'module.exports = require("./dist/cjs/index.js");', limit: 6.25 * 1024 },
];

for (const { format, contents, limit } of applications) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: import.meta.dirname },
    bundle: true,
    minify: true,
    format,
    target: "es2022",
    write: false,
  });
  const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  console.log(`${format}: ${size} bytes gzipped, at most ${limit}`);
  if (size > limit) process.exitCode = 1;
}

for (const name of ["src/vue.ts", "src/svelte.ts"]) {
  const lines = readFileSync(`${import.meta.dirname}/${name}`, "utf8").trimEnd().split("\n").length;
  console.log(`${name}: ${lines} lines, below ${LINES}`);
  if (lines >= LINES) process.exitCode = 1;
}
