import type { FetchLike } from "./options.js";

/** Why there is no connection. */
export interface Refusal {
  /** The status of the refused handshake, or the close code of a connection; 0 if the server said nothing. */
  status: number;
  /** The server's error code, such as `token_expired`; see docs/clients.md for the client's own. */
  code: string;
  /** One sentence. */
  message: string;
}

/** A refusal in the server's words, and the least wait before another attempt, in milliseconds, if it named one. */
export type Verdict = { status: number; code: string; message: unknown; wait?: number };

/** The longest `Retry-After` that is accepted, in milliseconds. */
const LONGEST = 600_000;

/**
 * Asks why a handshake was refused, which a browser cannot see.
 *
 * @returns Undefined if the server would accept a connection now. Rejects without a network.
 */
export async function verdict(fetch: FetchLike, url: string, token: string, signal: object): Promise<Verdict | undefined> {
  const ask = (how: object): ReturnType<FetchLike> => fetch(url.replace(/^ws/, "http"), { cache: "no-store", signal, ...how });
  let response: Awaited<ReturnType<FetchLike>>;
  try {
    response = await ask({ headers: { Authorization: `Bearer ${token}` } });
  } catch (error) {
    const { location: page } = globalThis as Partial<typeof globalThis>;
    if (page === undefined) throw error;
    await ask({ mode: "no-cors" }); // there is an answer, but not for this page
    const message = `no answer for ${page.origin}: is it in the server's ALLOWED_ORIGINS?`;
    return { status: 0, code: "unreadable", message };
  }
  const { status } = response;
  if (status === 204) return undefined;
  const body = (await response.json().catch(() => undefined)) as { error?: Partial<Verdict> } | undefined;
  const { code = `http_${status}`, message = "no answer of the server" } = body?.error ?? {};
  const after = response.headers.get("Retry-After");
  const wait = Number(after) * 1000 || Date.parse(after as string) - Date.now();
  return { status, code: String(code), message, wait: Math.min(wait || 0, LONGEST) };
}
