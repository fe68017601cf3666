// What a reload keeps. The conversation is in IndexedDB, which has room for pictures; one row a message,
// under a name that only this tab knows, for a week at most. Words that are not sent yet are in
// sessionStorage, small choices in localStorage.

const TAB = "owl-conversation";
const DRAFT = "owl-draft";
const WEEK = 7 * 24 * 3600 * 1000;

export class Store {
  #db;
  #name;
  #saved = [];
  #failed;

  /** failed(reason) is called when something could not be kept. */
  constructor(failed) {
    this.#failed = failed;
  }

  /** The entries this tab had before it was reloaded; from now on `save` keeps them. */
  async load() {
    try {
      const opening = indexedDB.open("owl", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("messages");
      this.#db = await soon(result(opening));
    } catch {
      return []; // No database, as in private windows of some browsers: the page works, and a reload forgets.
    }
    try {
      let name = sessionStorage.getItem(TAB);
      const rows = name ? await result(this.#rows("readonly").getAll(range(name, 0))) : [];
      // Names begin with their time.
      this.#rows("readwrite").delete(IDBKeyRange.upperBound([String(Date.now() - WEEK)]));
      if (name && (await own(name))) this.#saved = rows;
      else {
        // A new tab, or the copy of one that is still open.
        name = `${Date.now()}-${Math.random()}`;
        sessionStorage.setItem(TAB, name);
        await own(name);
      }
      this.#name = name;
      return rows;
    } catch (error) {
      this.#failed(error.message);
      return [];
    }
  }

  /** Writes what changed; entries are never changed in place, so the same object is the same message. */
  save(entries) {
    if (!this.#name) return;
    const before = this.#saved;
    this.#saved = entries;
    try {
      const rows = this.#rows("readwrite");
      rows.transaction.onabort = () => this.#lost(rows.transaction.error?.message ?? "no room");
      entries.forEach((entry, i) => entry !== before[i] && rows.put(entry, [this.#name, i]));
      rows.delete(range(this.#name, entries.length));
      rows.transaction.commit(); // a page that is being left waits for no callbacks
    } catch (error) {
      this.#lost(error.message);
    }
  }

  #lost(reason) {
    this.#saved = [];
    this.#failed(reason);
  }

  #rows(mode) {
    return this.#db.transaction("messages", mode).objectStore("messages");
  }
}

/** Rows of a conversation from this message on. */
const range = (name, first) => IDBKeyRange.bound([name, first], [name, Infinity]);

/** Holds the name until the tab closes; false when another tab does. Only secure contexts have locks. */
function own(name) {
  if (!navigator.locks) return true;
  return new Promise((done) => {
    navigator.locks
      .request(name, { ifAvailable: true }, (lock) => {
        done(lock !== null);
        return lock && new Promise(() => {});
      })
      .catch(() => done(true));
  });
}

/** A database that does not answer is as good as none. */
function soon(promise) {
  return Promise.race([promise, new Promise((_, fail) => setTimeout(fail, 3000))]);
}

function result(request) {
  return new Promise((done, fail) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
}

export const draft = {
  get: () => sessionStorage.getItem(DRAFT) ?? "",
  set(text) {
    try {
      sessionStorage.setItem(DRAFT, text);
    } catch {
      // Longer than there is room for.
    }
  },
};

export function readChoice(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function keepChoice(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Then it holds until the reload.
  }
}
