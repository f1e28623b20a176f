import { useChat } from "@ai-sdk/react";
import {
  useMultiTabChat,
  usePendingMessages,
  useTriggerChatTransport,
} from "@trigger.dev/sdk/chat/react";
import { lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";
import { useEffect, useMemo, useRef } from "react";
import { freshToken, startChat, type OpenedChat } from "./backend";
import { Composer } from "./Composer";
import { Message } from "./Message";
import { renewing } from "./renewing";
import { resuming } from "./resume";
import { useCatchingUp, useFollowing } from "./tabs";

export function Chat({ chatId, opened }: { chatId: string; opened: OpenedChat }) {
  const transport = useTriggerChatTransport({
    task: "assistant",
    baseURL: opened.serverUrl,
    startSession: ({ chatId }) => startChat(chatId),
    accessToken: async ({ chatId }) => (await freshToken(chatId)).publicAccessToken,
    fetch: renewing,
    // A chat that exists already: read on after the messages that are shown.
    sessions: opened.session && { [chatId]: opened.session },
    multiTab: true,
  });
  const chat = useChat({
    id: chatId,
    transport: useMemo(() => resuming(transport, opened.messages.at(-1)), [transport, opened]),
    messages: opened.messages,
    // Follow an answer that is being given; ends at once when there is none.
    resume: true,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
    // `useMultiTabChat` shows other tabs how the answer grows, and may leave out its last words.
    onFinish: ({ messages }) => transport.broadcastMessages(chatId, messages),
  });
  // The agent boots while its user is still typing, and every tab of a new chat has a session
  // whose cursor the other tabs keep current.
  useEffect(() => void transport.preload(chatId).catch(console.error), [transport, chatId]);

  const { messages, setMessages, sendMessage, status, error } = chat;
  const busy = status === "submitted" || status === "streaming";
  const following = useFollowing(busy, setMessages);
  const { isReadOnly } = useMultiTabChat(transport, chatId, messages, following);
  useCatchingUp(chatId, transport, busy, setMessages);
  const pending = usePendingMessages({
    transport,
    chatId,
    status,
    messages,
    setMessages,
    sendMessage,
  });

  const last = messages.at(-1);
  const end = useRef<HTMLDivElement>(null);
  useEffect(() => void end.current?.scrollIntoView({ block: "end" }), [messages, pending.pending]);
  return (
    <main data-status={status} data-read-only={isReadOnly}>
      {messages.length === 0 && <Welcome send={(text) => void sendMessage({ text })} />}
      <ol className="messages">
        {messages.map((message) => (
          <Message
            key={message.id}
            message={message}
            injected={(part) => pending.getInjectedMessages(part)}
            decide={(id, approved) => void chat.addToolApprovalResponse({ id, approved })}
          />
        ))}
        {pending.pending.map(({ id, text }) => (
          <li key={id} className="message user pending">
            {text}
          </li>
        ))}
      </ol>
      {error && (
        <p className="error" role="alert">
          {error.message}{" "}
          {last?.role === "user" && <button onClick={() => void sendMessage()}>Send again</button>}
        </p>
      )}
      <div className="actions">
        {/* Not `chat.stop`: on a resumed answer newer clients take it for a closed tab. */}
        {busy && <button onClick={() => void transport.stopGeneration(chatId)}>Stop</button>}
        {!busy && !isReadOnly && last?.role === "assistant" && (
          <button onClick={() => void chat.regenerate()}>Regenerate</button>
        )}
        <span className="quiet" role="status">
          {isReadOnly ? "active in another tab" : SAID[status]}
        </span>
      </div>
      <Composer
        disabled={isReadOnly}
        // A message in mid-answer joins the answer at its next step, or becomes the next turn.
        send={(text, files) =>
          busy && !files ? pending.steer(text) : void sendMessage({ text, files })
        }
      />
      <div ref={end} />
    </main>
  );
}

const SAID = { submitted: "thinking…", streaming: "answering…", ready: "", error: "" };
const IDEAS = ["count to 30", "what is the weather?", "send email"];

function Welcome({ send }: { send: (text: string) => void }) {
  return (
    <section className="welcome">
      <h1>A chat that survives</h1>
      <p className="quiet">Reload it, open it twice, or kill the worker while it answers. Try:</p>
      {IDEAS.map((idea) => (
        <button key={idea} onClick={() => send(idea)}>
          {idea}
        </button>
      ))}
    </section>
  );
}
