import type { TriggerChatTransport } from "@trigger.dev/sdk/chat";
import type { UIMessage } from "ai";
import { useCallback, useEffect, useRef } from "react";
import { openChat } from "./backend";

type Messages = UIMessage[];
type SetMessages = (messages: Messages | ((mine: Messages) => Messages)) => void;

function useLatest<T>(value: T) {
  const latest = useRef(value);
  latest.current = value;
  return latest;
}

/**
 * Shows what another tab tells of this chat. Its last words may come when this tab has begun a turn
 * of its own: then they complete the messages that both know, and take none away.
 */
export function useFollowing(busy: boolean, setMessages: SetMessages) {
  const ownTurn = useLatest(busy);
  return useCallback(
    (theirs: Messages) =>
      setMessages((mine) =>
        ownTurn.current ? mine.map((own) => theirs.find(({ id }) => id === own.id) ?? own) : theirs,
      ),
    [ownTurn, setMessages],
  );
}

/**
 * Catches up with other devices when the page is looked at again. Without it the next answer would
 * be read from a cursor of long ago, and begin with one that was given elsewhere.
 */
export function useCatchingUp(
  chatId: string,
  transport: TriggerChatTransport,
  busy: boolean,
  setMessages: SetMessages,
) {
  const ownTurn = useLatest(busy);
  useEffect(() => {
    async function look() {
      if (ownTurn.current) return;
      const { messages, session } = await openChat(chatId);
      const mine = Number(transport.getSession(chatId)?.lastEventId ?? -1);
      if (ownTurn.current || !session?.lastEventId || Number(session.lastEventId) <= mine) return;
      transport.setSession(chatId, { ...session, isStreaming: false });
      setMessages(messages);
    }
    const looked = () => void look().catch(console.error);
    addEventListener("focus", looked);
    return () => removeEventListener("focus", looked);
  }, [chatId, transport, ownTurn, setMessages]);
}
