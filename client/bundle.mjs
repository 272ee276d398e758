// Bundles a module in the ways of applications, with the defaults of each bundler, for Node to run it.
import { basename, dirname } from "node:path";
import { promisify } from "node:util";
import { build as esbuild } from "esbuild";
import { build as vite } from "vite";
import webpack from "webpack";

/** The bundler that reads `main` and folders (react/package.json) instead of `exports`. */
export const WITHOUT_EXPORTS = "webpack without exports";

async function packed(entry, outfile, options) {
  const output = { path: dirname(outfile), filename: basename(outfile) };
  const result = await promisify(webpack)({ entry, output, mode: "production", target: "web", ...options });
  if (result.hasErrors() || result.hasWarnings()) throw new Error(result.toString("errors-only"));
}

/** Functions of the entry and of the file to write, by name. */
export const bundlers = {
  esbuild: (entry, outfile) => esbuild({ entryPoints: [entry], outfile, bundle: true, logLevel: "error" }),

  vite: (entry, outfile) =>
    vite({
      configFile: false,
      logLevel: "error",
      define: { "process.env.NODE_ENV": '"production"' },
      build: { outDir: dirname(outfile), emptyOutDir: false, lib: { entry, formats: ["cjs"], fileName: () => basename(outfile) } },
    }),

  webpack: (entry, outfile) => packed(entry, outfile, {}),

  /** As Parcel, and Metro before 0.82, resolve a package. Svelte itself cannot be found so. */
  [WITHOUT_EXPORTS]: (entry, outfile) => packed(entry, outfile, {
      resolve: { exportsFields: [] },
      module: { rules: [{ test: /\.js$/, resolve: { fullySpecified: false } }] },
    }),
};
