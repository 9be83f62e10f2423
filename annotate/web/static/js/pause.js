// Suggests a break after a stretch of work. It never stops anybody.

import { t } from "./i18n.js";

const REST_MS = 5 * 60_000; // so long without a movement is a break taken

export class Pause {
  constructor(root, settings) {
    this.note = root.querySelector(".ws-pause");
    this.settings = settings;
    this.begin();
    this.note.querySelector("button").addEventListener("click", () => this.begin());
    for (const name of ["pointermove", "keydown", "pointerdown"]) {
      document.addEventListener(name, () => this.noteLife(), { passive: true });
    }
  }

  begin() {
    this.since = Date.now();
    this.lastLife = this.since;
    this.note.hidden = true;
  }

  noteLife() {
    const now = Date.now();
    if (now - this.lastLife > REST_MS) this.begin();
    this.lastLife = now;
  }

  /** Minutes of work since the last break. */
  get minutes() {
    return Math.floor((Date.now() - this.since) / 60_000);
  }

  /** Called between two tasks: never while somebody is judging. */
  check() {
    const limit = this.settings.get("pause_min");
    if (limit === 0 || this.minutes < limit) return;
    this.note.querySelector("span").textContent = t("pause.text", { minutes: this.minutes });
    this.note.querySelector("button").textContent = t("pause.ok");
    this.note.hidden = false;
  }
}
