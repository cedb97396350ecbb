// The page: a conversation where the model has a template, else a text that it goes on with.

const $ = id => document.getElementById(id);
const isPlain = document.body.dataset.template !== "yes";
const store = new Store();
let running = null; // the AbortController of the answer that is being written
let model = null;

// -- what is shown -----------------------------------------------------------------------------

function showAll() {
  showList();
  showError("");
  $("system").value = store.current ? store.current.system : store.settings.system ?? "";
  if (isPlain) { $("input").value = store.current?.text ?? ""; updateTools(); return; }
  const chat = store.current;
  $("log").replaceChildren(
    ...(chat?.messages.length ? chat.messages.map(shown) : [welcome()]));
  updateTools();
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function welcome() {
  return element("div", { class: "empty" },
    element("h2", {}, model?.id ?? "tenp-edge"),
    element("p", {}, "Runs on this server. Nothing leaves it."));
}

function showList() {
  $("chats").replaceChildren(...store.chats.map(chat => {
    const current = chat === store.current ? "true" : null;
    const title = chat.title || "New conversation";
    const open = () => { stop(); store.current = chat; store.save(); showAll(); closeDrawer(); };
    const remove = () => {
      if (!confirm(`Delete "${title}"?`)) return;
      if (chat === store.current) stop();
      store.remove(chat); showAll(); $("new").focus();
    };
    return element("li", {},
      element("button", { type: "button", class: "title", "aria-current": current, onclick: open }, title),
      element("button", { type: "button", class: "delete", "aria-label": `Delete ${title}`, onclick: remove }, "✕"));
  }));
}

function shown(message) {
  const text = element("div", { class: "text" });
  const box = element("article", { class: message.role, "aria-label": message.role === "user" ? "You" : "Model" }, text, element("div", { class: "tools" }));
  fill(box, message);
  return box;
}

function fill(box, message) {
  const text = box.querySelector(".text");
  if (message.role === "user") { text.textContent = message.content; return; }
  const { thought, answer, thinking } = parted(message.content);
  const thoughts = [message.reasoning, thought].filter(Boolean).join("\n");
  const open = text.querySelector("details")?.open ?? false;
  text.replaceChildren();
  if (thoughts) {
    const busy = thinking || (box.classList.contains("busy") && !answer);
    const folded = element("details", { class: "thinking" },
      element("summary", {}, busy ? "Thinking …" : "Thoughts"), element("div", {}, thoughts));
    folded.open = open;
    text.append(folded);
  }
  render(answer, text);
}

// The buttons below every message: only those that make sense now.
function updateTools() {
  const busy = running !== null;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("undo").hidden = busy || !isPlain || store.current?.before === undefined;
  $("send").textContent = isPlain ? "Continue" : "Send";
  if (isPlain) { $("input").readOnly = busy; return; }
  const messages = store.current?.messages ?? [];
  [...$("log").children].forEach((box, at) => {
    const tools = box.querySelector(".tools"), message = messages[at];
    if (!tools || !message) return;
    tools.replaceChildren();
    if (message.stats) tools.append(element("span", { class: "fine" }, message.stats));
    if (busy) return;
    const button = (label, action) =>
      element("button", { type: "button", class: "quiet", onclick: action }, label);
    if (message.role === "user") { tools.append(button("Edit", () => edit(at))); return; }
    const copy = button("Copy", () => copyText(parted(message.content).answer, copy));
    tools.append(copy);
    if (at === messages.length - 1) tools.append(button("Regenerate", () => regenerate()));
  });
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// -- what is done ------------------------------------------------------------------------------

function send() {
  const content = $("input").value;
  if (running) return;
  if (isPlain) { go(); return; }
  if (!content.trim()) return;
  const chat = store.open();
  chat.messages.push({ role: "user", content });
  chat.title ||= content.trim().split("\n")[0].slice(0, 60);
  $("input").value = "";
  grow();
  store.list();
  showAll();
  answer();
}

function regenerate() {
  const { messages } = store.current;
  while (messages.at(-1)?.role === "assistant") messages.pop();
  showAll();
  answer();
}

function edit(at) {
  const { messages } = store.current, box = $("log").children[at];
  const field = element("textarea", { class: "edit", rows: "4", "aria-label": "Edit the message" });
  field.value = messages[at].content;
  const save = () => {
    if (!field.value.trim()) return;
    messages.splice(at, messages.length, { role: "user", content: field.value });
    showAll();
    answer();
  };
  const cancel = () => { showAll(); $("log").children[at].querySelector("button")?.focus(); };
  field.addEventListener("keydown", event => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  box.replaceChildren(field, element("div", { class: "tools" },
    element("button", { type: "button", onclick: cancel }, "Cancel"),
    element("button", { type: "button", class: "primary", onclick: save }, "Send again")));
  field.focus();
}

function stop() { running?.abort(); running = null; }

function wishes() {
  const chosen = SAMPLING.filter(name => typeof store.settings[name] === "number");
  return Object.fromEntries(chosen.map(name => [name, store.settings[name]]));
}

async function answer() {
  const chat = store.current;
  const said = chat.messages.map(({ role, content }) =>
    ({ role, content: role === "assistant" ? parted(content).answer : content }));
  const messages = chat.system.trim() ? [{ role: "system", content: chat.system }, ...said] : said;
  const message = { role: "assistant", content: "" };
  chat.messages.push(message);
  const box = shown(message);
  box.classList.add("busy");
  $("log").append(box);
  $("log").setAttribute("aria-busy", "true");
  const pending = { drawn: true };
  await stream("/v1/chat/completions", { messages }, choice => {
    message.content += choice.delta?.content ?? "";
    const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning;
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
    if (pending.drawn) {
      pending.drawn = false;
      requestAnimationFrame(() => { pending.drawn = true; follow(() => fill(box, message)); });
    }
  }, stats => { message.stats = stats; });
  box.classList.remove("busy");
  $("log").removeAttribute("aria-busy");
  if (!message.content && !message.reasoning && !$("error").hidden) {
    chat.messages.splice(chat.messages.indexOf(message), 1);
    box.remove();
  } else {
    follow(() => fill(box, message));
  }
  store.save();
  follow(updateTools);  // they take room below the answer
}

// Stay at the end while something is written, unless the reader has scrolled away.
function follow(change) {
  const view = $("scroll");
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 60;
  change();
  if (atEnd) view.scrollTop = view.scrollHeight;
}

async function go() {
  const chat = store.open(), field = $("input");
  chat.text = chat.before = field.value;
  chat.title = chat.text.trim().split("\n")[0].slice(0, 60);
  store.list();
  showList();
  const tokens = { max_tokens: wishes().max_tokens ?? 128 };
  await stream("/v1/completions", { prompt: chat.text, ...tokens }, choice => {
    chat.text += choice.text ?? "";
    if (chat !== store.current) return;
    const atEnd = field.scrollHeight - field.scrollTop - field.clientHeight < 60;
    field.value = chat.text;
    if (atEnd) field.scrollTop = field.scrollHeight;
  }, () => {});
  store.save();
  updateTools();
}

function undo() {
  const chat = store.current;
  chat.text = chat.before;
  delete chat.before;
  store.save();
  showAll();
  $("input").focus();
}

// One request; `each` gets every choice, `end` what it took.
async function stream(path, body, each, end) {
  const mine = running = new AbortController();
  showError("");
  $("status").textContent = "Reading …";
  updateTools();
  let tokens = 0, first = 0, usage = null, cut = false;
  const speed = () => tokens > 1 ? (tokens - 1) / ((performance.now() - first) / 1000) : 0;
  const said = () => `${usage?.completion_tokens ?? tokens} tokens` + (speed() ? `, ${speed().toFixed(1)} tokens/s` : "");
  try {
    const options = { ...wishes(), stream: true, stream_options: { include_usage: true } };
    const response = await ask(path, { ...options, ...body }, mine.signal);
    for await (const data of events(response)) {
      usage = data.usage ?? usage;
      for (const choice of data.choices ?? []) {
        first ||= performance.now();
        tokens += 1;
        cut ||= choice.finish_reason === "length";
        each(choice);
      }
      if (running === mine) $("status").textContent = said();
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  }
  const used = usage && model?.meta?.n_ctx
    ? `${usage.total_tokens.toLocaleString("en")} of ${model.meta.n_ctx.toLocaleString("en")} tokens of context used` : "";
  const why = mine.signal.aborted ? ", stopped" : cut && !isPlain ? ", cut at the limit" : "";
  const told = tokens ? said() + why : "";
  end(told);
  if (running === mine) running = null;
  if (!running) $("status").textContent = isPlain ? told : used;
}

function failed(error) {
  if (error.status === 401) { askForKey(error.message); return; }
  showError(error instanceof Refused ? error.message : "The server cannot be reached.");
}

// -- the key, the settings, the list -----------------------------------------------------------

function askForKey(why) {
  const had = secret.get();
  secret.clear();
  $("key-error").textContent = had ? why : "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

async function connect() {
  try {
    model = (await (await ask("/v1/models")).json()).data[0];
    document.title = `${model.id} · tenp-edge`;
    $("model").textContent = model.id;
    $("facts").textContent = `context ${model.meta.n_ctx.toLocaleString("en")}`;
    if (!running) showAll();
  } catch (error) {
    failed(error);
  }
}

function readSettings() {
  for (const name of SAMPLING) {
    const field = $(name), value = field.valueAsNumber;
    if (Number.isFinite(value) && field.checkValidity()) store.settings[name] = value;
    else delete store.settings[name];
  }
  store.settings.system = $("system").value;
  if (store.current) { store.current.system = $("system").value; store.save(); }
  store.saveSettings();
}

function openSettings() {
  for (const name of SAMPLING) $(name).value = store.settings[name] ?? "";
  $("system").value = store.current ? store.current.system : store.settings.system ?? "";
  $("settings").showModal();
}

function grow() {
  if (isPlain) return;
  const field = $("input");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function openDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("shade").hidden = !open;
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}

function closeDrawer() { if (document.body.classList.contains("drawer")) openDrawer(false); }

$("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
$("input").addEventListener("input", () => {
  grow();
  if (isPlain) { const chat = store.open(); chat.text = $("input").value; delete chat.before; updateTools(); }
});
$("input").addEventListener("keydown", event => {
  const sends = isPlain ? event.ctrlKey || event.metaKey : !event.shiftKey;
  if (event.key === "Enter" && sends && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("drawer")) { openDrawer(false); $("menu").focus(); } else stop();
});
$("stop").addEventListener("click", () => { stop(); $("input").focus(); });
$("undo").addEventListener("click", undo);
$("new").addEventListener("click", () => {
  stop(); store.current = null; store.save(); showAll(); closeDrawer(); $("input").focus();
});
$("menu").addEventListener("click", () => openDrawer(!document.body.classList.contains("drawer")));
$("shade").addEventListener("click", closeDrawer);
$("open-settings").addEventListener("click", openSettings);
$("settings").addEventListener("close", readSettings);
$("reset").addEventListener("click", () => {
  for (const name of [...SAMPLING, "system"]) $(name).value = "";
});
$("key-form").addEventListener("submit", () => {
  secret.set($("key").value.trim(), $("remember").checked);
  $("key").value = "";
  connect();
});

window.addEventListener("pagehide", () => { if (store.current && running) store.save(); });

if (isPlain) {
  document.body.classList.add("plain");
  $("input").placeholder = "This model has no chat template: begin a text, and it goes on with it";
  $("system-label").hidden = true;
  document.querySelector("label[for=input]").textContent = "Text";
}
showAll();
connect();
// On a phone the keyboard would hide half of the page.
if (matchMedia("(hover: hover)").matches) $("input").focus();
