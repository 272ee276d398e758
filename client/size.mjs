// The size of the core in an application, from either format in dist (`npm run build`): bundled, minified, gzipped;
// and that of the modules for Vue and Svelte, which leave everything else to it.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 6 * 1024;
/** Lines of source below which the composables and the stores stay. */
const LINES = 120;

for (const entry of ["dist/index.js", "dist/cjs/index.js"]) {
  const { outputFiles } = await build({
    stdin: { contents: `export { Socket } from "./${entry}";`, resolveDir: import.meta.dirname },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  console.log(`core, ${entry}: ${size} bytes gzipped, at most ${LIMIT}`);
  if (size > LIMIT) process.exitCode = 1;
}

for (const name of ["src/vue.ts", "src/svelte.ts"]) {
  const lines = readFileSync(`${import.meta.dirname}/${name}`, "utf8").trimEnd().split("\n").length;
  console.log(`${name}: ${lines} lines, below ${LINES}`);
  if (lines >= LINES) process.exitCode = 1;
}
