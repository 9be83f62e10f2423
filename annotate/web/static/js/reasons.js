// The row under the candidates: why the best won and why the worst lost, one key each.

import { t } from "./i18n.js";
import { capOf } from "./keys.js";
import { CRITERIA } from "./pick.js";

export class Reasons {
  constructor(root, keymap) {
    this.row = root.querySelector(".ws-why");
    this.keymap = keymap;
  }

  translate() {
    this.row.replaceChildren(...["win", "lose"].map((target) => this.makeGroup(target)));
  }

  makeGroup(target) {
    const group = document.createElement("div");
    group.className = "ws-why-group";
    group.dataset.target = target;
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", t(`why.${target}_label`));
    const label = document.createElement("span");
    label.className = "ws-why-label";
    const chips = CRITERIA.map((criterion) => {
      const chip = document.createElement("button");
      const text = document.createElement("span");
      const cap = document.createElement("kbd");
      const name = `${target}:${criterion}`;
      chip.type = "button";
      chip.dataset.action = name;
      text.textContent = t(`question.${criterion}.name`);
      cap.textContent = capOf(this.keymap.keyOf[name]);
      chip.append(text, cap);
      return chip;
    });
    group.append(label, ...chips);
    return group;
  }

  /** Shows the reasons of a pick; `letterOf` names its candidates. */
  mark(pick, letterOf) {
    for (const group of this.row.children) {
      const { target } = group.dataset;
      const place = pick.outcome === "picked" ? pick[target] : null;
      const known = place !== null;
      group.querySelector(".ws-why-label").textContent = known
        ? t(`why.${target}`, { letter: letterOf(place) })
        : t(`why.${target}_none`);
      for (const chip of group.querySelectorAll("button")) {
        chip.disabled = !known;
        chip.setAttribute("aria-pressed", pick.reasons.includes(chip.dataset.action));
      }
    }
  }
}
