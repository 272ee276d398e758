import { accessToken } from "../../session";

/** The signed-in user's access token, as text; 401 without a valid session. */
export async function GET(): Promise<Response> {
  const token = await accessToken();
  if (token === undefined) return new Response("not signed in", { status: 401 });
  return new Response(token, { headers: { "Cache-Control": "no-store" } });
}
