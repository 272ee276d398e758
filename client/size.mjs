// The size of the core in an application, from either format in dist (`npm run build`): bundled, minified, gzipped.
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 6 * 1024;

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
