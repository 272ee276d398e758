// Bundles a page: `node test/pages/build.mjs <entry> <outfile>`, for rendering on a server with a third argument `node`.
import { readFile } from "node:fs/promises";
import { build } from "esbuild";
import { compile } from "svelte/compiler";

const [entry, outfile, platform = "browser"] = process.argv.slice(2);
const generate = platform === "node" ? "server" : "client";

const svelte = {
  name: "svelte",
  setup({ onLoad }) {
    onLoad({ filter: /\.svelte$/ }, async ({ path }) => ({
      contents: compile(await readFile(path, "utf8"), { filename: path, generate }).js.code,
    }));
  },
};

await build({ entryPoints: [entry], outfile, bundle: true, format: "esm", platform, logLevel: "error", plugins: [svelte] });
