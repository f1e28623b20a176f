import { freshToken } from "./backend";

type Context = { endpoint: "in" | "out"; chatId: string };

/**
 * A `fetch` for the transport that renews a refused token also in mid-answer.
 *
 * The transport asks for another token when it sends and when it begins to read. A stream whose
 * connection broke comes back by itself, with the token it began with, and gives up if that one has
 * expired in the meantime.
 */
export async function renewing(url: string, init: RequestInit, { endpoint, chatId }: Context) {
  const response = await fetch(url, init);
  if (endpoint !== "out" || response.status !== 401) return response;
  const { publicAccessToken } = await freshToken(chatId);
  const headers = new Headers(init.headers);
  headers.set("Authorization", `Bearer ${publicAccessToken}`);
  return fetch(url, { ...init, headers });
}
