/// <reference types="vite/client" />
/** The cases that hold every client to the same rules: `conformance/`. */

import { describe, expect, test } from "vitest";
import { Player, type Case } from "./conformance.js";

const files = import.meta.glob<Case[]>("../conformance/*.json", { eager: true, import: "default" });

/** Cases that the client does not hold to yet. */
const EXPECTED_TO_FAIL: readonly string[] = [
  "a call waits for a connection",
  "a call that waits for a connection in vain fails, and is not sent later",
  "a frame larger than announced is refused before it is sent",
  "a hundred events beside sixty joins stay within the rate that is announced",
  "white space around a token is left out",
  "a token with a line break is one clear error and not tried again",
  "an empty token is one clear error and not tried again",
  "a token with a letter beyond ASCII is one clear error and not tried again",
  "an address that is not a WebSocket's is a mistake",
  "a wait that is no number is a mistake",
  "a negative wait is a mistake",
  "a refused role is final, and the reason is reported",
  "a fresh token that is refused is final",
  "a namespace that does not exist is final",
  "the 404 of a proxy is not final",
  "the 404 of another application is not final",
  "a full server is asked again after as long as it says",
  "a thread is entered by its number, and left",
  "a number in an event becomes text",
  "another user resumes nothing, and nothing that waited is sent in their name",
];

/** Milliseconds. A case that hangs ends with the patience of one of its steps. */
const LONGEST = 40_000;

for (const [path, cases] of Object.entries(files)) {
  describe(path.replace("../conformance/", ""), () => {
    for (const each of cases) {
      const run = EXPECTED_TO_FAIL.includes(each.name) ? test.concurrent.fails : test.concurrent;
      run(each.name, () => new Player(each).play(), LONGEST);
    }
  });
}

test("the runner fails a case that does not hold", async () => {
  const steps = [{ accept: { token: "b" } }];
  await expect(new Player({ name: "", steps }).play()).rejects.toThrow("step 0");
});
