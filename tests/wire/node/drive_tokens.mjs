// What the browser's transport does when its token is refused. Usage as for drive.mjs; tokens that
// cannot be made by the client itself come as arguments.
import { auth } from "@trigger.dev/sdk";
import { read, send, textOf, token, transportOf, user } from "./transport.mjs";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

// Counts how often a token was asked for, and gives those of `tokens` first.
function giving(tokens = []) {
  const left = [...tokens];
  const asked = { times: 0 };
  const accessToken = async ({ chatId }) => (asked.times++, left.shift() ?? (await token(chatId)));
  return { asked, accessToken };
}

// Statuses of all requests, in order.
function watching() {
  const seen = [];
  const fetchIt = async (url, init, { endpoint }) => {
    const response = await fetch(url, init);
    seen.push([endpoint, response.status]);
    return response;
  };
  return { seen, fetch: fetchIt };
}

// A stream whose connection breaks once, when `hasExpired` says so and something has come.
function breaking(response, hasExpired) {
  const cut = new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk);
      if (hasExpired()) controller.error(new TypeError("the network is gone"));
    },
  });
  const { status, headers } = response;
  return new Response(response.body.pipeThrough(cut), { status, headers });
}

const failed = (error) => ({ name: error.name, status: error.status, message: error.message });

const scenarios = {
  // Two turns, and more time between them than a token lives.
  async between() {
    const { asked, accessToken } = giving();
    const { seen, fetch } = watching();
    const transport = transportOf("brief", { accessToken, fetch });
    const first = textOf(await send(transport, args.id, "one"));
    await new Promise((resolve) => setTimeout(resolve, 2500));
    const second = textOf(await send(transport, args.id, "two"));
    return { first, second, asked: asked.times, seen };
  },

  // The connection breaks in mid-answer, after the token has expired: the stream comes back with
  // the token it began with. `renewing` is what the example of a front end does about it.
  async atReconnect() {
    const { asked, accessToken } = giving();
    await transportOf("patient").preload(args.id);
    const short = await auth.createPublicToken({
      scopes: { read: { sessions: args.id }, write: { sessions: args.id } },
      expirationTime: "3s",
    });
    const { exp } = JSON.parse(Buffer.from(short.split(".")[1], "base64url"));
    const expired = () => Date.now() >= exp * 1000;
    const seen = [];
    let broken = false;
    const fetchIt = async (url, init, { endpoint, chatId }) => {
      let response = await fetch(url, init);
      seen.push([endpoint, response.status]);
      if (args.renewing && endpoint === "out" && response.status === 401) {
        const headers = new Headers(init.headers);
        headers.set("Authorization", `Bearer ${await accessToken({ chatId })}`);
        response = await fetch(url, { ...init, headers });
        seen.push([endpoint, response.status]);
      }
      if (endpoint !== "out" || broken) return response;
      broken = true;
      return breaking(response, expired);
    };
    const sessions = { [args.id]: { publicAccessToken: short } };
    const transport = transportOf("patient", { sessions, accessToken, fetch: fetchIt });
    const stream = await transport.sendMessages({
      trigger: "submit-message",
      chatId: args.id,
      messages: [user("count")],
      abortSignal: undefined,
    });
    const chunks = [];
    let error = null;
    try {
      for await (const chunk of stream) chunks.push(chunk);
    } catch (caught) {
      error = failed(caught);
    }
    const seenText = textOf(chunks);
    if (!error) return { text: seenText, error, seen };
    // What a page does when it is loaded again: it reads on after the cursor its backend keeps,
    // which is that of the turn before.
    const again = { [args.id]: { publicAccessToken: await token(args.id) } };
    const reloaded = transportOf("patient", { sessions: again });
    const whole = textOf(await read(await reloaded.reconnectToStream({ chatId: args.id })));
    return { text: seenText, error, whole, seen };
  },

  // The first token is no good for whatever reason; the next one, from the application, is.
  async refused() {
    const { asked, accessToken } = giving(args.more);
    const { seen, fetch } = watching();
    const sessions = { [args.id]: { publicAccessToken: args.token } };
    await transportOf("remembering").preload(args.id);
    const transport = transportOf("remembering", { sessions, accessToken, fetch });
    try {
      const text = textOf(await send(transport, args.id, "one"));
      return { text, error: null, asked: asked.times, seen };
    } catch (error) {
      return { text: "", error: failed(error), asked: asked.times, seen };
    }
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
