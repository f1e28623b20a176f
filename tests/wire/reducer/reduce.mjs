// Reduces chunk streams with the AI SDK. One JSON job per line on standard input:
// {seed, chunks}; one JSON answer per line on standard output: {message, refused}.
import { createInterface } from "node:readline";
import { readUIMessageStream } from "ai";

async function reduce({ seed, chunks }) {
  let message = null;
  let refused = false;
  const stream = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const messages = readUIMessageStream({
    message: seed ?? undefined,
    stream,
    // An `error` chunk is reported here as well, as a plain Error: it refuses nothing.
    onError: (error) => {
      if (error?.name === "AI_UIMessageStreamError") refused = true;
    },
  });
  for await (const snapshot of messages) message = snapshot;
  return { message, refused };
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await reduce(JSON.parse(line))) + "\n");
}
