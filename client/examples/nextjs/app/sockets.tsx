"use client";

import type { ReactNode } from "react";
import { SocketProvider } from "realtime-sockets/react";

async function getToken(): Promise<string> {
  const response = await fetch("/api/token");
  if (response.status === 401) window.location.assign("/"); // the session is over
  if (!response.ok) throw new Error(`/api/token answered ${response.status}`);
  return response.text();
}

/** A server component cannot pass a function, so `getToken` is defined here. */
export function Sockets({ hub, children }: { hub: string; children: ReactNode }) {
  return <SocketProvider namespaces={{ hub: { url: hub, getToken } }}>{children}</SocketProvider>;
}
