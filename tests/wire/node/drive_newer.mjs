// What clients after 4.5.0 say and expect (wire-protocol §21). Usage as for drive.mjs.
import { apiClientManager } from "@trigger.dev/core/v3";
import { runs, sessions, tasks } from "@trigger.dev/sdk";
import { read, send, textOf, token, transportOf, user } from "./transport.mjs";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

const refusal = (error) => ({
  name: error.name,
  status: error.status,
  code: error.code,
  closedReason: error.closedReason,
  message: String(error.message),
});
const refused = (work) => work.then(() => null, refusal);
const client = () => apiClientManager.clientOrThrow();

async function sending(transport, text) {
  return transport.sendMessages({
    trigger: "submit-message",
    chatId: args.id,
    messages: [user(text)],
    abortSignal: undefined,
  });
}

// Resolves when the next request to a path that ends so has been answered.
function answered(path) {
  const plain = globalThis.fetch;
  return new Promise((resolve) => {
    globalThis.fetch = async (url, init) => {
      const response = await plain(url, init);
      if (new URL(String(url.url ?? url)).pathname.endsWith(path)) {
        globalThis.fetch = plain;
        resolve();
      }
      return response;
    };
  });
}

const scenarios = {
  // The number of the message that is being answered, which the append has told.
  async seq() {
    const inputs = [];
    const transport = transportOf("remembering", {
      onSessionChange: (_, session) => inputs.push(session?.activeInputSeq),
    });
    await send(transport, args.id, "one");
    await send(transport, args.id, "two");
    return { inputs: [...new Set(inputs.filter((seq) => seq !== undefined))] };
  },

  async closed() {
    const events = [];
    const transport = transportOf("remembering", { onEvent: (event) => events.push(event) });
    await send(transport, args.id, "one");
    await sessions.close(args.id, { reason: "enough" });
    const error = await refused(send(transport, args.id, "two"));
    const locally = await refused(send(transport, args.id, "three"));
    const told = events.filter(({ type }) => type === "session-closed");
    return {
      error,
      locally,
      told: told.map(({ reason, source }) => ({ reason, source })),
      status: transport.sessionStatus(args.id),
      reason: transport.sessionClosedReason(args.id),
    };
  },

  // Control records that no agent of ours writes, written by a guest in mid-answer.
  async controls() {
    const events = [];
    const transport = transportOf("counting", { onEvent: (event) => events.push(event.type) });
    const chunks = [];
    let written = false;
    for await (const chunk of await sending(transport, "count")) {
      chunks.push(chunk);
      if (written || !textOf(chunks).includes("3 ")) continue;
      written = true;
      const { out } = sessions.open(args.id);
      await out.writeControl("pending-version", []);
      if (args.closing) await out.writeControl("session-closed", [["session-closed-reason", "x"]]);
    }
    const next = args.closing ? null : textOf(await send(transport, args.id, "again"));
    return { text: textOf(chunks), next, events, status: transport.sessionStatus?.(args.id) };
  },

  // A page that was told that an answer is being given, when it is over already.
  async settled() {
    await send(transportOf("remembering"), args.id, "one");
    const publicAccessToken = await token(args.id);
    const settled = [];
    const transport = transportOf("remembering", {
      sessions: { [args.id]: { publicAccessToken, isStreaming: true } },
      fetch: async (url, init, { endpoint }) => {
        const response = await fetch(url, init);
        if (endpoint === "out") settled.push(response.headers.get("X-Session-Settled"));
        return response;
      },
    });
    const stream = await transport.reconnectToStream({ chatId: args.id });
    const text = textOf(await read(stream));
    return { text, settled, isStreaming: transport.getSession(args.id).isStreaming };
  },

  // A reader without a cursor that wants only what comes from now on.
  async latest() {
    const transport = transportOf("remembering");
    await send(transport, args.id, "one");
    const leaving = new AbortController();
    const there = answered("/out");
    const stream = await client().subscribeToSessionStream(args.id, "out", {
      from: "latest",
      signal: leaving.signal,
      timeoutInSeconds: 20,
    });
    const reading = read(stream, (chunks) => chunks.at(-1).type === "finish");
    await there; // before the next turn begins
    await send(transport, args.id, "two");
    const chunks = await reading;
    leaving.abort();
    return { text: textOf(chunks) };
  },

  // Named side channels, transcripts and packets by field: not offered, and said so at once.
  async absent() {
    await send(transportOf("remembering"), args.id, "one");
    const side = sessions.open(args.id).channel("side");
    const reading = side.out.read({ timeoutInSeconds: 20 });
    return {
      send: await refused(side.in.send({ n: 1 })),
      read: await refused(reading.then((stream) => read(stream))),
      transcript: await refused(client().getSessionTranscript(args.id, { limit: 1 })),
    };
  },

  async publicTokens() {
    await send(transportOf("remembering"), args.id, "one");
    const scopes = [`read:sessions:${args.id}`, `write:sessions:${args.id}`];
    const made = await client().createPublicToken({ scopes, expirationTime: "5m" });
    const sessionsOption = { [args.id]: { publicAccessToken: made.token } };
    const transport = transportOf("remembering", {
      sessions: sessionsOption,
      accessToken: () => Promise.reject(new Error("the first token works")),
    });
    const chunks = await read(await sending(transport, "two"));
    return { text: textOf(chunks).slice(0, 40) };
  },

  // A replay that is to differ is refused; a plain one runs.
  async replay() {
    const run = await tasks.trigger("echo", { n: 1 });
    const plain = await runs.replay(run.id);
    const changed = await refused(runs.replay(run.id, { tags: ["again"] }));
    return { plain: plain.id !== run.id, changed };
  },

  // The packet of a large payload: asked for by field, found by its name.
  async packet() {
    const asked = [];
    const plain = globalThis.fetch;
    globalThis.fetch = async (url, init) => {
      const response = await plain(url, init);
      asked.push([new URL(String(url.url ?? url)).pathname.replace(/run_\w+/, "RUN"), response.status]);
      return response;
    };
    const run = await tasks.trigger("echo", { padding: "x".repeat(600_000) });
    const name = decodeURIComponent(asked[0][0].split("/").at(-1));
    asked.length = 0;
    const { presignedUrl } = await client().getRunPacketUrl(run.id, "payload", name);
    const payload = await (await plain(presignedUrl)).json();
    return { bytes: payload.json?.padding.length ?? payload.padding.length, asked };
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario ${scenario}: ${Object.keys(scenarios).join(", ")}`);
const timer = setTimeout(() => {
  console.error(`scenario ${scenario} took longer than 60 s`);
  process.exit(3);
}, 60_000);
console.log(JSON.stringify(await run()));
clearTimeout(timer);
process.exit(0);
