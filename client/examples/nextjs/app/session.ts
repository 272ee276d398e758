/** The session is the backbone's refresh token, in a cookie that no script can read. */

import { cookies } from "next/headers";

const COOKIE = "session";

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

/** False: the backbone does not know them. */
export async function open(username: string, password: string): Promise<boolean> {
  const answer = await ask("/token/", { username, password });
  if (answer.status === 401) return false;
  if (!answer.ok) throw new Error(`/token/ answered ${answer.status}`);
  const { refresh } = (await answer.json()) as { refresh: string };
  (await cookies()).set(COOKIE, refresh, {
    httpOnly: true,
    sameSite: "lax",
    secure: process.env.NODE_ENV === "production",
  });
  return true;
}

export async function close(): Promise<void> {
  (await cookies()).delete(COOKIE);
}

/** A fresh access token; undefined when there is no session, or it is over. */
export async function accessToken(): Promise<string | undefined> {
  const refresh = (await cookies()).get(COOKIE)?.value;
  if (refresh === undefined) return undefined;
  const answer = await ask("/token/refresh/", { refresh });
  if (answer.status === 401) {
    await close();
    return undefined;
  }
  if (!answer.ok) throw new Error(`/token/refresh/ answered ${answer.status}`);
  const { access } = (await answer.json()) as { access: string };
  return access;
}
