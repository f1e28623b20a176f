import { getToolName, isToolUIPart } from "ai";
import type { ChatTransport, UIMessage, UIMessageChunk } from "ai";

type Part = UIMessage["parts"][number];

/**
 * A transport whose resumed answers begin with what their message holds already.
 *
 * `useChat` builds a resumed message from nothing, and a turn that carries out an approved call
 * streams only what is new of its message. Without the older parts a page that is loaded in the
 * middle of such a turn would meet the output of a call it has never seen, and fail.
 */
export function resuming(
  transport: ChatTransport<UIMessage>,
  message: UIMessage | undefined,
): ChatTransport<UIMessage> {
  let loading = true;
  return {
    sendMessages: (options) => transport.sendMessages(options),
    reconnectToStream: async (options) => {
      const stream = await transport.reconnectToStream(options);
      if (!stream || !loading || message?.role !== "assistant") return stream;
      loading = false; // what `useChat` resumes later on the same page it has built itself
      return stream.pipeThrough(afterStart(message));
    },
  };
}

function afterStart(message: UIMessage) {
  let told = false;
  return new TransformStream<UIMessageChunk, UIMessageChunk>({
    transform(chunk, controller) {
      controller.enqueue(chunk);
      if (told || chunk.type !== "start" || chunk.messageId !== message.id) return;
      told = true;
      message.parts.flatMap(chunksOf).forEach((older) => controller.enqueue(older));
    },
  });
}

function chunksOf(part: Part, index: number): UIMessageChunk[] {
  const id = `older-${index}`;
  if (part.type === "step-start") return [{ type: "start-step" }];
  if (part.type === "text")
    return [
      { type: "text-start", id },
      { type: "text-delta", id, delta: part.text },
      { type: "text-end", id },
    ];
  if (!isToolUIPart(part)) return [];
  const { toolCallId, input } = part;
  const called: UIMessageChunk = {
    type: "tool-input-available",
    toolCallId,
    toolName: getToolName(part),
    input,
    dynamic: part.type === "dynamic-tool",
  };
  if (part.state === "output-available")
    return [called, { type: "tool-output-available", toolCallId, output: part.output }];
  if (part.state === "output-error")
    return [called, { type: "tool-output-error", toolCallId, errorText: part.errorText }];
  if (part.state === "output-denied") return [called, { type: "tool-output-denied", toolCallId }];
  return [called];
}
