import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

// A page of Django's: its template loads these two files by name.
export default defineConfig({
  esbuild: { jsx: "automatic" },
  resolve: {
    // The client as it is in this repository, with this application's React.
    alias: {
      "realtime-sockets/react": here("../../client/src/react.ts"),
      "realtime-sockets": here("../../client/src/index.ts"),
    },
    dedupe: ["react", "react-dom"],
  },
  build: {
    outDir: here("../static/demo"),
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    rollupOptions: {
      onwarn(warning, warn) {
        // "use client" is for other frameworks; Rollup warns about it, and about its missing source map.
        if (!["MODULE_LEVEL_DIRECTIVE", "SOURCEMAP_ERROR"].includes(warning.code ?? "")) warn(warning);
      },
      input: here("src/main.tsx"),
      output: { entryFileNames: "desk.js", assetFileNames: "desk.[ext]", inlineDynamicImports: true },
    },
  },
});
