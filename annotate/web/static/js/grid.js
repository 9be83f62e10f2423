// The candidates on the stage: equal boxes, whole-factor scaling, zoom at the cursor in all of
// them at once.

import { t } from "./i18n.js";

const GAP = 8;
const WASTE = 0.6; // below this share of the box a whole factor would be too small to judge

export const letterOf = (position) => String.fromCharCode(65 + position);

/** Size in CSS pixels at which an image of `natural` pixels fills a box without needless blur. */
export function displayScale(fit, ratio) {
  if (fit < 1 / ratio) return fit;
  const whole = Math.floor(fit * ratio) / ratio;
  return whole / fit >= WASTE ? whole : fit;
}

/** The number of columns at which the largest candidate is shown largest. */
export function bestColumns(count, size, stage, strip, ratio) {
  let best = { columns: 1, scale: -1 };
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const width = (stage.width - GAP * (columns - 1)) / columns;
    const height = (stage.height - GAP * (rows - 1)) / rows - strip;
    const fit = Math.min(width / size.width, height / size.height);
    const scale = displayScale(fit, ratio);
    if (scale > best.scale + 1e-6) best = { columns, scale };
  }
  return best.columns;
}

export class Grid {
  constructor(stage, template) {
    this.stage = stage;
    this.template = template;
    this.cards = [];
    this.columns = 1;
    this.zoomed = null;
    new ResizeObserver(() => this.layout()).observe(stage);
  }

  /** Shows a task's candidates; resolves when all are decoded, with the number that failed. */
  async show(candidates) {
    this.endZoom();
    this.size = {
      width: Math.max(...candidates.map((candidate) => candidate.width)),
      height: Math.max(...candidates.map((candidate) => candidate.height)),
    };
    this.cards = candidates.map((candidate, position) => this.makeCard(candidate, position));
    this.stage.replaceChildren(...this.cards);
    this.layout();
    const loads = this.cards.map((card, position) => this.load(card, candidates[position].src));
    return (await Promise.all(loads)).filter((ok) => !ok).length;
  }

  makeCard(candidate, position) {
    const card = this.template.content.firstElementChild.cloneNode(true);
    card.dataset.position = position;
    card.natural = { width: candidate.width, height: candidate.height };
    card.querySelector(".ws-letter").textContent = letterOf(position);
    card.querySelector(".ws-digit").textContent = position + 1;
    card.querySelector("img").alt = t("card.alt", { letter: letterOf(position) });
    return card;
  }

  async load(card, src) {
    const image = card.querySelector("img");
    const broken = card.querySelector(".ws-broken");
    broken.hidden = true;
    image.src = src;
    try {
      await image.decode();
    } catch {
      broken.textContent = t("card.broken");
      broken.hidden = !card.isConnected;
      return false;
    }
    card.dataset.loaded = "";
    return true;
  }

  layout() {
    if (this.cards.length === 0) return;
    const style = getComputedStyle(this.stage);
    const stage = {
      width: this.stage.clientWidth - parseFloat(style.paddingLeft) * 2,
      height: this.stage.clientHeight - parseFloat(style.paddingTop) * 2,
    };
    const ratio = window.devicePixelRatio || 1;
    const strip = this.cards[0].querySelector(".ws-strip").offsetHeight;
    this.columns = bestColumns(this.cards.length, this.size, stage, strip, ratio);
    this.stage.style.gridTemplateColumns = `repeat(${this.columns}, minmax(0, 1fr))`;
    for (const card of this.cards) {
      const frame = card.querySelector(".ws-frame");
      const image = card.querySelector("img");
      const { width, height } = card.natural;
      const fit = Math.min(frame.clientWidth / width, frame.clientHeight / height);
      const scale = displayScale(fit, ratio);
      image.style.width = `${width * scale}px`;
      image.style.height = `${height * scale}px`;
      image.toggleAttribute("data-upscaled", scale * ratio > 1);
    }
  }

  /** Draws the marks of a pick. */
  mark(pick) {
    this.cards.forEach((card, position) => {
      const mark = pick.win === position ? "best" : pick.lose === position ? "worst" : null;
      if (mark) card.dataset.mark = mark;
      else delete card.dataset.mark;
      card.querySelector(".ws-mark-best").setAttribute("aria-pressed", mark === "best");
      card.querySelector(".ws-mark-worst").setAttribute("aria-pressed", mark === "worst");
      const state = mark ? t(`mark.${mark}`) : t("mark.none");
      card.setAttribute("aria-label", t("card.label", { letter: letterOf(position), state }));
    });
  }

  get focused() {
    const card = document.activeElement?.closest?.(".ws-card");
    return card ? this.cards.indexOf(card) : -1;
  }

  moveFocus(key) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const from = this.focused;
    const to = from < 0 ? 0 : from + steps[key];
    if (to >= 0 && to < this.cards.length) this.cards[to].focus();
  }

  /** Enlarges the same place in every candidate: (x, y) in the window, or the middle. */
  zoom(x, y) {
    const point = this.pointAt(x, y) ?? this.zoomed ?? { u: 0.5, v: 0.5 };
    this.zoomed = point;
    for (const card of this.cards) {
      const image = card.querySelector("img");
      const shown = image.offsetWidth;
      const scale = Math.max(2, card.natural.width / shown);
      image.style.transformOrigin = `${point.u * 100}% ${point.v * 100}%`;
      image.style.transform = `scale(${scale})`;
    }
  }

  endZoom() {
    this.zoomed = null;
    for (const card of this.cards) card.querySelector("img").style.transform = "";
  }

  // The place under the cursor as a share of the picture, from layout boxes: the image's own
  // rectangle is the enlarged one while the zoom is held.
  pointAt(x, y) {
    const frame = document.elementFromPoint(x, y)?.closest?.(".ws-frame");
    if (!frame) return null;
    const image = frame.querySelector("img");
    const box = frame.getBoundingClientRect();
    const left = box.left + (box.width - image.offsetWidth) / 2;
    const top = box.top + (box.height - image.offsetHeight) / 2;
    const clamp = (value) => Math.min(1, Math.max(0, value));
    return {
      u: clamp((x - left) / image.offsetWidth),
      v: clamp((y - top) / image.offsetHeight),
    };
  }
}
