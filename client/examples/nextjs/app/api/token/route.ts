import { accessToken } from "../../session";

/** The access token of who is signed in, as text; 401 when nobody is (any more). */
export async function GET(): Promise<Response> {
  const token = await accessToken();
  if (token === undefined) return new Response("not signed in", { status: 401 });
  return new Response(token, { headers: { "Cache-Control": "no-store" } });
}
