// How long a task took: numbers for the leads' dashboards, never a limit.

const IDLE_MS = 30_000; // longer without a movement is a pause, not looking

export class Clock {
  constructor() {
    for (const name of ["pointermove", "keydown", "pointerdown", "wheel"]) {
      document.addEventListener(name, () => this.noteLife(), { passive: true });
    }
    this.restart();
  }

  restart() {
    const now = performance.now();
    this.opened = now;
    this.lastLife = now;
    this.active = 0;
    this.firstAction = null;
    this.loadedAfter = null;
    this.zooms = 0;
    this.flips = 0;
  }

  noteLife() {
    const now = performance.now();
    this.active += Math.min(now - this.lastLife, IDLE_MS);
    this.lastLife = now;
  }

  noteLoaded() {
    this.loadedAfter ??= performance.now() - this.opened;
  }

  noteAction() {
    this.firstAction ??= performance.now() - this.opened;
  }

  noteZoom() {
    this.zooms += 1;
  }

  noteFlip() {
    this.flips += 1;
  }

  /** Milliseconds since the task was shown, as the server stores them. */
  reading() {
    this.noteLife();
    const whole = (value) => (value === null ? null : Math.round(value));
    return {
      active_ms: whole(this.active),
      wall_ms: whole(performance.now() - this.opened),
      first_action_ms: whole(this.firstAction),
      telemetry: {
        images_loaded_ms: whole(this.loadedAfter),
        zooms: this.zooms,
        flips: this.flips,
        window: [window.innerWidth, window.innerHeight],
        pixel_ratio: window.devicePixelRatio,
      },
    };
  }
}
