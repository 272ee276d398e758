// Packs the package, checks its files, and uses it as applications that installed it do (consumer/).
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { WITHOUT_EXPORTS, bundlers } from "./bundle.mjs";

const client = dirname(fileURLToPath(import.meta.url));
const tool = (name) => join(client, "node_modules/.bin", name);
const folder = mkdtempSync(join(tmpdir(), "realtime-sockets-"));
const peers = ["react", "svelte", "vue"];

/** Runs a command in a folder, and shows its output only if it fails. */
async function run(directory, command, ...options) {
  try {
    await promisify(execFile)(command, options, { cwd: directory });
  } catch ({ message, stdout, stderr }) {
    throw new Error(`${message}\n${stdout}${stderr}`);
  }
}

/** A project of this package.json type, below the folder that has the package installed. */
function project(type) {
  const directory = join(folder, type);
  cpSync(join(client, "consumer"), directory, { recursive: true });
  writeFileSync(join(directory, "package.json"), JSON.stringify({ private: true, type }));
  return directory;
}

async function compile(directory, module, moduleResolution, ...more) {
  for (const config of ["tsconfig.json", "tsconfig.browser.json"]) {
    const options = ["--project", config, "--module", module, "--moduleResolution", moduleResolution, ...more];
    await run(directory, tool("tsc"), ...options);
  }
}

function checkFiles(installed) {
  const files = readdirSync(installed, { recursive: true }).filter((name) => statSync(join(installed, name)).isFile());
  const modules = readdirSync(join(client, "src")).map((name) => name.replace(/\.ts$/, ""));
  const built = modules.flatMap((name) => ["d.ts", "d.ts.map", "js", "js.map"].map((type) => `dist/${name}.${type}`));
  const types = modules.map((name) => `dist/cjs/${name}.d.ts`);
  const required = files.filter((name) => /^dist\/cjs\/\w+\.js$/.test(name));
  const sources = modules.map((name) => `src/${name}.ts`);
  const folders = ["dist/cjs", "react", "vue"].map((name) => `${name}/package.json`);
  const expected = [...built, ...types, ...required, ...sources, ...folders, "LICENSE", "README.md", "package.json"];
  assert.deepEqual(files.sort(), expected.filter((name) => name !== "dist/events.d.ts.map").sort());
  // A copy, because npm leaves out links.
  assert.equal(readFileSync(join(installed, "LICENSE"), "utf8"), readFileSync(join(client, "../LICENSE"), "utf8"));
  // A server component may import the hooks for the client components that it renders.
  for (const name of ["dist/react.js", "dist/cjs/react.js"]) {
    assert.match(readFileSync(join(installed, name), "utf8"), /^(["']use strict["'];\s*)?["']use client["'];/);
  }
  return files.length;
}

try {
  await run(folder, "npm", "pack", client, "--silent");
  const tarball = join(folder, readdirSync(folder)[0]);
  await run(folder, tool("publint"), "run", tarball, "--strict");
  await run(folder, tool("attw"), tarball);

  await run(folder, "npm", "install", "--no-audit", "--no-fund", tarball);
  const count = checkFiles(join(folder, "node_modules/realtime-sockets"));
  mkdirSync(join(folder, "node_modules/@types"));
  for (const name of [...peers, "@types/react"]) {
    symlinkSync(join(client, "node_modules", name), join(folder, "node_modules", name));
  }

  const [esm, cjs] = [project("module"), project("commonjs")];
  await Promise.all([
    compile(esm, "preserve", "bundler", "--noEmit").then(() => compile(esm, "node16", "node16")),
    compile(cjs, "node16", "node16", "--noEmit").then(() => compile(cjs, "commonjs", "node10")),
  ]);

  for (const [name, bundle] of Object.entries(bundlers)) {
    const modules = ["core", ...(name === WITHOUT_EXPORTS ? peers.filter((peer) => peer !== "svelte") : peers)];
    const [entry, bundled] = [join(esm, `${name}.js`), join(folder, `${name}.cjs`)];
    writeFileSync(entry, modules.map((module) => `import "./${module}.js";\n`).join(""));
    await bundle(entry, bundled);
    await run(folder, "node", bundled);
  }
  await run(cjs, tool("jest"));
  for (const directory of [esm, cjs]) {
    for (const name of ["commonjs.cjs", ...peers.map((peer) => `${peer}.js`)]) await run(directory, "node", name);
  }
  for (const peer of peers) rmSync(join(folder, "node_modules", peer));
  for (const directory of [esm, cjs]) await run(directory, "node", "core.js"); // without any framework
  console.log(`package: ${count} files, ${statSync(tarball).size} bytes packed; compiled, bundled, required and imported`);
} finally {
  rmSync(folder, { recursive: true });
}
