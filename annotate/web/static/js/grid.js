// The candidates on the stage: equal boxes, whole-factor scaling, one at a time or all at once.

import { make } from "./dom.js";
import { t, translate } from "./i18n.js";
import { drawRegions } from "./regions.js";

const GAP = 8;
const WASTE = 0.6; // below this share of the box a whole factor would be too small to judge

/** Size in CSS pixels at which an image of `natural` pixels fills a box without needless blur. */
function displayScale(fit, ratio) {
  if (fit < 1 / ratio) return fit;
  const whole = Math.floor(fit * ratio) / ratio;
  return whole / fit >= WASTE ? whole : fit;
}

/** The number of columns at which the largest candidate is shown largest. */
function bestColumns(count, size, stage, strip, ratio) {
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
  /** `ahead` hands out images that were loaded before their task came. */
  constructor(stage, template, ahead) {
    this.stage = stage;
    this.template = template;
    this.ahead = ahead;
    this.cards = [];
    this.columns = 1;
    this.showsSource = false;
    this.solo = null; // the place that is shown alone, or null for all
    this.reference = null;
    this.source = null; // the card of the picture that is edited; it cannot be chosen
    this.onLayout = () => {};
    new ResizeObserver(() => this.layout()).observe(stage);
  }

  letterOf(place) {
    return place === this.reference ? t("card.reference") : String.fromCharCode(65 + place);
  }

  /** Every card on the stage: the candidates, and the source where there is one. */
  get shown() {
    return this.source === null ? this.cards : [this.source, ...this.cards];
  }

  /**
   * Shows a task's candidates, beside `source` where they edit one; resolves when all are decoded,
   * with the number that failed.
   */
  async show(candidates, reference, source = null) {
    this.solo = null;
    this.reference = reference;
    this.showSource(false);
    this.size = {
      width: Math.max(...candidates.map((candidate) => candidate.width)),
      height: Math.max(...candidates.map((candidate) => candidate.height)),
    };
    this.cards = candidates.map((candidate, place) => this.makeCard(candidate, place));
    this.source = source === null ? null : this.makeSource();
    this.stage.replaceChildren(...this.shown);
    this.relabel();
    this.layout();
    const loads = this.cards.map((card, place) => this.load(card, candidates[place].src));
    if (source !== null) loads.push(this.loadSource(source));
    return (await Promise.all(loads)).filter((ok) => !ok).length;
  }

  /** Writes the names of the candidates again, in another language. */
  relabel() {
    this.cards.forEach((card, place) => {
      const letter = this.letterOf(place);
      card.querySelector(".ws-letter").textContent = letter;
      card.querySelector("img").alt = t("card.alt", { letter });
      translate(card);
    });
    if (this.source === null) return;
    this.source.querySelector(".ws-letter").textContent = t("card.source");
    this.source.querySelector("img").alt = t("card.source");
    this.source.setAttribute("aria-label", t("card.source"));
    translate(this.source);
  }

  clear() {
    this.stage.replaceChildren();
    this.cards = [];
    this.source = null;
  }

  makeCard(candidate, place) {
    const card = this.template.content.firstElementChild.cloneNode(true);
    card.natural = { width: candidate.width, height: candidate.height };
    card.querySelector(".ws-digit").textContent = place + 1;
    if (place === this.reference) {
      card.dataset.reference = "";
      for (const part of card.querySelectorAll(".ws-digit, .ws-mark")) part.hidden = true;
    } else if (this.reference !== null) card.querySelector(".ws-mark-best").hidden = true;
    return card;
  }

  makeSource() {
    const card = this.template.content.firstElementChild.cloneNode(true);
    card.natural = { ...this.size };
    card.dataset.source = "";
    for (const part of card.querySelectorAll(".ws-digit, .ws-mark, .ws-rate")) part.remove();
    return card;
  }

  /** Loads the source, and lays it over every candidate, unseen until it is asked for. */
  async loadSource(src) {
    const card = this.source;
    const ok = await this.load(card, src);
    if (!ok || card !== this.source) return ok;
    const image = card.querySelector("img");
    card.natural = { width: image.naturalWidth, height: image.naturalHeight };
    for (const candidate of this.cards) {
      const layer = make("img", { class: "ws-source-layer", src: image.src, alt: "" });
      layer.draggable = false;
      candidate.querySelector(".ws-picture").append(layer);
    }
    this.layout();
    return ok;
  }

  /** Shows the source in the place of every candidate, or the candidates again. */
  showSource(on) {
    this.showsSource = on;
    this.stage.toggleAttribute("data-shows-source", on);
  }

  async load(card, src) {
    const broken = card.querySelector(".ws-broken");
    broken.hidden = true;
    const ready = await this.ahead.take(src);
    let image = card.querySelector("img");
    if (ready) {
      ready.alt = image.alt;
      ready.draggable = false;
      image.replaceWith(ready);
      image = ready;
    } else image.src = src;
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
    const [first] = this.cards;
    this.cards.forEach((card, place) => {
      card.hidden = this.solo !== null && this.solo !== place;
    });
    if (this.source !== null) this.source.hidden = this.solo !== null;
    const shown = this.cards[this.solo ?? 0] ?? first;
    const strip = shown.querySelector(".ws-foot").offsetHeight;
    const count = this.solo === null ? this.shown.length : 1;
    this.columns = bestColumns(count, this.size, stage, strip, ratio);
    this.stage.style.gridTemplateColumns = `repeat(${this.columns}, minmax(0, 1fr))`;
    for (const card of this.shown) this.sizePicture(card, ratio);
    this.onLayout();
  }

  sizePicture(card, ratio) {
    const frame = card.querySelector(".ws-frame");
    const picture = card.querySelector(".ws-picture");
    const { width, height } = card.natural;
    const fit = Math.min(frame.clientWidth / width, frame.clientHeight / height);
    const scale = displayScale(fit, ratio);
    picture.style.width = `${width * scale}px`;
    picture.style.height = `${height * scale}px`;
    picture.toggleAttribute("data-upscaled", scale * ratio > 1);
  }

  /** Draws what a pick says of each candidate. */
  mark(pick) {
    this.cards.forEach((card, place) => {
      const mark = pick.win === place ? "best" : pick.lose === place ? "worst" : null;
      if (mark) card.dataset.mark = mark;
      else delete card.dataset.mark;
      card.querySelector(".ws-mark-best").setAttribute("aria-pressed", mark === "best");
      card.querySelector(".ws-mark-worst").setAttribute("aria-pressed", mark === "worst");
      const { rating = null, thumb = null } = pick.marks[place] ?? {};
      for (const star of card.querySelectorAll(".ws-star")) {
        star.setAttribute("aria-pressed", rating !== null && Number(star.value) <= rating);
      }
      for (const button of card.querySelectorAll(".ws-thumb")) {
        button.setAttribute("aria-pressed", button.value === thumb);
      }
      drawRegions(card, pick.regions, place);
      const states = [mark ? t(`mark.${mark}`) : t("mark.none")];
      if (rating !== null) states.push(t("card.rating", { rating }));
      if (thumb !== null) states.push(t(`thumb.${thumb}`));
      const letter = this.letterOf(place);
      card.setAttribute("aria-label", t("card.label", { letter, state: states.join(", ") }));
    });
  }

  /** The place of the candidate with the focus, or of the one that is shown alone; -1 for none. */
  get focused() {
    if (this.solo !== null) return this.solo;
    const card = document.activeElement?.closest?.(".ws-card");
    return card ? this.cards.indexOf(card) : -1;
  }

  moveFocus(key) {
    const columns = this.solo === null ? this.columns : 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const order = this.visualOrder;
    const from = order.indexOf(this.focused);
    const to = from < 0 ? 0 : from + steps[key];
    if (to < 0 || to >= order.length) return;
    if (this.solo !== null) this.showAlone(order[to]);
    this.cards[order[to]].focus();
  }

  /** Places as they stand on the page: a reference comes first. */
  get visualOrder() {
    const places = this.cards.map((_, place) => place);
    if (this.reference === null) return places;
    return [this.reference, ...places.filter((place) => place !== this.reference)];
  }

  /** Shows one candidate alone, or all for null. */
  showAlone(place) {
    this.solo = place;
    if (place === null) delete this.stage.dataset.solo;
    else this.stage.dataset.solo = "";
    this.layout();
  }
}
