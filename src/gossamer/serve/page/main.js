// Puts the page together: the model, the conversations, what is drawn, the keyboard.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { contextUsed, titleOf } from "./conversation.js";
import { askKey, askName, confirmed, editSettings, setUpDialogs, showShortcuts } from "./dialogs.js";
import { announce, download, find } from "./dom.js";
import { load } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { Textpad } from "./textpad.js";
import { BadFile, fromFile, toFile } from "./transfer.js";
import { Transcript } from "./transcript.js";

const api = new Api();
const store = new Store();
const settings = load();
const chat = new Chat(api, store, settings, { draw, grew, ended, askKey: () => askKey(api) });
const transcript = new Transcript({
  edit: (number, text) => {
    chat.edit(number, text);
    composer.focus();
  },
  again: (number) => {
    chat.again(number);
    composer.focus();
  },
  choose: (number) => {
    chat.choose(number);
    transcript.views.get(number).root.querySelector(".branches button:enabled").focus();
  },
  feedback: () => chat.model?.feedback ?? null,
  rate: (number, label, note) => chat.rate(number, label, note),
});
const composer = new Composer({
  send: (text) => {
    transcript.following = true;
    chat.send(text);
  },
  stop: () => chat.stop(),
  editLast: () => transcript.editLast(),
});
const textpad = new Textpad(chat);
const sidebar = new Sidebar((id) => {
  sidebar.leave();
  chat.open(id);
  composer.focus();
});

function draw() {
  const { current, busy, model } = chat;
  const kept = chat.conversations.has(current.id);
  const empty = current.mode === "chat" && current.first === null;
  document.documentElement.dataset.mode = current.mode;
  document.title = kept ? `${chat.title} – ${model?.id ?? "gossamer"}` : (model?.id ?? "gossamer");
  find("title").textContent = kept ? chat.title : "New conversation";
  find("more").disabled = !kept;
  find("welcome").hidden = kept;
  find("welcome").classList.toggle("aside", !empty);
  find("base-hint").hidden = current.mode !== "chat" || model?.chat_template !== "default";
  find("feedback-hint").hidden = !model?.feedback;
  find("feedback-file").textContent = model?.feedback ?? "";
  for (const mode of ["chat", "text"]) find(`mode-${mode}`).setAttribute("aria-pressed", String(current.mode === mode));
  history.replaceState(null, "", kept ? `#${current.id}` : location.pathname + location.search);
  if (current.mode === "chat") transcript.show(current, busy);
  else textpad.show();
  composer.show(current.id, Boolean(busy));
  sidebar.show(chat.conversations.values(), current.id, chat.running);
  drawContext();
}

function drawContext() {
  const { current, model } = chat;
  const used = contextUsed(current);
  const size = model?.max_model_len;
  find("context").hidden = !size;
  if (!size) return;
  const share = Math.min((used ?? 0) / size, 1);
  find("context-meter").classList.toggle("full", share > 0.9);
  find("context-meter").firstElementChild.style.width = used ? `max(${(100 * share).toFixed(1)}%, 0.3rem)` : "0";
  find("context-text").textContent = `${used ? used.toLocaleString("en") : "0"} of ${size.toLocaleString("en")} tokens`;
}

function grew(running) {
  if (running.conversation !== chat.current) return;
  if (running.number === null) textpad.grew();
  else transcript.grew(running);
}

function ended(conversation, { end, problem }) {
  if (conversation !== chat.current) return;
  const said = { stop: "The answer is complete.", length: "The answer was cut off at the token limit.", stopped: "Stopped." };
  announce(problem ? problem.message : said[end]);
}

function notice(text, isProblem = true) {
  find("notice-text").textContent = text;
  find("notice").classList.toggle("problem", isProblem);
  find("notice").hidden = !text;
}

async function connect() {
  for (;;) {
    try {
      chat.model = await api.model();
      break;
    } catch (problem) {
      if (problem.status === 401) {
        notice("The server asks for an API key.");
        if (!(await askKey(api))) {
          find("notice-action").hidden = false;
          return;
        }
      } else {
        notice(problem.status === 503 ? "The model is not ready yet. This page asks again by itself." : problem.message);
        await new Promise((resolve) => setTimeout(resolve, (problem.again ?? 3) * 1000));
      }
    }
  }
  find("notice-action").hidden = true;
  notice(store.lasting ? "" : "This browser keeps nothing for this page: conversations last until the tab closes.", false);
  find("model").textContent = chat.model.id;
  if (!chat.conversations.has(chat.current.id) && !composer.field.value && !textpad.field.value) chat.begin(chat.defaultMode);
  else draw();
}

function begin() {
  sidebar.leave();
  chat.begin(chat.defaultMode);
  (chat.current.mode === "chat" ? composer : find("text")).focus();
}

async function changeSettings() {
  sidebar.leave();
  if (!(await editSettings(settings, chat.current, api))) return;
  if (chat.conversations.has(chat.current.id)) await store.save(chat.current);
  draw();
}

async function importFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const conversations = fromFile(await file.text());
    await chat.import(conversations);
    notice(`${conversations.length} ${conversations.length === 1 ? "conversation" : "conversations"} imported.`, false);
    sidebar.leave();
  } catch (error) {
    if (!(error instanceof BadFile)) throw error;
    notice(error.message);
  }
}

function exportOne() {
  const name = titleOf(chat.current).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
  download(`${name}.json`, toFile([chat.current]));
}

function clicks(handlers) {
  for (const [id, handler] of Object.entries(handlers)) find(id).addEventListener("click", handler);
}

function keys(event) {
  const control = event.ctrlKey || event.metaKey;
  const pressed = event.key.toLowerCase();
  const shortcut = control && { k: () => sidebar.find(), b: () => sidebar.toggle(), ",": changeSettings, "/": showShortcuts };
  if (event.key === "Escape" && chat.busy && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    chat.stop();
  } else if (control && event.shiftKey && pressed === "o") {
    event.preventDefault();
    begin();
  } else if (shortcut && !event.shiftKey && !event.altKey && Object.hasOwn(shortcut, pressed)) {
    event.preventDefault();
    if (!document.querySelector("dialog[open]")) shortcut[pressed]();
  }
}

async function start() {
  setUpDialogs();
  clicks({
    "new": begin,
    "skip": (event) => {
      event.preventDefault();
      (chat.current.mode === "chat" ? composer.field : textpad.field).focus();
    },
    "sidebar-toggle": () => sidebar.toggle(),
    "sidebar-close": () => sidebar.toggle(false),
    "settings-open": changeSettings,
    "shortcuts-open": showShortcuts,
    "mode-chat": () => chat.begin("chat"),
    "mode-text": () => chat.begin("text"),
    "base-switch": () => chat.begin("text"),
    "notice-close": () => notice(""),
    "notice-action": connect,
    "export-all": () => download("gossamer-conversations.json", toFile([...chat.conversations.values()])),
    "import": () => find("file").click(),
    "rename": async () => {
      find("menu").hidePopover();
      const title = await askName(chat.title);
      if (title) await chat.rename(title);
    },
    "export": () => {
      find("menu").hidePopover();
      exportOne();
    },
    "delete": async () => {
      find("menu").hidePopover();
      if (await confirmed(`Delete “${chat.title}”? It cannot be brought back.`, "Delete")) await chat.remove();
    },
  });
  find("file").addEventListener("change", importFile);
  document.addEventListener("keydown", keys);
  window.addEventListener("hashchange", () => {
    const id = location.hash.slice(1);
    if (chat.conversations.has(id)) chat.open(id);
  });
  store.failed = () => notice("The browser did not keep this conversation: its storage is full or closed. Export what matters.");
  const wanted = location.hash.slice(1);
  chat.begin("chat"); // something to type into and to press keys at while the browser opens its storage
  const kept = await store.open(changedElsewhere);
  for (const conversation of kept) chat.conversations.set(conversation.id, conversation);
  if (chat.conversations.has(wanted)) chat.open(wanted);
  else draw();
  document.documentElement.dataset.ready = "";
  composer.focus();
  await connect();
}

// Another tab has saved or removed a conversation.
function changedElsewhere(id, conversation) {
  if (chat.running.has(id)) return;
  if (conversation) chat.conversations.set(id, conversation);
  else chat.conversations.delete(id);
  if (chat.current.id === id) {
    if (conversation) chat.open(id);
    else chat.begin(chat.defaultMode);
  } else {
    sidebar.show(chat.conversations.values(), chat.current.id, chat.running);
  }
}

start();
