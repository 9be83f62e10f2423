// The interface in the annotator's language, changed while the page stands.

const cache = new Map();
let words = {};
let language = "en";

export const LANGUAGES = ["en", "zh"];

export function currentLanguage() {
  return language;
}

/** The texts of one language by their keys. */
export async function catalogue(code) {
  if (!cache.has(code)) {
    const reply = await fetch(`/static/locales/${code}.json`);
    if (!reply.ok) throw new Error(`no catalogue for ${code}: HTTP ${reply.status}`);
    cache.set(code, await reply.json());
  }
  return cache.get(code);
}

/** Loads a catalogue and makes it current. */
export async function setLanguage(wanted) {
  const code = LANGUAGES.includes(wanted) ? wanted : "en";
  words = await catalogue(code);
  language = code;
  document.documentElement.lang = code === "zh" ? "zh-CN" : code;
}

/** The text of `key` with its {names} filled in; the key itself where a catalogue lacks it. */
export function t(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Fills in every element below `root` that names its text. */
export function translate(root) {
  for (const node of root.querySelectorAll("[data-i18n]")) {
    node.textContent = t(node.dataset.i18n);
  }
  for (const node of root.querySelectorAll("[data-i18n-title]")) {
    node.title = t(node.dataset.i18nTitle);
  }
  for (const node of root.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel, { value: node.value }));
  }
}
