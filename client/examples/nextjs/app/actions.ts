"use server";

import { redirect } from "next/navigation";
import * as session from "./session";

export async function signIn(form: FormData): Promise<void> {
  const known = await session.open(String(form.get("username")), String(form.get("password")));
  redirect(known ? "/" : "/?refused=1");
}

export async function signOut(): Promise<void> {
  await session.close();
  redirect("/");
}
