// Mounts hooks of @trigger.dev/react-hooks in a page that jsdom makes, plays all scenarios
// and prints what the components saw, by scenario, as one JSON line.
import { JSDOM } from "jsdom";

const dom = new JSDOM("<!doctype html><body></body>", { url: "http://localhost/" });
// React and SWR look for a browser when they are loaded, so this stands before their imports.
for (const name of ["window", "document", "navigator", "HTMLElement", "Node", "Event"])
  Object.defineProperty(globalThis, name, { value: dom.window[name], configurable: true });

const React = await import("react");
const { createRoot } = await import("react-dom/client");
const hooks = await import("@trigger.dev/react-hooks");
const { auth, batch, runs, sessions, tasks, wait } = await import("@trigger.dev/sdk");

const args = JSON.parse(process.argv[3]);
const baseURL = process.env.TRIGGER_API_URL;

let mounted;

// Renders a component that calls `useIt`; `until` waits for a rendered value.
function mount(useIt) {
  const seen = [];
  const waiting = new Set();
  let now;
  function Component() {
    now = useIt();
    seen.push(now);
    React.useEffect(() => {
      for (const check of waiting) check();
    });
    return null;
  }
  const root = createRoot(document.body.appendChild(document.createElement("div")));
  root.render(React.createElement(Component));
  mounted = root;
  return {
    seen,
    get now() {
      return now;
    },
    until(done) {
      return new Promise((resolve, reject) => {
        const check = () => {
          if (now === undefined || !done(now)) return;
          clearTimeout(late);
          waiting.delete(check);
          resolve(now);
        };
        const late = setTimeout(() => {
          reject(new Error(`never rendered: ${done}; now ${JSON.stringify(now)} ${now?.error}`));
        }, 20_000);
        waiting.add(check);
        check();
      });
    },
  };
}

const reading = (accessToken, more = {}) => ({ accessToken, baseURL, ...more });
const done = ({ run }) => run?.status === "COMPLETED";

const scenarios = {
  // useRun asks once, and again every refreshInterval until the run is final.
  async useRun() {
    const handle = await tasks.trigger("steps", {});
    const page = mount(() =>
      hooks.useRun(handle.id, reading(handle.publicAccessToken, { refreshInterval: 50 })),
    );
    const { run } = await page.until(done);
    return { status: run.status, output: run.output, id: run.id === handle.id };
  },

  // useRealtimeRun follows a run to its end; a token for another run is refused.
  async useRealtimeRun() {
    const handle = await tasks.trigger("steps", {});
    const completed = [];
    const page = mount(() =>
      hooks.useRealtimeRun(
        handle.id,
        reading(handle.publicAccessToken, { onComplete: (run) => completed.push(run.id) }),
      ),
    );
    const { run } = await page.until(done);
    await page.until(() => completed.length > 0);
    const steps = page.seen.map((one) => one.run?.metadata?.step).filter((n) => n !== undefined);
    return { output: run.output, completed: completed[0] === handle.id, steps };
  },

  async refused() {
    const other = await tasks.trigger("double", { n: 1 });
    const handle = await tasks.trigger("double", { n: 1 });
    const page = mount(() => hooks.useRealtimeRun(handle.id, reading(other.publicAccessToken)));
    const { error } = await page.until((now) => now.error);
    return { error: String(error.message), status: error.status };
  },

  async useRealtimeRunsWithTag() {
    const tag = `tag-${args.id}`;
    const token = await auth.createPublicToken({ scopes: { read: { tags: [tag] } } });
    const page = mount(() => hooks.useRealtimeRunsWithTag(tag, reading(token)));
    const ids = [];
    for (const n of [1, 2]) ids.push((await tasks.trigger("double", { n }, { tags: [tag] })).id);
    const all = await page.until(
      ({ runs: rows }) => rows.filter((run) => run.status === "COMPLETED").length === 2,
    );
    return { ids: ids.sort(), seen: all.runs.map((run) => run.id).sort() };
  },

  async useRealtimeBatch() {
    const handle = await tasks.batchTrigger("double", [1, 2, 3].map((n) => ({ payload: { n } })));
    const page = mount(() =>
      hooks.useRealtimeBatch(handle.batchId, reading(handle.publicAccessToken)),
    );
    const all = await page.until(
      ({ runs: rows }) => rows.filter((run) => run.status === "COMPLETED").length === 3,
    );
    return { doubled: all.runs.map((run) => run.output.doubled).sort() };
  },

  // The streams of a run are found by its row, in the `realtimeStreams` column.
  async useRealtimeRunWithStreams() {
    const handle = await tasks.trigger("narrator", { count: 3 });
    const page = mount(() =>
      hooks.useRealtimeRunWithStreams(handle.id, reading(handle.publicAccessToken)),
    );
    const { streams } = await page.until(
      (now) => now.streams.story?.length === 3 && now.streams.letters?.length === 3,
    );
    return { streams };
  },

  async useRealtimeStream() {
    const handle = await tasks.trigger("narrator", { count: 3 });
    const page = mount(() =>
      hooks.useRealtimeStream(handle.id, "story", reading(handle.publicAccessToken)),
    );
    const { parts } = await page.until((now) => now.parts?.length === 3);
    return { parts };
  },

  // A trigger token starts one run; the hook goes on with the token of the answer.
  async useTaskTrigger() {
    const token = await auth.createTriggerPublicToken("double");
    const page = mount(() => hooks.useTaskTrigger("double", reading(token)));
    await page.until((now) => now.submit);
    page.now.submit({ n: 21 }, { tags: [args.id] });
    const { handle } = await page.until((now) => now.handle);
    const ended = await runs.poll(handle.id, { pollIntervalMs: 50 });
    page.now.submit({ n: 22 });
    const { error } = await page.until((now) => now.error);
    return {
      token: typeof handle.publicAccessToken,
      task: handle.taskIdentifier,
      output: ended.output,
      tags: ended.tags,
      status: error.status,
    };
  },

  async useRealtimeTaskTrigger() {
    // Made within a second of the other one, it would be the same token but for this.
    const token = await auth.createTriggerPublicToken("double", { expirationTime: "20m" });
    const page = mount(() => hooks.useRealtimeTaskTrigger("double", reading(token)));
    await page.until((now) => now.submit);
    page.now.submit({ n: 21 });
    const { run } = await page.until(done);
    return { output: run.output };
  },

  async useRealtimeTaskTriggerWithStreams() {
    const token = await auth.createTriggerPublicToken("narrator");
    const page = mount(() => hooks.useRealtimeTaskTriggerWithStreams("narrator", reading(token)));
    await page.until((now) => now.submit);
    page.now.submit({ count: 2 });
    const { streams } = await page.until((now) => now.streams?.story?.length === 2);
    return { story: streams.story };
  },

  async useWaitToken() {
    const token = await wait.createToken({ timeout: "1h" });
    const run = await tasks.trigger("waiting", { token: token.id });
    const page = mount(() => hooks.useWaitToken(token.id, reading(token.publicAccessToken)));
    await page.until((now) => now.isReady);
    page.now.complete({ yes: true });
    await page.until((now) => now.isCompleted);
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    return { output: ended.output };
  },

  // The run reads what a page sends to it, in order.
  async useInputStreamSend() {
    const run = await tasks.trigger("listener", {});
    const page = mount(() =>
      hooks.useInputStreamSend("words", run.id, reading(run.publicAccessToken)),
    );
    await page.until((now) => now.isReady);
    for (const word of ["hello", "bye"]) {
      page.now.send(word);
      await page.until((now) => now.isLoading);
      await page.until((now) => !now.isLoading);
    }
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    return { output: ended.output, error: page.now.error ?? null };
  },

  // Only in the newer package: follows a channel of a session.
  async useSessionStream() {
    if (!hooks.useSessionStream) return { absent: true };
    const session = await sessions.start({
      type: "plain",
      externalId: args.id,
      taskIdentifier: "double",
      triggerConfig: { basePayload: { n: 1 } },
    });
    const page = mount(() =>
      hooks.useSessionStream(args.id, reading(session.publicAccessToken, { io: "in" })),
    );
    await sessions.open(args.id).in.send({ hello: "there" });
    const { records } = await page.until((now) => now.records?.length > 0);
    return { records: records.map((one) => JSON.stringify(one)) };
  },
};

// The hooks call what they start without waiting for it; a page's console shows such an error, and
// the hook renders it.
process.on("unhandledRejection", () => {});

// One after the other, so that the packages are loaded once; a failure is an answer too.
const results = {};
for (const [name, play] of Object.entries(scenarios)) {
  try {
    results[name] = await play();
  } catch (error) {
    results[name] = { failed: String(error.stack ?? error) };
  }
  mounted?.unmount();
}
console.log(JSON.stringify(results));
process.exit(0);
