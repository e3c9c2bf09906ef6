// The list of conversations, by age or by what they hold.

import { search, titleOf } from "./conversation.js";
import { element, find } from "./dom.js";

const DAY = 86_400_000;
const SLOW = 120; // milliseconds after the last key before a search begins

export class Sidebar {
  // `open(id)`: the user picks a conversation.
  constructor(open) {
    this.open = open;
    this.list = find("conversations");
    this.field = find("search");
    this.field.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.draw(), SLOW);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.field.value) {
        event.stopPropagation();
        this.field.value = "";
        this.draw();
      }
    });
    find("scrim").addEventListener("click", () => this.toggle(false));
    this.conversations = [];
    this.narrow = window.matchMedia("(max-width: 50rem)");
  }

  show(conversations, current, running) {
    this.conversations = [...conversations].sort((one, other) => other.updated - one.updated);
    this.current = current;
    this.running = running;
    this.draw();
  }

  draw() {
    const wanted = this.field.value.trim().toLowerCase();
    const groups = new Map();
    for (const conversation of this.conversations) {
      const piece = wanted ? search(conversation, wanted) : null;
      if (wanted && piece === null) continue;
      const group = wanted ? "Found" : age(conversation.updated);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(this.entry(conversation, piece));
    }
    this.list.replaceChildren(...[...groups].map(([name, entries]) =>
      element("section", {}, element("h2", {}, name), element("ul", {}, ...entries))));
    if (!groups.size) this.list.append(element("p", { class: "hint" }, wanted ? "Nothing found." : "No conversations yet."));
  }

  entry(conversation, piece) {
    const title = titleOf(conversation);
    const button = element("button", { type: "button", click: () => this.open(conversation.id) },
      element("span", { class: "title" }, title));
    if (piece && piece !== title) button.append(element("span", { class: "piece" }, piece));
    if (conversation.id === this.current) button.setAttribute("aria-current", "page");
    if (this.running.has(conversation.id)) button.append(element("span", { class: "pulse", role: "img", "aria-label": "answering" }));
    return element("li", {}, button);
  }

  // Open or close: beside the page where there is room, else over it.
  toggle(wanted) {
    const root = document.documentElement;
    const name = this.narrow.matches ? "sidebar-over" : "sidebar-shut";
    const shown = this.narrow.matches ? root.classList.contains(name) : !root.classList.contains(name);
    const show = wanted ?? !shown;
    root.classList.toggle(name, this.narrow.matches ? show : !show);
    find("sidebar-toggle").setAttribute("aria-expanded", String(show));
    if (show && this.narrow.matches) this.field.focus({ preventScroll: true });
  }

  // Out of the way, where it lies over the page.
  leave() {
    if (this.narrow.matches) this.toggle(false);
  }

  find() {
    this.toggle(true);
    this.field.focus();
    this.field.select();
  }
}

function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  return time >= today - 7 * DAY ? "Last seven days" : "Earlier";
}
