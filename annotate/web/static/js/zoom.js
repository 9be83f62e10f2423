// Looking closely: the same place of every candidate, enlarged alike. The wheel, two fingers and
// + and - zoom, dragging pans; while the space bar or a finger is held, pixels are shown at 100 %.

import { Pinch } from "./pinch.js";

const HOLD_MS = 350;
const DRAG_PX = 4;
const STEP = 1.5;
const MOST = 16;

export class Zoom {
  /** `onUse` is told of each use; the page carries data-zoom while something is enlarged. */
  constructor(root, grid, onUse) {
    this.root = root;
    this.grid = grid;
    this.onUse = onUse;
    this.pointer = { x: -1, y: -1 };
    this.fingerHeld = false;
    this.dragged = false;
    this.held = false;
    this.isDrawing = () => false;
    this.pinch = new Pinch(this);
    this.reset();
    grid.onLayout = () => this.apply();
  }

  listen() {
    const { stage } = this.grid;
    window.addEventListener("blur", () => this.endHold());
    document.addEventListener("pointermove", (event) => {
      this.pointer = { x: event.clientX, y: event.clientY };
      if (this.held) this.lookAt(event.clientX, event.clientY);
    });
    stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.onDown(event));
    this.pinch.listen(stage);
    // The browser's menu for a held finger would end the hold, and offers to save the picture.
    stage.addEventListener("contextmenu", (event) => {
      if (event.target.closest(".ws-frame")) event.preventDefault();
    });
  }

  onWheel(event) {
    // Ctrl and the wheel belong to the browser; a wheel beside the pictures scrolls.
    if (event.ctrlKey || !event.target.closest(".ws-frame") || this.held) return;
    event.preventDefault();
    const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015));
    this.zoomBy(factor, event.clientX, event.clientY);
  }

  onDown(event) {
    this.fingerHeld = false;
    this.dragged = false;
    if (!event.target.closest(".ws-frame") || this.isDrawing()) return;
    if (event.pointerType !== "mouse" && !this.isOn) this.waitForFinger(event);
    if (this.isOn && !this.held) this.drag(event);
  }

  waitForFinger(event) {
    const timer = setTimeout(() => {
      if (this.pinch.isOn) return;
      this.fingerHeld = true;
      this.beginHold(event.clientX, event.clientY);
    }, HOLD_MS);
    const end = () => {
      clearTimeout(timer);
      this.endHold();
      for (const name of ["pointerup", "pointercancel"]) document.removeEventListener(name, end);
    };
    for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, end);
  }

  drag(start) {
    const from = { ...this.view };
    const box = start.target.closest(".ws-frame").querySelector(".ws-picture");
    const move = (event) => {
      if (this.pinch.isOn || event.pointerId !== start.pointerId) return;
      const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
      if (!this.dragged && Math.hypot(dx, dy) < DRAG_PX) return;
      this.dragged = true;
      const { scale } = this.view;
      this.view.u = from.u - dx / (box.offsetWidth * scale);
      this.view.v = from.v - dy / (box.offsetHeight * scale);
      this.apply();
    };
    const end = (event) => {
      if (event.pointerId !== start.pointerId) return;
      document.removeEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) document.removeEventListener(name, end);
    };
    document.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, end);
  }

  get isOn() {
    return this.held || this.view.scale > 1;
  }

  /** Shows everything whole again; true where something was enlarged. */
  reset() {
    const was = Boolean(this.view) && this.isOn;
    this.view = { scale: 1, u: 0.5, v: 0.5 };
    this.held = false;
    this.apply();
    return was;
  }

  /** Enlarges by `factor`; what is at (x, y) in the window, or the middle, stays where it is. */
  zoomBy(factor, x = this.pointer.x, y = this.pointer.y) {
    const { scale } = this.view;
    const next = Math.min(MOST, Math.max(1, scale * factor));
    const at = this.under(x, y);
    if (at) {
      // The point under the cursor keeps its distance to the middle, in pixels of the page.
      this.view.u += (at.u - 0.5) * (1 / scale - 1 / next);
      this.view.v += (at.v - 0.5) * (1 / scale - 1 / next);
    }
    this.view.scale = next < 1.01 ? 1 : next;
    this.onUse();
    this.apply();
  }

  step(direction) {
    this.zoomBy(direction > 0 ? STEP : 1 / STEP);
  }

  /** Moves the enlarged part by an arrow key. */
  pan(key) {
    const by = 0.15 / this.view.scale;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    this.view.u += moves[key][0];
    this.view.v += moves[key][1];
    this.apply();
  }

  beginHold(x = this.pointer.x, y = this.pointer.y) {
    if (this.held) return;
    this.held = true;
    this.before = { ...this.view };
    this.onUse();
    this.lookAt(x, y);
  }

  endHold() {
    if (!this.held) return;
    this.held = false;
    this.view = this.before;
    this.apply();
  }

  lookAt(x, y) {
    const scale = this.fullScale;
    const at = this.under(x, y) ?? this.lastAt ?? { u: 0.5, v: 0.5 };
    this.lastAt = at;
    this.view = { scale, u: at.u - (at.u - 0.5) / scale, v: at.v - (at.v - 0.5) / scale };
    this.apply();
  }

  /** The factor at which one pixel of the image is one of the screen; twice where it is already. */
  get fullScale() {
    const card = this.grid.cards[this.grid.solo ?? 0];
    if (!card) return 2;
    const shown = card.querySelector(".ws-picture").offsetWidth * (window.devicePixelRatio || 1);
    const scale = card.natural.width / shown;
    return scale > 1.05 ? scale : 2;
  }

  /** The place under the cursor as a share of the picture as it lies when nothing is enlarged. */
  under(x, y) {
    const frame = document.elementFromPoint(x, y)?.closest?.(".ws-frame");
    if (!frame) return null;
    const picture = frame.querySelector(".ws-picture");
    const box = frame.getBoundingClientRect();
    const clamp = (value) => Math.min(1, Math.max(0, value));
    return {
      u: clamp(0.5 + (x - box.left - box.width / 2) / picture.offsetWidth),
      v: clamp(0.5 + (y - box.top - box.height / 2) / picture.offsetHeight),
    };
  }

  apply() {
    const { view } = this;
    if (this.isOn) this.root.dataset.zoom = "";
    else delete this.root.dataset.zoom;
    for (const card of this.grid.shown) {
      const picture = card.querySelector(".ws-picture");
      const frame = card.querySelector(".ws-frame");
      const [width, height] = [picture.offsetWidth, picture.offsetHeight];
      if (width === 0) continue;
      view.u = keepInside(view.u, frame.clientWidth / (2 * width * view.scale));
      view.v = keepInside(view.v, frame.clientHeight / (2 * height * view.scale));
      const [x, y] = [(0.5 - view.u) * width * view.scale, (0.5 - view.v) * height * view.scale];
      picture.style.transform =
        view.scale > 1 ? `translate(${x}px, ${y}px) scale(${view.scale})` : "";
    }
  }
}

/** The middle of a view that shows `half` of the picture to each side, without an empty edge. */
function keepInside(middle, half) {
  return half >= 0.5 ? 0.5 : Math.min(1 - half, Math.max(half, middle));
}
