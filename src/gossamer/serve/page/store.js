// Conversations kept in this browser, in IndexedDB. Other tabs on the same page are told of every change.

const NAME = "gossamer-chat";
const TABLE = "conversations";

export class Store {
  constructor() {
    this.database = null;
    this.channel = new BroadcastChannel(NAME);
    this.waiting = new Map(); // conversations to be saved soon, by id
    this.lasting = true; // false: this browser keeps nothing, and the page says so
    this.failed = () => {}; // called when a conversation could not be saved
  }

  // Every conversation there is. `changed(id, conversation or null)` is called when another tab saves or removes one.
  async open(changed) {
    this.channel.onmessage = async ({ data: id }) => changed(id, (await this.read(id)) ?? null);
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      this.database = await settled(request);
      return await settled(this.table("readonly").getAll());
    } catch {
      this.lasting = false;
      return [];
    }
  }

  table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  async read(id) {
    return this.database ? settled(this.table("readonly").get(id)) : null;
  }

  async save(conversation) {
    clearTimeout(this.waiting.get(conversation.id));
    this.waiting.delete(conversation.id);
    if (!this.database) return;
    try {
      await settled(this.table("readwrite").put(conversation));
      this.channel.postMessage(conversation.id);
    } catch {
      this.failed();
    }
  }

  // Save within half a second: what grows by a token at a time is not written at each.
  saveSoon(conversation) {
    if (this.waiting.has(conversation.id)) return;
    this.waiting.set(conversation.id, setTimeout(() => this.save(conversation), 500));
  }

  async remove(id) {
    clearTimeout(this.waiting.get(id));
    this.waiting.delete(id);
    if (!this.database) return;
    await settled(this.table("readwrite").delete(id));
    this.channel.postMessage(id);
  }
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version open"));
  });
}
