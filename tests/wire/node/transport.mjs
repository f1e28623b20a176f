// What scenarios of the browser's transport have in common, outside of a browser.
import { auth, sessions } from "@trigger.dev/sdk";
import { TriggerChatTransport } from "@trigger.dev/sdk/chat";

export const baseURL = process.env.TRIGGER_API_URL;

export const user = (text) => ({ id: `u-${text}`, role: "user", parts: [{ type: "text", text }] });
export const textOf = (chunks) => chunks.map((chunk) => chunk.delta ?? "").join("");

export async function read(stream, until = () => false) {
  const chunks = [];
  for await (const chunk of stream) {
    chunks.push(chunk);
    if (until(chunks)) break;
  }
  return chunks;
}

export const token = (id) =>
  auth.createPublicToken({ scopes: { read: { sessions: id }, write: { sessions: id } } });

export const start = (task) => async ({ chatId, clientData }) => {
  const basePayload = { chatId, trigger: "preload", messages: [], metadata: clientData };
  const { publicAccessToken } = await sessions.start({
    type: "chat.agent",
    externalId: chatId,
    taskIdentifier: task,
    triggerConfig: { basePayload },
  });
  return { publicAccessToken };
};

export function transportOf(task, options = {}) {
  return new TriggerChatTransport({
    task,
    baseURL,
    startSession: start(task),
    accessToken: ({ chatId }) => token(chatId),
    ...options,
  });
}

export const send = async (transport, chatId, text) =>
  read(
    await transport.sendMessages({
      trigger: "submit-message",
      chatId,
      messages: [user(text)],
      abortSignal: undefined,
    }),
  );
