// The messages of the open conversation, and where the reader is in them.

import { path } from "./conversation.js";
import { find } from "./dom.js";
import { MessageView } from "./message.js";

const NEAR = 80; // pixels from the end within which the reader is taken to follow

export class Transcript {
  constructor(actions) {
    this.actions = actions;
    this.list = find("transcript");
    this.scroller = find("scroller");
    this.down = find("to-end");
    this.views = new Map();
    this.conversation = null;
    this.following = true;
    this.frame = 0;
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.down.addEventListener("click", () => this.toEnd());
  }

  // Show a conversation. Messages that stay are left as they are. `running`: the generation that adds to the last.
  show(conversation, running) {
    if (conversation !== this.conversation) {
      this.views.clear();
      this.list.replaceChildren();
      this.conversation = conversation;
      this.following = true;
    }
    const numbers = path(conversation);
    for (const [number, view] of this.views) {
      if (numbers.includes(number)) continue;
      view.root.remove();
      this.views.delete(number);
    }
    for (const number of numbers) {
      const view = this.views.get(number) ?? new MessageView(conversation, number, this.actions);
      if (!this.views.has(number)) this.list.append(view.root);
      this.views.set(number, view);
      view.update(running?.number === number ? running : null);
    }
    this.follow();
  }

  // A message grew: draw it at the next frame, however many pieces come before that.
  grew(running) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (running.over || running.conversation !== this.conversation) return;
      this.views.get(running.number)?.update(running);
      this.follow();
    });
  }

  follow() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.scrolled();
  }

  toEnd() {
    this.following = true;
    this.follow();
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.down.hidden = this.following;
  }

  editLast() {
    const mine = [...this.views.values()].findLast((view) => view.message.role === "user");
    mine?.edit();
  }
}
