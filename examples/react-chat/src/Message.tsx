import type { InjectedMessage } from "@trigger.dev/sdk/chat/react";
import { isToolUIPart, type UIMessage } from "ai";
import { partsThatCount } from "./restarted";
import { ToolCard } from "./ToolCard";

type Part = UIMessage["parts"][number];
type Props = {
  message: UIMessage;
  injected: (part: Part) => InjectedMessage[];
  decide: (approvalId: string, approved: boolean) => void;
};

export function Message({ message, injected, decide }: Props) {
  return (
    <li className={`message ${message.role}`} data-message={message.id}>
      {partsThatCount(message.parts).map((part, index) => {
        if (part.type === "text") return <p key={index}>{part.text}</p>;
        if (part.type === "file") return <Attachment key={index} part={part} />;
        if (isToolUIPart(part)) return <ToolCard key={index} part={part} decide={decide} />;
        return injected(part).map(({ id, text }) => (
          <p key={id} className="injected">
            {text}
          </p>
        ));
      })}
    </li>
  );
}

function Attachment({ part }: { part: Extract<Part, { type: "file" }> }) {
  const name = part.filename ?? part.mediaType;
  if (part.mediaType.startsWith("image/")) return <img src={part.url} alt={name} />;
  return (
    <a href={part.url} download={name}>
      {name}
    </a>
  );
}
