"use strict";
// Markdown as elements. Text of the model is only ever textContent: there is no way from it to HTML
// (the page's policy refuses markup from text altogether). What is not understood stays as it was typed.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const SAFE_LINK = /^(https?:\/\/|mailto:)[^\s]+$/i;
// Code first: what stands in it is not marked up. Then links, bold, emphasis, struck.
const INLINE =
  /(`+)(.+?)\1(?!`)|\[([^\]\n]+)\]\(([^\s)]+)\)|\*\*(?=\S)(.+?\S|\S)\*\*(?!\*)|__(?=\S)(.+?\S|\S)__(?!\w)|\*(?=[^\s*])(.*?[^\s*])\*(?!\*)|(?<!\w)_(?=[^\s_])(.*?[^\s_])_(?!\w)|~~(?=\S)(.+?)~~/s;

function inline(text, into) {
  for (let found = INLINE.exec(text); found; found = INLINE.exec(text)) {
    if (found.index) into.append(text.slice(0, found.index));
    into.append(marked(found));
    text = text.slice(found.index + found[0].length);
  }
  into.append(text);
  return into;
}

function marked(found) {
  const [all, ticks, code, label, address, bold, bold2, soft, soft2, struck] = found;
  if (ticks) return element("code", {}, code.replace(/^ (.*[^ ].*) $/s, "$1"));
  if (label !== undefined) {
    if (!SAFE_LINK.test(address)) return all;
    const link = { href: address, target: "_blank", rel: "noopener noreferrer" };
    return inline(label, element("a", link));
  }
  if (bold ?? bold2) return inline(bold ?? bold2, element("strong"));
  if (struck) return inline(struck, element("del"));
  return inline(soft ?? soft2, element("em"));
}

function codeBlock(language, code) {
  const copy = element("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", () => copyText(code, copy));
  const bar = element("div", {}, element("span", {}, language || "code"), copy);
  const label = `Code${language ? ", " + language : ""}`;
  const pre = element("pre", { tabindex: "0", "aria-label": label, role: "region" });
  pre.append(element("code", {}, code));
  return element("div", { class: "code" }, bar, pre);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])\s*(\1\s*){2,}$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

// Quotes and lists inside one another: a model that repeats itself would nest them without end.
const DEEPEST = 16;
let depth = 0;

function render(text, into) {
  const lines = text.split("\n"), step = depth < DEEPEST ? block : prose;
  depth += 1;
  for (let at = 0; at < lines.length;) at = step(lines, at, into);
  depth -= 1;
  return into;
}

// The block that begins at line `at`; the line after it.
function block(lines, at, into) {
  const line = lines[at];
  if (!line.trim()) return at + 1;
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence, into);
  const heading = HEADING.exec(line);
  if (heading) {
    into.append(inline(heading[2], element(`h${Math.min(heading[1].length + 1, 4)}`)));
    return at + 1;
  }
  if (RULE.test(line)) { into.append(element("hr")); return at + 1; }
  if (QUOTE.test(line)) return quoted(lines, at, into);
  if (ITEM.test(line)) return list(lines, at, into);
  if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-"))
    return tabular(lines, at, into);
  return prose(lines, at, into);
}

function fenced(lines, at, fence, into) {
  const end = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
  let stop = at + 1;
  while (stop < lines.length && !end.test(lines[stop])) stop++;
  into.append(codeBlock(fence[2], lines.slice(at + 1, stop).join("\n")));
  return stop + 1;
}

function quoted(lines, at, into) {
  const inner = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at++) inner.push(QUOTE.exec(lines[at])[1]);
  into.append(render(inner.join("\n"), element("blockquote")));
  return at;
}

function list(lines, at, into) {
  const [, indent, first] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first);
  const made = element(ordered ? "ol" : "ul", { start: ordered ? parseInt(first, 10) : null });
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered) break;
    if (item[1].length < indent.length) break;
    const inner = [item[3]];
    const deep = item[1].length + item[2].length + 1;
    for (at++; at < lines.length; at++) {
      const next = lines[at], spaces = next.search(/\S/);
      if (spaces < 0) { if (!/^\s+\S/.test(lines[at + 1] ?? "")) break; inner.push(""); continue; }
      if (spaces <= indent.length + 1 && (ITEM.test(next) || !inner.at(-1))) break;
      if (spaces <= indent.length + 1 && (FENCE.test(next) || HEADING.test(next))) break;
      inner.push(next.slice(Math.min(spaces, deep)));
    }
    const entry = element("li");
    render(inner.join("\n"), entry);
    if (entry.childElementCount && entry.firstElementChild.tagName === "P")
      entry.firstElementChild.replaceWith(...entry.firstElementChild.childNodes);
    made.append(entry);
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  into.append(made);
  return at;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map(cell => cell.trim());
}

function tabular(lines, at, into) {
  const row = (line, name) => element("tr", {}, ...cells(line).map(c => inline(c, element(name))));
  const head = element("thead", {}, row(lines[at], "th"));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) body.append(row(lines[at], "td"));
  const box = { class: "table", tabindex: "0", role: "region", "aria-label": "Table" };
  into.append(element("div", box, element("table", {}, head, body)));
  return at;
}

function prose(lines, at, into) {
  const begun = at;
  const ends = line =>
    !line.trim() || FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line);
  for (at++; at < lines.length && !ends(lines[at]); at++);
  const made = element("p");
  lines.slice(begun, at).forEach((line, number) => {
    if (number) made.append(element("br"));
    inline(line.trim(), made);
  });
  into.append(made);
  return at;
}

// -- thoughts: what a model says to itself before it answers ------------------------------------

function parted(text) {
  const opening = /^\s*<(think|thinking|reasoning)>/.exec(text);
  const start = opening ? opening[0].length : 0;
  const closing = /<\/(think|thinking|reasoning)>/.exec(text);
  if (closing) {
    const answer = text.slice(closing.index + closing[0].length).replace(/^\s+/, "");
    return { thought: text.slice(start, closing.index).trim(), answer, thinking: false };
  }
  if (opening) return { thought: text.slice(start).trim(), answer: "", thinking: true };
  return { thought: "", answer: text, thinking: false };
}
