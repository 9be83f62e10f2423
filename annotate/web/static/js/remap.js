// The dialog of keys and settings: every action with its key, which can be given another.

import { button, make } from "./dom.js";
import { t } from "./i18n.js";
import { ACTIONS, capOf, keyName } from "./keys.js";

const GROUPS = ["answer", "reason", "look", "mark", "page"];

export class KeysDialog {
  constructor(root, canvas) {
    this.canvas = canvas;
    this.dialog = root.querySelector(".ws-keys");
    this.list = this.dialog.querySelector(".ws-keylist");
    this.status = this.dialog.querySelector(".ws-keys-status");
    this.waiting = null; // the action that waits for its new key
    const { settings } = canvas;
    for (const field of this.dialog.querySelectorAll("input")) {
      const isNumber = field.type === "number";
      if (isNumber) field.value = settings.get(field.name);
      else field.checked = settings.get(field.name);
      field.addEventListener("change", () => {
        const minutes = Math.min(600, Math.max(0, Math.round(Number(field.value)) || 0));
        settings.set(field.name, isNumber ? minutes : field.checked);
        canvas.applySettings();
      });
    }
    this.dialog.querySelector(".ws-keys-reset").addEventListener("click", () => this.reset());
    this.dialog.addEventListener("keydown", (event) => this.onKey(event), { capture: true });
    this.dialog.addEventListener("close", () => this.wait(null));
  }

  show() {
    this.status.textContent = "";
    this.dialog.querySelector("[name=ratings]").checked = this.canvas.settings.get("ratings");
    this.dialog.showModal();
  }

  translate() {
    const rows = GROUPS.flatMap((group) => [
      make("h3", { text: t(`keys.${group}`) }),
      make("dl", {}, ...(group === "answer" ? this.fixedRows() : []), ...this.rows(group)),
    ]);
    this.list.replaceChildren(...rows);
  }

  fixedRows() {
    const fixed = [
      [["1", "–", "9"], "keys.press"],
      [["⇧", "1", "–", "9"], "keys.worst_digit"],
      [["←", "→", "↑", "↓"], "keys.move"],
    ];
    return fixed.flatMap(([keys, text]) => [
      make("dt", {}, ...keys.map((key) => make(key === "–" ? "span" : "kbd", { text: key }))),
      make("dd", { text: t(text) }),
    ]);
  }

  rows(group) {
    const names = Object.keys(ACTIONS).filter((name) => ACTIONS[name].group === group);
    return names.flatMap((name) => {
      const meaning = t(`do.${name}`);
      const cap = capOf(this.canvas.keymap.keyOf[name]);
      const change = button(cap, () => this.wait(name), {
        class: "ws-cap",
        "aria-label": t("keys.change", { key: cap, action: meaning }),
      });
      change.dataset.remap = name;
      return [make("dt", {}, change), make("dd", { text: meaning })];
    });
  }

  wait(name) {
    this.waiting = name;
    for (const cap of this.list.querySelectorAll("[data-remap]")) {
      cap.toggleAttribute("data-waiting", cap.dataset.remap === name);
    }
    if (name) this.status.textContent = t("keys.waiting", { action: t(`do.${name}`) });
  }

  onKey(event) {
    if (!this.waiting || event.isComposing || event.key === "Tab") return;
    event.preventDefault();
    event.stopPropagation();
    if (["Shift", "Control", "Alt", "Meta"].includes(event.key)) return;
    const name = this.waiting;
    const key = keyName(event);
    const fault = key === null ? "fixed" : this.canvas.keymap.assign(name, key);
    if (fault?.startsWith("taken:")) {
      const other = fault.slice("taken:".length);
      this.status.textContent = t("keys.taken", { key: capOf(key), action: t(`do.${other}`) });
    } else if (fault) this.status.textContent = t("keys.fixed");
    else this.accept(name, key);
  }

  accept(name, key) {
    this.refresh();
    this.status.textContent = t("keys.done", { key: capOf(key), action: t(`do.${name}`) });
    this.list.querySelector(`[data-remap="${name}"]`).focus();
  }

  reset() {
    this.canvas.keymap.reset();
    this.refresh();
    this.status.textContent = t("keys.was_reset");
  }

  refresh() {
    this.wait(null);
    this.translate();
    this.canvas.reasons.translate();
    this.canvas.applySettings();
    this.canvas.setPick(this.canvas.pick);
  }
}
