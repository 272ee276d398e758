/** The session is the backbone's refresh token, in a cookie that scripts cannot read. */

import { cookies } from "next/headers";

const COOKIE = "session";
const SHARED_MS = 10_000;

interface Pair {
  access: string;
  refresh: string;
}

/** A refresh token is valid once, and two tabs may use the same one: they share the answer for `SHARED_MS`. */
const renewals = new Map<string, Promise<Pair | undefined>>();

async function ask(path: string, body: object): Promise<Response> {
  return fetch((process.env.BACKBONE_URL ?? "http://127.0.0.1:8000") + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    cache: "no-store",
  });
}

export async function isOpen(): Promise<boolean> {
  return (await cookies()).has(COOKIE);
}

/** Opens a session; false if the backbone refuses the username or password. */
export async function open(username: string, password: string): Promise<boolean> {
  const answer = await ask("/token/", { username, password });
  if (answer.status === 401) return false;
  if (!answer.ok) throw new Error(`/token/ answered ${answer.status}`);
  await keep((await answer.json()) as Pair);
  return true;
}

async function keep({ refresh }: Pair): Promise<void> {
  (await cookies()).set(COOKIE, refresh, {
    httpOnly: true,
    sameSite: "lax",
    secure: process.env.NODE_ENV === "production",
  });
}

export async function close(): Promise<void> {
  (await cookies()).delete(COOKIE);
}

/** A fresh access token, or undefined without a valid session. Stores the next refresh token in the cookie. */
export async function accessToken(): Promise<string | undefined> {
  const refresh = (await cookies()).get(COOKIE)?.value;
  if (refresh === undefined) return undefined;
  const pair = await renewed(refresh);
  if (pair === undefined) {
    await close();
    return undefined;
  }
  await keep(pair);
  return pair.access;
}

function renewed(refresh: string): Promise<Pair | undefined> {
  let renewal = renewals.get(refresh);
  if (renewal === undefined) {
    renewal = renew(refresh);
    renewals.set(refresh, renewal);
    const forget = () => renewals.delete(refresh);
    renewal.then(() => setTimeout(forget, SHARED_MS), forget);
  }
  return renewal;
}

async function renew(refresh: string): Promise<Pair | undefined> {
  const answer = await ask("/token/refresh/", { refresh });
  if (answer.status === 401) return undefined;
  if (!answer.ok) throw new Error(`/token/refresh/ answered ${answer.status}`);
  return (await answer.json()) as Pair;
}
