// Makes dist/cjs of what the compiler has written to dist: the same modules and types, for `require`.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { rollup } from "rollup";

const { exports, peerDependencies } = JSON.parse(readFileSync("package.json", "utf8"));
const entries = Object.values(exports).flatMap((entry) => entry.import?.default ?? []);

const bundle = await rollup({
  input: entries,
  external: Object.keys(peerDependencies),
  onwarn(warning) {
    if (warning.code !== "MODULE_LEVEL_DIRECTIVE") throw new Error(warning.message); // "use client" is added below
  },
});
await bundle.write({
  dir: "dist/cjs",
  format: "cjs",
  chunkFileNames: "[name].js",
  manualChunks: { index: ["dist/index.js"] }, // the core in one module
  banner: ({ name }) => (name === "react" ? '"use client";' : ""),
});
await bundle.close();
writeFileSync("dist/cjs/package.json", JSON.stringify({ type: "commonjs", sideEffects: false }));

for (const name of readdirSync("dist").filter((name) => name.endsWith(".d.ts"))) {
  writeFileSync(`dist/cjs/${name}`, readFileSync(`dist/${name}`, "utf8").replace(/^\/\/# sourceMappingURL.*\n?/m, ""));
}
// Both formats share one declaration of the events, so that a product's own events merge with it once, for either.
writeFileSync("dist/events.d.ts", 'export * from "./cjs/events.js";\n');
rmSync("dist/events.d.ts.map");
