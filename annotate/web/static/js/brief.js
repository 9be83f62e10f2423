// The question and the prompt above the candidates.

import { t } from "./i18n.js";
import { capOf } from "./keys.js";

export class Brief {
  constructor(root, keymap) {
    this.keymap = keymap;
    this.find = (selector) => root.querySelector(selector);
  }

  /** Shows a task's question and prompt; the question lights up where it has `changed`. */
  show({ question, prompt, reference, source }, changed) {
    const kind = reference === null ? "ask" : "ask_reference";
    this.find(".ws-criterion").textContent = t(`question.${question}.name`);
    this.find(".ws-question").textContent = t(`question.${question}.${kind}`);
    const touch = window.matchMedia("(pointer: coarse)").matches;
    const enlarge = t(touch ? "hint.hold" : "hint.space");
    const hint = t(`question.${question}.hint`, { enlarge });
    this.find(".ws-hint").textContent = source ? `${hint} ${t("hint.source", { key: capOf(this.keymap.keyOf.source) })}` : hint;
    this.find(".ws-prompt .ws-label").textContent = t(source ? "prompt.edit" : "prompt.label");
    const text = this.find(".ws-prompt-text");
    text.textContent = prompt.text;
    text.lang = prompt.lang;
    this.toggle(false);
    const ask = this.find(".ws-ask");
    delete ask.dataset.changed;
    if (changed) requestAnimationFrame(() => (ask.dataset.changed = ""));
  }

  /** Unfolds a long prompt, or folds it again. */
  toggle(open = this.find(".ws-prompt").dataset.open === undefined) {
    const prompt = this.find(".ws-prompt");
    const text = this.find(".ws-prompt-text");
    const more = this.find(".ws-more");
    if (open) prompt.dataset.open = "";
    else delete prompt.dataset.open;
    more.hidden = !open && text.scrollHeight <= text.clientHeight + 2;
    more.textContent = t(open ? "prompt.less" : "prompt.more");
    more.setAttribute("aria-expanded", open);
  }
}
