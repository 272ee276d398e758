import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";

/** This module with the components of Svelte that it imports, for a browser or for a server (`node`). */
export async function bundled<Module>(name: string, text: string, platform = "browser"): Promise<Module> {
  const cache = `${import.meta.dirname}/../node_modules/.cache/${name}`; // below the packages that it imports
  mkdirSync(cache, { recursive: true });
  writeFileSync(`${cache}/page.js`, text);
  execFileSync("node", ["test/pages/build.mjs", `${cache}/page.js`, `${cache}/bundle.mjs`, platform]);
  return (await import(/* @vite-ignore */ `${cache}/bundle.mjs`)) as Module;
}
