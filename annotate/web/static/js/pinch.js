// Two fingers on the pictures enlarge them all alike, about the place between the fingers.

export class Pinch {
  /** `zoom` enlarges; while two fingers are down it neither pans nor holds. */
  constructor(zoom) {
    this.zoom = zoom;
    this.fingers = new Map(); // pointer id -> {x, y}
  }

  listen(stage) {
    stage.addEventListener("pointerdown", (event) => this.onDown(event));
    document.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) {
      document.addEventListener(name, (event) => this.fingers.delete(event.pointerId));
    }
  }

  get isOn() {
    return this.fingers.size === 2;
  }

  onDown(event) {
    if (event.pointerType !== "touch" || !event.target.closest(".ws-frame")) return;
    // A finger whose end went unseen, in a dialog of the system say, must not count for ever.
    if (event.isPrimary) this.fingers.clear();
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this.isOn) this.zoom.endHold();
  }

  onMove(event) {
    if (!this.fingers.has(event.pointerId)) return;
    const before = this.spread();
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (!this.isOn || before === 0) return;
    const [a, b] = this.fingers.values();
    this.zoom.dragged = true; // lifting the fingers chooses nothing
    this.zoom.zoomBy(this.spread() / before, (a.x + b.x) / 2, (a.y + b.y) / 2);
  }

  /** How far the two fingers are apart, in pixels of the page; 0 for fewer or more than two. */
  spread() {
    if (!this.isOn) return 0;
    const [a, b] = this.fingers.values();
    return Math.hypot(a.x - b.x, a.y - b.y);
  }
}
