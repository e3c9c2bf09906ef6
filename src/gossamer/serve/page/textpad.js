// A text that the model continues where it ends: how a base model is used.

import { find } from "./dom.js";
import { rate } from "./message.js";

export class Textpad {
  constructor(chat) {
    this.chat = chat;
    this.field = find("text");
    this.frame = 0;
    this.field.addEventListener("input", () => {
      chat.current.text = this.field.value;
      if (chat.conversations.has(chat.current.id)) chat.store.saveSoon(chat.current);
      this.buttons();
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      if (!chat.busy) chat.continueText();
    });
    find("continue").addEventListener("click", () => chat.continueText());
    find("text-stop").addEventListener("click", () => chat.stop());
    find("undo").addEventListener("click", () => this.undo());
    find("retry").addEventListener("click", () => {
      this.undo();
      chat.continueText();
    });
  }

  show() {
    const { current, busy } = this.chat;
    if (this.field.value !== current.text) this.put(current.text);
    this.field.readOnly = Boolean(busy);
    find("text-result").textContent = busy ? "Writing…" : told(current.last);
    find("text-result").className = current.last?.end === "problem" && !busy ? "problem" : "hint";
    this.buttons();
  }

  buttons() {
    const { current, busy } = this.chat;
    find("continue").hidden = Boolean(busy);
    find("text-stop").hidden = !busy;
    find("undo").disabled = find("retry").disabled = Boolean(busy) || current.before === null;
  }

  grew() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.put(this.chat.current.text);
    });
  }

  // Put a longer text in the field, which stays scrolled to its end if it was.
  put(text) {
    const { field } = this;
    const following = field.scrollHeight - field.scrollTop - field.clientHeight < 80;
    if (text.startsWith(field.value)) field.setRangeText(text.slice(field.value.length), field.value.length, field.value.length);
    else field.value = text;
    if (following) field.scrollTop = field.scrollHeight;
  }

  undo() {
    const { current, store } = this.chat;
    current.text = current.before;
    current.before = null;
    store.save(current);
    this.show();
  }
}

function told(last) {
  if (!last) return "";
  if (last.end === "problem") return last.problem;
  const { usage, seconds } = last;
  if (!usage || usage.completion < 2) return last.end === "stopped" ? "Stopped." : "The model ended the text.";
  const speed = rate((usage.completion - 1) / Math.max(seconds.total - seconds.first, 1e-3));
  const part = last.without ? " · without the beginning, for which there is no room" : "";
  return `${usage.completion.toLocaleString("en")} tokens · ${speed} tokens/s${part}`;
}
