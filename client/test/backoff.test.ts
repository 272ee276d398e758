import { expect, test } from "vitest";
import { Backoff } from "../src/index.js";

const options = { reconnectionDelay: 500, reconnectionDelayMax: 20_000 };

test("jitter is full, and applied after the cap", () => {
  for (const share of [0, 0.25, 1]) {
    const backoff = new Backoff(options, () => share);
    const waits = Array.from({ length: 10 }, () => backoff.next());
    expect(waits.slice(0, 4)).toEqual([500, 1000, 2000, 4000].map((most) => most * share));
    expect(waits.slice(-3)).toEqual([20_000, 20_000, 20_000].map((most) => most * share));
  }
});

test("clients spread over the whole wait, however long the outage was", () => {
  const waits = Array.from({ length: 2000 }, () => {
    const backoff = new Backoff(options);
    for (let n = 0; n < 9; n++) backoff.next();
    return backoff.next();
  });
  const perSecond = Array.from({ length: 20 }, (_, second) =>
    waits.filter((wait) => Math.floor(wait / 1000) === second).length,
  );
  expect(Math.max(...perSecond)).toBeLessThan(200); // 100 on average
  expect(Math.min(...perSecond)).toBeGreaterThan(40);
});
