// Prints what the official packages export: by entry point, functions and objects of functions.
const entries = ["@trigger.dev/sdk", "@trigger.dev/sdk/chat", "@trigger.dev/sdk/chat/react"];
if (process.argv[2] === "hooks") entries.push("@trigger.dev/react-hooks");

const found = {};
for (const entry of entries) {
  let module;
  try {
    module = await import(entry);
  } catch (error) {
    if (error.code === "ERR_PACKAGE_PATH_NOT_EXPORTED") continue;
    throw error;
  }
  const names = [];
  for (const [name, value] of Object.entries(module)) {
    if (typeof value === "function") names.push(name);
    else if (value && typeof value === "object" && !Array.isArray(value))
      for (const [member, inner] of Object.entries(value))
        if (typeof inner === "function") names.push(`${name}.${member}`);
  }
  found[entry] = names.sort();
}
console.log(JSON.stringify(found));
