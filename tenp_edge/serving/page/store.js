// What this browser keeps: conversations, the current one, settings, and the key if it may.

const KEYS = { chats: "tenp-edge-chats", settings: "tenp-edge-settings", key: "tenp-edge-key" };
const SAMPLING = [
  "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed",
];

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

class Store {
  constructor() {
    const kept = read(KEYS.chats, {});
    this.chats = Array.isArray(kept.chats) ? kept.chats.filter(c => Array.isArray(c.messages)) : [];
    this.settings = read(KEYS.settings, {});
    this.current = this.chats.find(chat => chat.id === kept.current) ?? null;
  }

  // The newest first; the oldest go when the browser's room is full.
  save() {
    const others = this.chats.filter(chat => chat !== this.current);
    for (let count = others.length; count >= 0; count--) {
      const chats = this.chats.filter(c => c === this.current || others.indexOf(c) < count);
      try {
        const id = this.current?.id ?? null;
        localStorage.setItem(KEYS.chats, JSON.stringify({ current: id, chats }));
        this.chats = chats;
        return;
      } catch {
        // Once more with one less.
      }
    }
  }

  saveSettings() {
    try {
      localStorage.setItem(KEYS.settings, JSON.stringify(this.settings));
    } catch {
      // Nothing is lost but a wish.
    }
  }

  // The conversation that is going on; it is listed with its first message.
  open() {
    if (!this.current) {
      const id = `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`;
      this.current = { id, title: "", system: this.settings.system ?? "", text: "", messages: [] };
    }
    return this.current;
  }

  list() {
    const chat = this.open();
    this.chats = [chat, ...this.chats.filter(other => other !== chat)];
    this.save();
  }

  remove(chat) {
    this.chats = this.chats.filter(other => other !== chat);
    if (this.current === chat) this.current = null;
    this.save();
  }
}

const secret = {
  get() { return sessionStorage.getItem(KEYS.key) ?? localStorage.getItem(KEYS.key) ?? ""; },
  set(value, remembered) {
    this.clear();
    (remembered ? localStorage : sessionStorage).setItem(KEYS.key, value);
  },
  clear() { sessionStorage.removeItem(KEYS.key); localStorage.removeItem(KEYS.key); },
};

// -- the server ------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (secret.get()) headers.Authorization = `Bearer ${secret.get()}`;
  const request = { headers, signal, cache: "no-store", credentials: "same-origin" };
  if (body) Object.assign(request, { method: "POST", body: JSON.stringify(body) });
  const response = await fetch(path, request);
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(response.status, told.error?.message ?? `the server answers ${response.status}`);
}

// The JSON of every server-sent event, as it comes.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.slice(5).trim() === "[DONE]") continue;
      const data = JSON.parse(line.slice(5));
      if (data.error) throw new Refused(data.error.code ?? 500, data.error.message);
      yield data;
    }
  }
}
