// The annotator's own choices, kept in this browser.

const SLOT = "winsome.settings";
const DEFAULTS = {
  quick: true,
  crisp: false,
  shortcuts: true,
  ratings: false,
  theme: "auto",
  language: null,
  keys: {}, // action -> key, where it is not the usual one
  pause_min: 45, // minutes of work until a break is suggested; 0 is never
};

export class Settings {
  get(name) {
    return { ...DEFAULTS, ...this.read() }[name];
  }

  set(name, value) {
    localStorage.setItem(SLOT, JSON.stringify({ ...this.read(), [name]: value }));
  }

  read() {
    try {
      return JSON.parse(localStorage.getItem(SLOT)) ?? {};
    } catch {
      return {}; // not JSON: nothing of ours
    }
  }
}
