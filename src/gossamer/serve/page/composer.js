// The field one writes into, and what it sends.

import { find } from "./dom.js";

export class Composer {
  // `actions`: send(text), stop(), editLast().
  constructor(actions) {
    this.form = find("composer");
    this.field = find("message");
    this.sendButton = find("send");
    this.stopButton = find("stop");
    this.actions = actions;
    this.busy = false;
    this.drafts = new Map(); // what stands in the field, by conversation
    this.id = null;
    this.touch = window.matchMedia("(pointer: coarse)");
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("input", () => this.show(this.id, this.busy));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.stopButton.addEventListener("click", () => actions.stop());
  }

  show(id, busy) {
    if (id !== this.id) {
      this.drafts.set(this.id, this.field.value);
      this.field.value = this.drafts.get(id) ?? "";
      this.id = id;
    }
    this.busy = busy;
    this.sendButton.hidden = busy;
    this.stopButton.hidden = !busy;
    this.sendButton.disabled = !this.field.value.trim();
  }

  // Enter sends where there is a keyboard; on a touch screen it ends the line, and the button sends.
  key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && (!this.touch.matches || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !this.field.value && !this.busy) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  send() {
    const text = this.field.value;
    if (this.busy || !text.trim()) return;
    this.field.value = "";
    this.actions.send(text);
    this.focus(); // the button that had it is gone
  }

  focus() {
    if (!this.touch.matches) this.field.focus();
  }
}
