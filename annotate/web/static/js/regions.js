// Rectangles on the candidates that say where a fault is, drawn with the pointer or the keyboard.

import { t } from "./i18n.js";

const SMALLEST = 4; // pixels of the image; less is a click that slipped

/** Draws the regions of the candidate at `place` over its picture. */
export function drawRegions(card, regions, place) {
  const layer = card.querySelector(".ws-regions");
  const { width, height } = card.natural;
  const boxes = regions.flatMap((region, index) => {
    if (region.place !== place) return [];
    const box = document.createElement("span");
    box.className = "ws-region";
    setBox(box, region, width, height);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "ws-region-remove";
    remove.value = index;
    remove.textContent = "×";
    remove.setAttribute("aria-label", t("region.remove"));
    const label = document.createElement("span");
    label.textContent = region.criterion ? t(`question.${region.criterion}.name`) : "";
    box.append(label, remove);
    return [box];
  });
  layer.replaceChildren(...boxes);
}

function setBox(box, region, width, height) {
  Object.assign(box.style, {
    left: `${(region.x / width) * 100}%`,
    top: `${(region.y / height) * 100}%`,
    width: `${(region.width / width) * 100}%`,
    height: `${(region.height / height) * 100}%`,
  });
}

export class RegionPen {
  /** `onDraw` takes each finished region. */
  constructor(root, grid, onDraw) {
    this.root = root;
    this.grid = grid;
    this.onDraw = onDraw;
    grid.stage.addEventListener("pointerdown", (event) => this.onDown(event));
  }

  get isOn() {
    return this.root.dataset.regions !== undefined;
  }

  toggle(on = !this.isOn) {
    if (on) this.root.dataset.regions = "";
    else delete this.root.dataset.regions;
    this.cancel();
    this.drawn = false;
  }

  onDown(event) {
    const frame = event.target.closest(".ws-frame");
    this.drawn = false;
    if (!this.isOn || !frame || event.target.closest("button")) return;
    event.preventDefault();
    const card = frame.closest(".ws-card");
    const start = this.pixelAt(card, event);
    const draft = this.makeDraft(card);
    const move = (each) => this.stretch(draft, start, this.pixelAt(card, each));
    const end = () => {
      document.removeEventListener("pointermove", move);
      document.removeEventListener("pointerup", end);
      this.finish(draft);
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", end);
  }

  pixelAt(card, event) {
    // The picture's own rectangle is where it is drawn, enlarged or not.
    const box = card.querySelector(".ws-picture").getBoundingClientRect();
    const { width, height } = card.natural;
    const clamp = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
    return {
      x: clamp(((event.clientX - box.left) / box.width) * width, width),
      y: clamp(((event.clientY - box.top) / box.height) * height, height),
    };
  }

  makeDraft(card) {
    const box = document.createElement("span");
    box.className = "ws-region ws-region-draft";
    card.querySelector(".ws-regions").append(box);
    return { card, box, region: null };
  }

  stretch(draft, from, to) {
    const [x, y] = [Math.min(from.x, to.x), Math.min(from.y, to.y)].map(Math.round);
    const [right, low] = [Math.max(from.x, to.x), Math.max(from.y, to.y)].map(Math.round);
    draft.region = { x, y, width: right - x, height: low - y };
    setBox(draft.box, draft.region, draft.card.natural.width, draft.card.natural.height);
  }

  finish({ card, box, region }) {
    box.remove();
    this.keyDraft = null;
    if (!region || region.width < SMALLEST || region.height < SMALLEST) return;
    this.drawn = true; // the click that ends a drag marks nothing
    this.onDraw({ place: this.grid.cards.indexOf(card), ...region, criterion: null });
  }

  cancel() {
    this.keyDraft?.box.remove();
    this.keyDraft = null;
  }

  /** By the keyboard: arrows move a rectangle, with Shift its lower right corner; Enter keeps it. */
  onKey(name, key) {
    if (!this.isOn || this.grid.focused < 0) return false;
    if (name === "submit" && this.keyDraft) {
      this.finish(this.keyDraft);
      return true;
    }
    if (name !== "move" && name !== "pan") return false;
    const card = this.grid.cards[this.grid.focused];
    if (this.keyDraft?.card !== card) this.startByKey(card);
    this.moveByKey(this.keyDraft, key, name === "pan");
    return true;
  }

  startByKey(card) {
    this.cancel();
    const { width, height } = card.natural;
    this.keyDraft = this.makeDraft(card);
    const quarter = { x: Math.round(width / 4), y: Math.round(height / 4) };
    this.stretch(this.keyDraft, { x: width / 2 - quarter.x / 2, y: height / 2 - quarter.y / 2 }, {
      x: width / 2 + quarter.x / 2,
      y: height / 2 + quarter.y / 2,
    });
  }

  moveByKey(draft, key, resize) {
    const { width, height } = draft.card.natural;
    const step = Math.max(1, Math.round(Math.min(width, height) / 32));
    const dx = { ArrowLeft: -step, ArrowRight: step }[key] ?? 0;
    const dy = { ArrowUp: -step, ArrowDown: step }[key] ?? 0;
    const old = draft.region;
    const keep = (value, least, most) => Math.min(most, Math.max(least, value));
    const x = resize ? old.x : keep(old.x + dx, 0, width - old.width);
    const y = resize ? old.y : keep(old.y + dy, 0, height - old.height);
    const right = resize ? keep(x + old.width + dx, x + SMALLEST, width) : x + old.width;
    const low = resize ? keep(y + old.height + dy, y + SMALLEST, height) : y + old.height;
    this.stretch(draft, { x, y }, { x: right, y: low });
  }
}
