import { isToolUIPart, type UIMessage } from "ai";

type Part = UIMessage["parts"][number];

/**
 * The parts of an answer that count.
 *
 * When the worker that gives an answer dies, the next one begins it anew in the same message and
 * says so with a `data-restarted` part. What the turn had shown before it is void. A turn that
 * carries out an approved call goes on in a message with older parts: these stay, and the last of
 * them is the call that was decided.
 */
export function partsThatCount(parts: Part[]): Part[] {
  const restart = parts.findLastIndex((part) => part.type === "data-restarted");
  if (restart < 0) return parts;
  const decided = parts
    .slice(0, restart)
    .findLastIndex((part) => isToolUIPart(part) && part.approval?.approved !== undefined);
  return [...parts.slice(0, decided + 1), ...parts.slice(restart + 1)];
}
