// Conversations in the browser's IndexedDB. Where there is none they live as long as the page, and `lasting` says so.
import { merged } from "./conversation.js";

const NAME = "conversations";

export class Store {
  constructor(db) {
    this.db = db;
    this.lasting = db !== null;
    this.channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("edgellm");
  }

  static async open() {
    try {
      const request = indexedDB.open("edgellm", 1);
      request.onupgradeneeded = () => request.result.createObjectStore(NAME, { keyPath: "id" });
      return new Store(await done(request));
    } catch {
      return new Store(null);
    }
  }

  async all() {
    return this.db ? done(this.objects("readonly").getAll()) : [];
  }

  async get(id) {
    return this.db ? done(this.objects("readonly").get(id)) : undefined;
  }

  // Keeps a conversation together with what another window added to it meanwhile.
  async put(conversation) {
    if (!this.db) return;
    const objects = this.objects("readwrite");
    const there = await done(objects.get(conversation.id));
    await done(objects.put(there ? merged(conversation, there) : conversation));
    this.channel?.postMessage({ id: conversation.id });
  }

  async delete(id) {
    if (!this.db) return;
    await done(this.objects("readwrite").delete(id));
    this.channel?.postMessage({ id });
  }

  // Calls back with the id of a conversation that another window has changed.
  onChange(call) {
    if (this.channel) this.channel.onmessage = (event) => call(event.data.id);
  }

  objects(mode) {
    return this.db.transaction(NAME, mode).objectStore(NAME);
  }
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
