/** A client's reaction to a close code (docs/protocol.md, "Close codes"). */
export type Consequence = "stop" | "reconnect" | "fresh token" | "pause";

const STOP = [1000, 1002, 1007, 1009, 4400, 4403, 4409];

/** The reaction to a close code: `stop` means that another attempt would change nothing. */
export function consequence(code: number): Consequence {
  if (STOP.includes(code)) return "stop";
  if (code === 4401) return "fresh token";
  return code === 4429 ? "pause" : "reconnect";
}
