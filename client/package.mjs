// Packs the package, checks its files, and uses it as an application that installed it (consumer/).
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const client = dirname(fileURLToPath(import.meta.url));
const tool = (name) => join(client, "node_modules", name);
const folder = mkdtempSync(join(tmpdir(), "realtime-sockets-"));

/** Runs a command in the directory, and shows its output only if it fails. */
function run(command, ...options) {
  try {
    execFileSync(command, options, { cwd: folder, encoding: "utf8", stdio: "pipe" });
  } catch ({ stdout, stderr }) {
    throw new Error(`${[command, ...options].join(" ")}\n${stdout}${stderr}`);
  }
}

try {
  run("npm", "pack", client, "--silent");
  const tarball = join(folder, readdirSync(folder)[0]);
  run(tool(".bin/publint"), "run", tarball, "--strict");

  cpSync(join(client, "consumer"), folder, { recursive: true });
  run("npm", "install", "--no-audit", "--no-fund", tarball, tool("react"), tool("@types/react"));

  const installed = join(folder, "node_modules/realtime-sockets");
  const files = readdirSync(installed, { recursive: true }).filter((name) => statSync(join(installed, name)).isFile());
  const modules = readdirSync(join(client, "src")).map((name) => name.replace(/\.ts$/, ""));
  const built = modules.flatMap((name) => ["d.ts", "d.ts.map", "js", "js.map"].map((type) => `dist/${name}.${type}`));
  const sources = modules.map((name) => `src/${name}.ts`);
  assert.deepEqual(files.sort(), [...built, ...sources, "LICENSE", "README.md", "package.json"].sort());
  // A copy, because npm leaves out links.
  assert.equal(readFileSync(join(installed, "LICENSE"), "utf8"), readFileSync(join(client, "../LICENSE"), "utf8"));

  // A server component may import the hooks for the client components that it renders.
  assert.match(readFileSync(join(installed, "dist/react.js"), "utf8"), /^"use client";/);

  run(tool(".bin/tsc"), "--module", "preserve", "--moduleResolution", "bundler", "--noEmit");
  run(tool(".bin/tsc"), "--module", "nodenext", "--moduleResolution", "nodenext");
  run("node", "react.js");
  rmSync(join(folder, "node_modules/react"));
  run("node", "core.js"); // without React
  run("node", "--input-type=commonjs", "--eval", "require('realtime-sockets').CLOSE_REASONS[4401].length");
  console.log(`package: ${files.length} files, ${statSync(tarball).size} bytes packed; compiled against and imported`);
} finally {
  rmSync(folder, { recursive: true });
}
