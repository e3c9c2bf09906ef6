// What the reader thinks of an answer: two thumbs and a note, which the server keeps in a file.

import { announce, element, iconButton } from "./dom.js";

export class Rating {
  // `actions`: feedback() → the server's file or null, rate(number, label, note) → what went wrong, in words, or null.
  constructor(message, number, actions) {
    Object.assign(this, { message, number, actions });
    this.up = this.thumb("thumb-up", "Good answer", true);
    this.down = this.thumb("thumb-down", "Bad answer", false);
    this.pen = iconButton("note", "Note on this answer", () => this.open(this.form.hidden));
    this.pen.setAttribute("aria-expanded", "false");
    this.buttons = element("div", { class: "rating", role: "group", "aria-label": "Rating" }, this.up, this.down, this.pen);
    this.field = element("input", { "aria-label": "Note on this answer", placeholder: "What is good or bad about it? (optional)",
      maxlength: 10000, autocomplete: "off" });
    this.form = element("form", { class: "note", hidden: true, keydown: (event) => this.keydown(event),
      submit: (event) => this.submit(event) }, this.field, element("button", { class: "plain" }, "Keep note"));
    this.told = element("p", { hidden: true });
    this.root = element("div", { class: "rated" }, this.told, this.form);
  }

  // Only a whole answer can be rated: of one that was cut off, a model would learn to end there.
  get possible() {
    const { role, end, text } = this.message;
    return role === "assistant" && end === "stop" && Boolean(text) && this.actions.feedback() !== null;
  }

  get label() {
    return this.message.rating?.label ?? null;
  }

  thumb(picture, name, label) {
    return iconButton(picture, name, () => this.rate(this.label === label ? null : label));
  }

  update() {
    this.buttons.hidden = this.root.hidden = !this.possible;
    this.up.setAttribute("aria-pressed", String(this.label === true));
    this.down.setAttribute("aria-pressed", String(this.label === false));
    this.pen.hidden = this.label === null;
  }

  open(wanted) {
    if (wanted) this.field.value = this.message.rating?.note ?? "";
    this.form.hidden = !wanted;
    if (wanted) this.root.scrollIntoView({ block: "nearest" });
    this.pen.setAttribute("aria-expanded", String(wanted));
  }

  // Show the rating at once; where the server does not keep it, what was there before comes back.
  async rate(label, note = this.message.rating?.note ?? "") {
    const began = this.actions.rate(this.number, label, label === null ? "" : note);
    this.update();
    const problem = await began;
    this.update();
    const where = `Kept in ${this.actions.feedback()} on the server, with the conversation before it.`;
    this.tell(problem ?? (label === null ? "The rating is taken back." : where), Boolean(problem));
    if (label === null) this.open(false);
    return !problem;
  }

  tell(text, isProblem) {
    this.told.className = isProblem ? "problem" : "hint";
    this.told.textContent = text;
    this.told.hidden = false;
    this.root.scrollIntoView({ block: "nearest" });
    announce(text);
  }

  async submit(event) {
    event.preventDefault();
    if (await this.rate(this.label, this.field.value.trim())) this.close();
  }

  keydown(event) {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    this.close();
  }

  close() {
    this.open(false);
    this.pen.focus();
  }
}
