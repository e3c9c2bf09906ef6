// One message on the page: its text, its reasoning, what it took, and what can be done with it.

import { branches } from "./conversation.js";
import { copyButton, element, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown/view.js";
import { Rating } from "./rating.js";

const MEASURABLE = 0.05; // seconds; pieces that came all at once say nothing of the model's speed
const ENDS = { length: "Cut off at the token limit.", stopped: "Stopped." };

export class MessageView {
  // `actions`: edit(number, text), again(number), choose(number), and those of a rating.
  constructor(conversation, number, actions) {
    this.conversation = conversation;
    this.number = number;
    this.message = conversation.messages[number];
    this.actions = actions;
    this.body = element("div", { class: "prose" });
    this.footer = element("footer");
    this.article = element("article", {}, this.body, this.footer);
    this.root = element("li", { class: `message ${this.message.role}`, "data-number": number }, this.article);
    if (this.message.role === "assistant") {
      this.markdown = new MarkdownView(this.body);
      this.addReasoning();
      this.rating = new Rating(this.message, number, actions);
      this.article.append(this.rating.root);
    }
  }

  addReasoning() {
    this.summary = element("span", {}, "Reasoning");
    this.thought = element("div", { class: "prose" });
    this.thoughts = new MarkdownView(this.thought);
    this.reasoning = element("details", { class: "reasoning", hidden: true },
      element("summary", {}, icon("chevron"), this.summary), this.thought);
    this.body.before(this.reasoning);
  }

  // Show what the message holds by now; `running`: the generation that still adds to it.
  update(running = null) {
    const { message } = this;
    const who = message.role === "user" ? "You" : "Answer";
    this.article.setAttribute("aria-label", who);
    this.article.setAttribute("aria-busy", String(Boolean(running)));
    this.root.classList.toggle("running", Boolean(running));
    if (message.role === "user") {
      this.body.textContent = message.text;
    } else {
      this.reasoning.hidden = !message.reasoning;
      this.root.classList.toggle("waiting", Boolean(running) && !message.text && !message.reasoning);
      if (message.reasoning) {
        this.thoughts.show(message.reasoning);
        this.summary.textContent = running && !message.text ? "Thinking…" : "Reasoning";
      }
      this.root.classList.toggle("thinking", Boolean(running) && !message.text && Boolean(message.reasoning));
      this.markdown.show(message.text);
      this.rating.update();
    }
    if (!running) this.finish();
    else if (this.footer.childNodes.length) this.footer.replaceChildren();
  }

  finish() {
    const { message, number } = this;
    const tools = element("div", { class: "tools" }, copyButton("Copy message", () => message.text));
    if (message.role === "user") {
      tools.append(iconButton("edit", "Edit message", () => this.edit()));
    } else {
      tools.append(iconButton("again", "Answer again", () => this.actions.again(number)), this.rating.buttons);
    }
    this.footer.replaceChildren(this.problem(), this.branchSwitch(), tools, this.figures());
  }

  // Why an answer ended early, in words, with a way on.
  problem() {
    const { message, number } = this;
    const cut = message.role === "assistant" && message.end === null; // the page was closed meanwhile
    const text = message.end === "problem" ? message.problem : cut ? "Interrupted." : ENDS[message.end];
    if (!text) return "";
    const row = element("p", { class: message.end === "problem" ? "problem" : "hint" }, text);
    if (message.end === "problem") {
      row.setAttribute("role", "alert");
      row.append(element("button", { type: "button", class: "link", click: () => this.actions.again(number) }, "Try again"));
    }
    return row;
  }

  branchSwitch() {
    const all = branches(this.conversation, this.number);
    if (all.length < 2) return "";
    const place = all.indexOf(this.number);
    const step = (name, label, to) => {
      const button = iconButton(name, label, () => this.actions.choose(all[to]));
      button.disabled = all[to] === undefined;
      return button;
    };
    return element("div", { class: "branches", role: "group", "aria-label": "Versions" },
      step("left", "Earlier version", place - 1),
      element("span", {}, `${place + 1}/${all.length}`),
      step("right", "Later version", place + 1));
  }

  figures() {
    const { usage, seconds, without } = this.message;
    if (!seconds) return "";
    const told = [];
    if (usage) {
      const span = seconds.total - seconds.first;
      told.push(`${usage.completion.toLocaleString("en")} tokens`);
      if (usage.completion > 1 && span > MEASURABLE) told.push(`${rate((usage.completion - 1) / span)} tokens/s`);
    }
    told.push(`first after ${seconds.first.toFixed(2)} s`);
    if (usage?.cached) told.push(`${usage.cached.toLocaleString("en")} of ${usage.prompt.toLocaleString("en")} prompt tokens reused`);
    if (without) told.push(`without the ${without === 1 ? "oldest message" : `${without} oldest messages`}, for which there is no room`);
    return element("p", { class: "figures" }, told.join(" · "));
  }

  // Replace the message by a field; sending it makes a branch.
  edit() {
    const field = element("textarea", { "aria-label": "New text of the message", rows: 1 });
    field.value = this.message.text;
    const close = () => {
      form.replaceWith(this.body);
      this.footer.hidden = false;
      this.root.classList.remove("editing");
      this.footer.querySelector("button[aria-label='Edit message']")?.focus();
    };
    const send = () => {
      if (!field.value.trim()) return;
      close();
      this.actions.edit(this.number, field.value);
    };
    const keydown = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        send();
      }
    };
    const form = element("form", { class: "edit", keydown, submit: (event) => { event.preventDefault(); send(); } }, field,
      element("div", { class: "row" },
        element("button", { type: "button", class: "plain", click: close }, "Cancel"),
        element("button", { class: "primary" }, "Send as new version")));
    this.body.replaceWith(form);
    this.footer.hidden = true;
    this.root.classList.add("editing");
    field.focus();
  }
}

export function rate(perSecond) {
  return perSecond >= 100 ? Math.round(perSecond).toLocaleString("en") : perSecond.toFixed(1);
}
