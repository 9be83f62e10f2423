// How the candidates are looked at: all or one, flipped in one place, with or without the tools
// that mark faults and rate.

import { t } from "./i18n.js";

export class Look {
  constructor(canvas) {
    this.canvas = canvas;
    this.pair = []; // the two places that were looked at or marked last
  }

  /** Does an action that changes how things are shown; false where `name` is none of them. */
  act(name, key) {
    const { grid, zoom, brief } = this.canvas;
    const actions = {
      move: () => grid.moveFocus(key),
      pan: () => zoom.pan(key),
      hold: () => zoom.beginHold(),
      zoom_in: () => zoom.step(1),
      zoom_out: () => zoom.step(-1),
      solo: () => this.showAlone(grid.solo === null ? Math.max(0, grid.focused) : null),
      flip: () => this.flip(),
      source: () => this.showSource(!this.canvas.grid.showsSource),
      whole: () => this.showWhole(),
      prompt: () => brief.toggle(),
      regions: () => this.toggleRegions(),
      ratings: () => this.showRatings(!this.canvas.settings.get("ratings")),
    };
    actions[name]?.();
    return name in actions;
  }

  /** A new task is shown. */
  begin() {
    this.pair = [];
    this.canvas.pen.toggle(false);
    this.showSource(false);
  }

  showAlone(place) {
    this.canvas.grid.showAlone(place);
    if (place !== null) this.notePlace(place);
    this.refresh();
  }

  /** Shows the best and the worst, or the last two looked at, one after the other in one place. */
  flip() {
    const { pick, grid, clock } = this.canvas;
    const marked = pick.outcome === "picked" && pick.win !== null && pick.lose !== null;
    const [a, b] = marked ? [pick.win, pick.lose] : this.pair;
    if (b === undefined) {
      this.canvas.say(t("status.flip"));
      return;
    }
    clock.noteFlip();
    this.showAlone(grid.solo === a ? b : a);
  }

  /** Shows the picture that is edited in the place of every candidate, or the candidates again. */
  showSource(on) {
    const { grid, task } = this.canvas;
    if (on && !task?.source) {
      this.canvas.say(t("status.no_source"));
      return;
    }
    if (on) this.canvas.clock.noteFlip();
    grid.showSource(on);
    this.refresh();
  }

  notePlace(place) {
    this.pair = [place, ...this.pair.filter((each) => each !== place)].slice(0, 2);
  }

  /** Back to the whole view, one step after another. */
  showWhole() {
    const { pen, zoom, grid } = this.canvas;
    if (grid.showsSource) this.showSource(false);
    else if (pen.isOn) this.toggleRegions();
    else if (!zoom.reset() && grid.solo !== null) this.showAlone(null);
  }

  toggleRegions() {
    const { pen } = this.canvas;
    pen.toggle();
    this.canvas.say(pen.isOn ? t("status.regions") : this.canvas.describe(this.canvas.pick));
    this.refresh();
  }

  showRatings(on = true) {
    if (this.canvas.settings.get("ratings") === on) return;
    this.canvas.settings.set("ratings", on);
    this.canvas.applySettings();
  }

  refresh() {
    const { root, grid, pen, settings, task } = this.canvas;
    root.querySelector(".ws-look [data-action=source]").hidden = !task?.source;
    const states = {
      source: grid.showsSource,
      solo: grid.solo !== null,
      regions: pen.isOn,
      ratings: settings.get("ratings"),
    };
    for (const [name, on] of Object.entries(states)) {
      root.querySelector(`.ws-look [data-action=${name}]`).setAttribute("aria-pressed", on);
    }
  }
}
