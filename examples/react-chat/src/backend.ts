// The calls to the application's own backend (backend.py).
import type { UIMessage } from "ai";

export type OpenedChat = {
  serverUrl: string;
  messages: UIMessage[];
  session?: { publicAccessToken: string; lastEventId?: string; isStreaming?: boolean };
};

export type Token = { publicAccessToken: string };

export const openChat = (chatId: string) => call<OpenedChat>("GET", chatId);
export const startChat = (chatId: string) => call<Token>("POST", `${chatId}/start`);
export const freshToken = (chatId: string) => call<Token>("POST", `${chatId}/token`);

async function call<T>(method: string, path: string): Promise<T> {
  const response = await fetch(`/api/chats/${path}`, { method });
  if (!response.ok) throw new Error(`${method} /api/chats/${path}: ${response.status}`);
  return response.json();
}
