// A conversation as data: a tree of messages of which one path is shown. Editing or asking again adds a branch beside
// the old one. A message's number is its place in the list, and its parent's number is smaller: no cycle can be.

export const VERSION = 1;

// An identifier of 24 characters. (crypto.randomUUID is missing on pages that came over plain HTTP.)
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(mode, system) {
  const now = Date.now();
  return { version: VERSION, id: newId(), mode, title: "", created: now, updated: now, system,
    first: null, messages: [], text: "", before: null, last: null };
}

// Add a message below `parent` (null: at the beginning) and make it the one that is shown there.
export function add(conversation, parent, role, text) {
  const message = { parent, child: null, role, text, reasoning: "", created: Date.now(), end: null, problem: null,
    usage: null, seconds: null, model: null, sampling: null, rating: null };
  conversation.messages.push(message);
  const number = conversation.messages.length - 1;
  choose(conversation, number);
  return number;
}

// Show message `number` rather than those beside it.
export function choose(conversation, number) {
  const { parent } = conversation.messages[number];
  if (parent === null) conversation.first = number;
  else conversation.messages[parent].child = number;
}

// The numbers of the messages that are shown, from the first.
export function path(conversation) {
  const numbers = [];
  for (let at = conversation.first; at !== null; at = conversation.messages[at].child) numbers.push(at);
  return numbers;
}

// The numbers of a message and of those beside it, oldest first.
export function branches(conversation, number) {
  const { parent } = conversation.messages[number];
  return conversation.messages.flatMap((message, other) => (message.parent === parent ? [other] : []));
}

// The numbers of a message and of those before it, from the first.
export function pathTo(conversation, number) {
  const numbers = [];
  for (let at = number; at !== null; at = conversation.messages[at].parent) numbers.unshift(at);
  return numbers;
}

// What the API is sent to answer the last of these messages: the system message, and them.
export function asked(conversation, numbers) {
  const messages = numbers.map((number) => {
    const { role, text } = conversation.messages[number];
    return { role, content: text };
  });
  if (conversation.system.trim()) messages.unshift({ role: "system", content: conversation.system });
  return messages;
}

export function titleOf(conversation) {
  const text = conversation.title || conversation.messages.find((message) => message.role === "user")?.text ||
    conversation.text;
  const line = text.trim().split("\n")[0];
  return line.length > 80 ? `${line.slice(0, 79)}…` : line || "New conversation";
}

// Tokens that the conversation took when the model last wrote in it; null where none are known.
export function contextUsed(conversation) {
  const answers = conversation.mode === "text" ? [conversation.last] : path(conversation).map((number) => conversation.messages[number]);
  const usage = answers.findLast((answer) => answer?.usage)?.usage;
  return usage ? usage.prompt + usage.completion : null;
}

// Where every word of `wanted` (lower case) occurs: a piece of text around the first of them, or null.
export function search(conversation, wanted) {
  const words = wanted.split(/\s+/).filter(Boolean);
  const texts = [titleOf(conversation), conversation.system, conversation.text,
    ...conversation.messages.map((message) => message.text)];
  const lower = texts.map((text) => text.toLowerCase());
  if (!words.every((word) => lower.some((text) => text.includes(word)))) return null;
  const place = lower.findIndex((text) => text.includes(words[0]));
  const from = Math.max(lower[place].indexOf(words[0]) - 24, 0);
  return `${from ? "…" : ""}${texts[place].slice(from, from + 90).replace(/\s+/g, " ")}`;
}
