import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { openChat, type OpenedChat } from "./backend";
import { Chat } from "./Chat";
import "./style.css";

// The address names the chat, so that a reload, a second tab or another device finds it again.
function chatIdOfAddress(): string {
  const address = new URL(location.href);
  const chatId = address.searchParams.get("chat") ?? crypto.randomUUID();
  address.searchParams.set("chat", chatId);
  history.replaceState(null, "", address);
  return chatId;
}

function Page({ chatId }: { chatId: string }) {
  const [opened, setOpened] = useState<OpenedChat>();
  const [error, setError] = useState<Error>();
  useEffect(() => {
    openChat(chatId).then(setOpened, setError);
  }, [chatId]);
  if (error) return <p className="error">This chat cannot be opened: {error.message}</p>;
  return opened ? <Chat chatId={chatId} opened={opened} /> : <p className="quiet">Opening…</p>;
}

// Not in `StrictMode`: it mounts twice while developing, and the second `resume` of `useChat` ends
// the first one, whose stream the transport gives only once.
createRoot(document.getElementById("root")!).render(<Page chatId={chatIdOfAddress()} />);
