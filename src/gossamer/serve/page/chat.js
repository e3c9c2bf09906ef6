// What can be done with conversations: ask, stop, ask again, branch, continue a text. Knows data and the API, no
// elements; `view` is told what to draw.

import { TOO_LONG } from "./api.js";
import { add, asked, choose, newConversation, newId, path, pathTo, titleOf } from "./conversation.js";
import { Generation } from "./generation.js";
import { requestFields, samplingOf } from "./settings.js";

const PATHS = { chat: "chat/completions", text: "completions" };

export class Chat {
  // `view`: draw(), grew(running), ended(running), askKey() → whether there is a new key.
  constructor(api, store, settings, view) {
    Object.assign(this, { api, store, settings, view });
    this.conversations = new Map();
    this.running = new Map(); // generations by their conversation's id
    this.begins = new Map(); // by conversation: where what the model still takes begins, a message's number or a place
    this.model = null;
    this.current = null;
    this.rated = Promise.resolve(); // when the server knows of the last rating
  }

  // Begin a conversation; it is kept once something was sent.
  begin(mode) {
    this.current = newConversation(mode, mode === "chat" ? this.settings.system : "");
    this.view.draw();
  }

  open(id) {
    this.current = this.conversations.get(id);
    this.view.draw();
  }

  get busy() {
    return this.running.get(this.current.id) ?? null;
  }

  get defaultMode() {
    return this.model?.chat_template === "default" ? "text" : "chat";
  }

  keep(conversation) {
    conversation.updated = Date.now();
    this.conversations.set(conversation.id, conversation);
    return this.store.save(conversation);
  }

  send(text) {
    const parent = path(this.current).at(-1) ?? null;
    return this.answer(this.current, add(this.current, parent, "user", text));
  }

  edit(number, text) {
    if (this.busy) return;
    const { parent } = this.current.messages[number];
    this.answer(this.current, add(this.current, parent, "user", text));
  }

  again(number) {
    if (this.busy) return;
    this.answer(this.current, this.current.messages[number].parent);
  }

  choose(number) {
    if (this.busy) return;
    choose(this.current, number);
    this.store.save(this.current);
    this.view.draw();
  }

  stop() {
    this.busy?.generation.stop();
  }

  async rename(title) {
    this.current.title = title;
    await this.store.save(this.current);
    this.view.draw();
  }

  async remove() {
    const { id } = this.current;
    this.stop();
    this.conversations.delete(id);
    await this.store.remove(id);
    this.begin(this.defaultMode);
  }

  async import(conversations) {
    for (const conversation of conversations) {
      this.conversations.set(conversation.id, conversation);
      await this.store.save(conversation);
    }
    if (conversations.length) this.open(conversations[0].id);
  }

  // Answer message `parent` of a conversation. Its oldest turns are left out where the model does not take them all.
  async answer(conversation, parent) {
    const number = add(conversation, parent, "assistant", "");
    const message = conversation.messages[number];
    const take = (kind, text) => {
      message[kind] += text;
    };
    const numbers = pathTo(conversation, parent);
    let from = Math.max(numbers.indexOf(this.begins.get(conversation.id)), 0);
    let result;
    for (;;) {
      const asks = { messages: asked(conversation, numbers.slice(from)) };
      result = await this.generate(conversation, number, "chat", asks, take);
      const next = numbers.findIndex((other, place) => place > from && conversation.messages[other].role === "user");
      if (result.problem?.code !== TOO_LONG || next < 0) break;
      from = next;
    }
    if (!result.problem) this.begins.set(conversation.id, numbers[from]);
    Object.assign(message, { end: result.end, problem: result.problem?.message ?? null, usage: result.usage,
      seconds: result.seconds, without: from, model: this.model?.id ?? null, sampling: samplingOf(result.fields) });
    await this.finish(conversation, result);
  }

  // Tell the server whether an answer is good (true) or bad (false); null takes that back. What went wrong, or null.
  async rate(number, label, note) {
    const conversation = this.current;
    const message = conversation.messages[number];
    const before = message.rating ?? null;
    message.rating = { id: before?.id ?? newId(), label, note };
    const completion = { role: "assistant", content: message.text };
    if (message.reasoning) completion.reasoning_content = message.reasoning;
    const body = { model: message.model ?? null, sampling: message.sampling ?? null, label, note,
      rating_id: message.rating.id, completion: [completion],
      messages: asked(conversation, pathTo(conversation, message.parent).slice(message.without ?? 0)) };
    const sent = this.rated.then(() => this.sendRating(body)); // in order: the last one counts
    this.rated = sent.catch(() => {});
    try {
      await sent;
    } catch (problem) {
      message.rating = before;
      return problem.message;
    }
    if (this.conversations.has(conversation.id)) await this.store.save(conversation);
    return null;
  }

  async sendRating(body) {
    for (;;) {
      try {
        return await this.api.send("../feedback", body);
      } catch (problem) {
        if (problem.status !== 401 || !(await this.view.askKey())) throw problem;
      }
    }
  }

  // Let the model continue the text of a conversation of that mode, its newest part where the whole is too long.
  async continueText() {
    const conversation = this.current;
    const text = conversation.text;
    conversation.before = text;
    const take = (_, piece) => {
      conversation.text += piece;
    };
    let from = this.begins.get(conversation.id) ?? 0;
    if (from >= text.length) from = 0;
    let result;
    for (;;) {
      result = await this.generate(conversation, null, "text", { prompt: text.slice(from) }, take);
      if (result.problem?.code !== TOO_LONG || text.length - from < 2) break;
      from += Math.ceil((text.length - from) / 4);
    }
    if (!result.problem) this.begins.set(conversation.id, from);
    conversation.last = { ...result, problem: result.problem?.message ?? null, without: from };
    await this.finish(conversation, result);
  }

  // One request in the mode "chat" or "text"; `asks` is what it asks for, the settings apart.
  async generate(conversation, number, mode, asks, take) {
    const running = { conversation, number, generation: null, over: false };
    let fields = {};
    this.keep(conversation);
    for (;;) {
      const body = async () => {
        fields = requestFields(this.settings, mode, await this.knownModel());
        return { ...asks, ...fields };
      };
      running.generation = new Generation(this.api, PATHS[mode], body, (kind, text) => {
        take(kind, text);
        this.store.saveSoon(conversation);
        this.view.grew(running);
      });
      this.running.set(conversation.id, running);
      this.view.draw();
      const result = await running.generation.run();
      if (result.problem?.status === 401 && (await this.view.askKey())) continue;
      running.over = true;
      this.running.delete(conversation.id);
      return { ...result, fields };
    }
  }

  // Whoever is quicker than the page's own question waits here: how long an answer may be follows from the model.
  async knownModel() {
    return (this.model ??= await this.api.model());
  }

  async finish(conversation, result) {
    if (this.conversations.has(conversation.id)) await this.keep(conversation); // else it was removed meanwhile
    this.view.draw();
    this.view.ended(conversation, result);
  }

  get title() {
    return titleOf(this.current);
  }
}
