// The dialogs over the canvas: guideline, keys and settings, history, and the reason for a flag.

import { GuidelineDialog } from "./guideline.js";
import { HistoryDialog } from "./history.js";
import { KeysDialog } from "./remap.js";

const REASONS = ["prompt", "harmful", "rights", "other"];

export class Dialogs {
  constructor(canvas) {
    const { root } = canvas;
    this.all = [...root.querySelectorAll("dialog")];
    this.flag = root.querySelector(".ws-flag");
    this.reasons = root.querySelector(".ws-reasons");
    this.note = this.flag.querySelector("textarea");
    const guideline = new GuidelineDialog(root, canvas);
    this.panels = {
      guideline,
      keys: new KeysDialog(root, canvas),
      history: new HistoryDialog(root, canvas, guideline),
    };
    this.makeReasons();
    this.flag.querySelector(".ws-flag-cancel").addEventListener("click", () => this.flag.close(""));
    this.flag.addEventListener("keydown", (event) => this.onFlagKey(event));
  }

  get isOpen() {
    return this.all.some((dialog) => dialog.open);
  }

  show(name) {
    if (!this.isOpen) this.panels[name].show();
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

  translate() {
    for (const panel of Object.values(this.panels)) panel.translate();
  }
}
