// Which action a key stands for. Digits go by their place on the keyboard, so that Shift and
// layouts whose digits need Shift both work.

const LETTERS = { s: "skip", f: "flag", z: "undo", b: "best", w: "worst" };

/** The rows of the key overlay: keys, then the name of the text. */
export const KEY_ROWS = [
  [["1", "–", "9"], "keys.press"],
  [["Shift", "1", "–", "9"], "keys.worst"],
  [["0"], "keys.all_bad"],
  [["="], "keys.all_equal"],
  [["S"], "keys.skip"],
  [["F"], "keys.flag"],
  [["Z"], "keys.undo"],
  [["Enter"], "keys.submit"],
  [["Space"], "keys.zoom"],
  [["←", "→", "↑", "↓"], "keys.focus"],
  [["B", "W"], "keys.focused"],
  [["?"], "keys.help"],
];

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

/** The action of a key: {name, position?}, or null. */
export function actionOf(event) {
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1];
  // Without NumLock the number pad moves the cursor.
  if (digit !== undefined && !(event.code.startsWith("Numpad") && event.key.length > 1)) {
    if (digit !== "0") {
      return { name: event.shiftKey ? "worst" : "press", position: Number(digit) - 1 };
    }
    if (!event.shiftKey) return { name: "all_bad" };
  }
  if (event.key === "?" || event.key === "？") return { name: "help" };
  if (event.key === "=" || event.key === "＝") return { name: "all_equal" };
  if (event.key === "Enter") return { name: "submit" };
  if (event.code === "Space") return { name: "zoom" };
  if (event.key.startsWith("Arrow")) return { name: "focus", key: event.key };
  if (event.shiftKey) return null;
  const latin = /^[a-z]$/i.test(event.key) ? event.key : event.code.replace(/^Key/, "");
  const name = LETTERS[latin.toLowerCase()];
  return name ? { name } : null;
}
