// Enlarging while something is held: the space bar, or a finger on a picture.

const HOLD_MS = 350;

export class Zoom {
  /** `onBegin` is told each time; the page carries data-zoom for as long. */
  constructor(root, grid, onBegin) {
    this.root = root;
    this.grid = grid;
    this.onBegin = onBegin;
    this.pointer = { x: -1, y: -1 };
    this.fingerHeld = false;
  }

  listen() {
    document.addEventListener("keyup", (event) => {
      if (event.code === "Space") this.end();
    });
    window.addEventListener("blur", () => this.end());
    document.addEventListener("pointermove", (event) => {
      this.pointer = { x: event.clientX, y: event.clientY };
      if (this.isOn) this.grid.zoom(event.clientX, event.clientY);
    });
    this.listenForFinger();
  }

  listenForFinger() {
    const { stage } = this.grid;
    let timer = null;
    stage.addEventListener("pointerdown", (event) => {
      this.fingerHeld = false;
      if (event.pointerType === "mouse" || !event.target.closest(".ws-frame")) return;
      timer = setTimeout(() => {
        this.fingerHeld = true;
        this.begin(event.clientX, event.clientY);
      }, HOLD_MS);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, () => {
        clearTimeout(timer);
        this.end();
      });
    }
    // The browser's menu for a held finger would end the hold, and offers to save the picture.
    stage.addEventListener("contextmenu", (event) => {
      if (event.target.closest(".ws-frame")) event.preventDefault();
    });
  }

  get isOn() {
    return this.root.dataset.zoom !== undefined;
  }

  begin(x = this.pointer.x, y = this.pointer.y) {
    this.root.dataset.zoom = "";
    this.onBegin();
    this.grid.zoom(x, y);
  }

  end() {
    if (!this.isOn) return;
    delete this.root.dataset.zoom;
    this.grid.endZoom();
  }
}
