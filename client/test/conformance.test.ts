/// <reference types="vite/client" />
/** The cases that hold every client to the same rules: `conformance/`. */

import { describe, expect, test } from "vitest";
import { Player, type Case } from "./conformance.js";

const files = import.meta.glob<Case[]>("../conformance/*.json", { eager: true, import: "default" });

/** Milliseconds. A case that hangs ends with the patience of one of its steps. */
const LONGEST = 60_000;

for (const [path, cases] of Object.entries(files)) {
  describe(path.replace("../conformance/", ""), () => {
    for (const each of cases) test.concurrent(each.name, () => new Player(each).play(), LONGEST);
  });
}

test("the runner fails a case that does not hold", async () => {
  const steps = [{ accept: { token: "b" } }];
  await expect(new Player({ name: "", steps }).play()).rejects.toThrow("step 0");
});
