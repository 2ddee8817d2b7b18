// What is typed and not sent yet, and answers on their way in while the page closes: in localStorage, which writes at
// once, where IndexedDB may come too late.
const PREFIX = "edgellm.";

function read(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

function write(name, text) {
  try {
    if (text) localStorage.setItem(PREFIX + name, text);
    else localStorage.removeItem(PREFIX + name);
    return true;
  } catch {
    return false; // full, or forbidden
  }
}

// place: the id of a conversation, of a turn that is edited, or of a call whose result is typed.
export const draft = {
  get: (place) => read(`draft.${place}`) ?? "",
  set: (place, text) => write(`draft.${place}`, text),
};

// Small values that outlive the page, as JSON.
export const kept = {
  get(name, otherwise) {
    try {
      return JSON.parse(read(name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set: (name, value) => write(name, value === null ? "" : JSON.stringify(value)),
};
