// Which action a key stands for, and the annotator's own choice of keys.
//
// A key is written as "Digit1", "Shift+Digit1" (by its place on the keyboard, so that layouts whose
// digits need Shift work), or by what it types: "z", "?", "Enter", "Space".

/** Every action: its default key, and the group under which the overview lists it. */
export const ACTIONS = {
  all_bad: { key: "0", group: "answer" },
  all_equal: { key: "=", group: "answer" },
  cannot_judge: { key: "c", group: "answer" },
  skip: { key: "n", group: "answer" },
  flag: { key: "f", group: "answer" },
  submit: { key: "Enter", group: "answer" },
  undo: { key: "z", group: "answer" },
  best: { key: "b", group: "answer" },
  worst: { key: "v", group: "answer" },
  "win:aesthetics": { key: "q", group: "reason" },
  "win:instruction": { key: "w", group: "reason" },
  "win:detail": { key: "e", group: "reason" },
  "lose:aesthetics": { key: "a", group: "reason" },
  "lose:instruction": { key: "s", group: "reason" },
  "lose:detail": { key: "d", group: "reason" },
  hold: { key: "Space", group: "look" },
  zoom_in: { key: "+", group: "look" },
  zoom_out: { key: "-", group: "look" },
  solo: { key: "g", group: "look" },
  flip: { key: "x", group: "look" },
  source: { key: "o", group: "look" },
  whole: { key: "Escape", group: "look" },
  prompt: { key: "p", group: "look" },
  regions: { key: "m", group: "mark" },
  ratings: { key: "t", group: "mark" },
  rate_up: { key: "]", group: "mark" },
  rate_down: { key: "[", group: "mark" },
  thumb_up: { key: ".", group: "mark" },
  thumb_down: { key: ",", group: "mark" },
  guideline: { key: "?", group: "page" },
  keys: { key: "k", group: "page" },
  history: { key: "h", group: "page" },
};

/** Keys that cannot be given to an action: digits mark, arrows move, Tab and Delete stay. */
const FIXED = /^(?:[1-9]|Arrow.*|Tab|Delete|Backspace|Shift|Control|Alt|Meta|CapsLock|Process|Dead)$/;
const FULL_WIDTH = { "？": "?", "＝": "=", "＋": "+", "－": "-", "，": ",", "。": ".", "【": "[", "】": "]" };

const isTyping = (node) =>
  node instanceof HTMLElement &&
  (node.isContentEditable || node.matches("textarea, select, input:not([type=checkbox])"));

/** True where a key belongs to an input method, a field, the browser or a held key. */
export function isForeign(event) {
  // 229 is what browsers report for a key that an input method has taken.
  if (event.isComposing || event.keyCode === 229) return true;
  if (event.ctrlKey || event.altKey || event.metaKey) return true;
  return isTyping(event.target);
}

/** The name of the key that was pressed, or null for a key that means nothing here. */
export function keyName(event) {
  if (event.code === "Space") return "Space";
  if (event.code === "Digit0" && !event.shiftKey) return "0";
  const key = FULL_WIDTH[event.key] ?? event.key;
  if (key.length > 1) return key;
  // A letter goes by what it types; on a layout of another script by its place.
  const latin = /^[ -~]$/.test(key) ? key : event.code.replace(/^Key/, "");
  return latin.length === 1 ? latin.toLowerCase() : null;
}

export class Keymap {
  constructor(settings) {
    this.settings = settings;
    this.refresh();
  }

  refresh() {
    const own = this.settings.get("keys");
    this.keyOf = Object.fromEntries(
      Object.entries(ACTIONS).map(([name, { key }]) => [name, own[name] ?? key]),
    );
    this.actionAt = Object.fromEntries(
      Object.entries(this.keyOf).map(([name, key]) => [key, name]),
    );
  }

  /** Gives an action a key. Returns why not: "fixed", "taken:ACTION", or null when it is done. */
  assign(name, key) {
    if (FIXED.test(key)) return "fixed";
    const holder = this.actionAt[key];
    if (holder && holder !== name) return `taken:${holder}`;
    this.settings.set("keys", { ...this.settings.get("keys"), [name]: key });
    this.refresh();
    return null;
  }

  reset() {
    this.settings.set("keys", {});
    this.refresh();
  }

  /** The action of a key press: {name, place?, key?}, or null. */
  actionOf(event) {
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    // Without NumLock the number pad moves the cursor.
    if (digit !== undefined && !(event.code.startsWith("Numpad") && event.key.length > 1)) {
      return { name: event.shiftKey ? "worst" : "press", place: Number(digit) - 1 };
    }
    if (event.key.startsWith("Arrow")) {
      return { name: event.shiftKey ? "pan" : "move", key: event.key };
    }
    if (event.key === "Delete" || event.key === "Backspace") return { name: "remove_region" };
    // Shift is part of how signs like ? and + are typed, but not of how letters are.
    if (event.shiftKey && /^[a-z]$/i.test(event.key)) return null;
    const name = this.actionAt[keyName(event)];
    return name ? { name } : null;
  }
}

/** How a key is written on a key cap. */
export function capOf(key) {
  const signs = { Enter: "↵", Escape: "Esc" };
  return signs[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}
