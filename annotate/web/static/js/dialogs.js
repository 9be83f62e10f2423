// The two dialogs: the reason for a flag, and the keys with the annotator's settings.

import { KEY_ROWS } from "./keys.js";
import { t } from "./i18n.js";

const REASONS = ["image", "prompt", "harmful", "rights", "other"];

export class Dialogs {
  constructor(root, settings, onSettings) {
    this.flag = root.querySelector(".ws-flag");
    this.keys = root.querySelector(".ws-keys");
    this.reasons = root.querySelector(".ws-reasons");
    this.note = this.flag.querySelector("textarea");
    this.makeReasons();
    this.flag.querySelector(".ws-flag-cancel").addEventListener("click", () => this.flag.close(""));
    this.flag.addEventListener("keydown", (event) => this.onFlagKey(event));
    for (const box of this.keys.querySelectorAll("input")) {
      box.checked = settings.get(box.name);
      box.addEventListener("change", () => {
        settings.set(box.name, box.checked);
        onSettings();
      });
    }
  }

  get isOpen() {
    return this.flag.open || this.keys.open;
  }

  makeReasons() {
    for (const reason of REASONS) {
      const label = document.createElement("label");
      const radio = document.createElement("input");
      const text = document.createElement("span");
      Object.assign(radio, { type: "radio", name: "reason", value: reason, required: true });
      text.dataset.i18n = `flag.${reason}`;
      label.append(radio, text);
      this.reasons.append(label);
    }
  }

  // Enter sends from a choice and starts a line in the note; Ctrl+Enter sends from both.
  onFlagKey(event) {
    if (event.key !== "Enter" || event.isComposing) return;
    const inNote = event.target === this.note;
    if (event.target.type === "radio" || (inNote && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      this.flag.querySelector("form").requestSubmit(this.flag.querySelector(".ws-flag-send"));
    }
  }

  /** Resolves with "reason: note", or with null where the annotator thought better of it. */
  askReason() {
    this.note.value = "";
    for (const radio of this.reasons.querySelectorAll("input")) radio.checked = false;
    this.flag.returnValue = "";
    this.flag.showModal();
    const first = this.reasons.querySelector("input");
    first.checked = true;
    first.focus();
    const send = this.flag.querySelector(".ws-flag-send");
    send.value = "send";
    return new Promise((resolve) => {
      this.flag.addEventListener(
        "close",
        () => {
          const reason = this.reasons.querySelector("input:checked")?.value;
          const note = this.note.value.trim();
          const sent = this.flag.returnValue === "send" && reason;
          resolve(sent ? (note ? `${reason}: ${note}` : reason) : null);
        },
        { once: true },
      );
    });
  }

  showKeys() {
    if (!this.isOpen) this.keys.showModal();
  }

  translate() {
    const rows = KEY_ROWS.flatMap(([keys, text]) => {
      const term = document.createElement("dt");
      for (const key of keys) {
        const cap = document.createElement(key === "–" ? "span" : "kbd");
        cap.textContent = key;
        term.append(cap);
      }
      const meaning = document.createElement("dd");
      meaning.textContent = t(text);
      return [term, meaning];
    });
    this.keys.querySelector(".ws-keylist").replaceChildren(...rows);
  }
}
