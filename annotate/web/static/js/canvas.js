// The labelling canvas: shows one task, collects one pick, sends it, goes on.
//
// Whatever a person wrote (prompts, names, guidelines) enters the page through textContent and
// setAttribute only: the component that holds this page evaluates ${...} in its templates.

import { Ahead } from "./ahead.js";
import { call } from "./api.js";
import { Brief } from "./brief.js";
import { Clock } from "./clock.js";
import { Dialogs } from "./dialogs.js";
import { Flow } from "./flow.js";
import { Grid } from "./grid.js";
import { currentLanguage, setLanguage, t, translate } from "./i18n.js";
import { Keymap, capOf, isForeign } from "./keys.js";
import * as picks from "./pick.js";
import { Look } from "./look.js";
import { Pause } from "./pause.js";
import { Reasons } from "./reasons.js";
import { RegionPen } from "./regions.js";
import { Settings } from "./settings.js";
import { switchTheme } from "./theme.js";
import { Zoom } from "./zoom.js";

const OUTCOMES = ["all_bad", "all_equal", "cannot_judge", "skip", "flag"];

class Canvas {
  constructor(root) {
    this.root = root;
    this.settings = new Settings();
    this.keymap = new Keymap(this.settings);
    this.clock = new Clock();
    this.ahead = new Ahead();
    this.brief = new Brief(root, this.keymap);
    this.grid = new Grid(this.find(".ws-stage"), this.find(".ws-card-template"), this.ahead);
    this.zoom = new Zoom(root, this.grid, () => this.clock.noteZoom());
    this.pen = new RegionPen(root, this.grid, (region) => {
      this.change(picks.addRegion(this.pick, region));
    });
    this.zoom.isDrawing = () => this.pen.isOn;
    this.reasons = new Reasons(root, this.keymap);
    this.pause = new Pause(root, this.settings);
    this.task = null;
    this.frame = { count: 0, reference: null };
    this.pick = picks.emptyPick(this.frame);
    this.history = [];
    this.notice = null;
    this.loaded = false;
    this.look = new Look(this);
    this.guidelineVersion = null;
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async start() {
    this.me = await call("me");
    this.guidelineVersion = this.me.guideline_version;
    this.flow = new Flow(this, this.root, this.me.id, this.clock);
    this.dialogs = new Dialogs(this);
    await this.changeLanguage(this.settings.get("language") ?? this.me.language);
    this.find(".ws-user").textContent = this.me.name;
    this.find(".ws-review").hidden = !this.me.may_review;
    this.applySettings();
    document.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("keyup", (event) => this.onKeyUp(event));
    this.root.addEventListener("click", (event) => this.onClick(event));
    this.zoom.listen();
    await this.flow.start();
  }

  // ── input ────────────────────────────────────────────────────────────────────────────────

  onKey(event) {
    if (isForeign(event) || this.dialogs.isOpen || !this.settings.get("shortcuts")) return;
    const action = this.keymap.actionOf(event);
    if (!action) return;
    // Enter and Space belong to a focused button, but not to one of a dialog that has just closed:
    // it keeps the focus until the next frame is drawn.
    const button = event.target.closest?.("button, a");
    const own = button && !button.closest("dialog");
    if (own && (event.key === "Enter" || event.code === "Space")) return;
    const repeats = ["pan", "zoom_in", "zoom_out"].includes(action.name) || this.pen.keyDraft;
    event.preventDefault();
    if (event.repeat && !repeats) return;
    if (action.name === "hold") this.heldKey = event.code;
    this.act(action);
  }

  onKeyUp(event) {
    if (event.code === this.heldKey) this.zoom.endHold();
  }

  onClick(event) {
    const button = event.target.closest("button");
    const frame = event.target.closest(".ws-frame");
    const card = event.target.closest(".ws-card");
    const place = card ? this.grid.cards.indexOf(card) : -1;
    if (button?.matches(".ws-region-remove")) {
      this.change(picks.removeRegion(this.pick, Number(button.value)));
    } else if (frame) this.onFrame(event, frame, place);
    else if (button) this.onButton(button, place);
    // After a mouse click, Enter means "submit" again and not "click that once more".
    if (button && event.detail > 0 && !button.closest("dialog")) button.blur();
  }

  onFrame(event, frame, place) {
    // A held finger enlarges, a drag pans or draws: neither chooses.
    if (this.zoom.fingerHeld || this.zoom.dragged || this.pen.drawn) return;
    if (!frame.querySelector(".ws-broken").hidden) this.loadImages();
    else if (!this.pen.isOn) this.act({ name: event.shiftKey ? "worst" : "press", place });
  }

  onButton(button, place) {
    const { action, lang } = button.dataset;
    if (action) this.act({ name: action, place: place < 0 ? undefined : place });
    else if (button.matches(".ws-star")) {
      this.change(picks.rate(this.pick, place, Number(button.value)));
    } else if (button.matches(".ws-thumb")) {
      this.change(picks.setThumb(this.pick, place, button.value));
    } else if (lang) this.chooseLanguage(lang);
    else if (button.matches(".ws-theme")) switchTheme();
    else if (button.matches(".ws-blank-action")) this.flow.next();
    else if (button.matches(".ws-logout")) this.logout();
  }

  act({ name, place, key }) {
    if (["guideline", "keys", "history"].includes(name)) return this.dialogs.show(name);
    if (name === "undo") return this.undo();
    if (!this.task || this.flow.busy) return undefined;
    if (this.pen.onKey(name, key)) return undefined;
    if (this.look.act(name, key)) return undefined;
    if (name === "submit") return this.submit();
    if (["skip", "cannot_judge"].includes(name)) return this.send(name);
    if (name === "flag") return this.flag();
    if (name === "remove_region") {
      return this.change(picks.removeRegion(this.pick, this.pick.regions.length - 1));
    }
    if (["all_bad", "all_equal"].includes(name)) {
      return this.change(picks.markAll(this.pick, name, this.frame));
    }
    if (/^(?:win|lose):/.test(name)) return this.giveReason(name);
    return this.markCard(name, place ?? this.grid.focused);
  }

  // ── deciding ─────────────────────────────────────────────────────────────────────────────

  markCard(name, place) {
    if (place < 0 || place >= this.frame.count) return;
    const changes = {
      best: () => picks.markBest(this.pick, place, this.frame),
      worst: () => picks.markWorst(this.pick, place, this.frame),
      press: () => picks.press(this.pick, place, this.frame, this.settings.get("quick")),
      rate_up: () => picks.stepRating(this.pick, place, 1),
      rate_down: () => picks.stepRating(this.pick, place, -1),
      thumb_up: () => picks.setThumb(this.pick, place, "up"),
      thumb_down: () => picks.setThumb(this.pick, place, "down"),
    };
    if (/^(?:rate|thumb)/.test(name)) this.look.showRatings();
    this.look.notePlace(place);
    this.change(changes[name]());
  }

  /** A reason for the best or the worst; while regions are marked, what the newest is about. */
  giveReason(name) {
    const [target, criterion] = name.split(":");
    if (this.pen.isOn) this.change(picks.nameRegion(this.pick, criterion));
    else this.change(picks.toggleReason(this.pick, target, criterion));
  }

  change(pick) {
    if (picks.isSame(pick, this.pick)) return;
    this.clock.noteAction();
    this.notice = null;
    this.history.push(this.pick);
    this.setPick(pick);
  }

  setPick(pick) {
    this.pick = pick;
    this.grid.mark(pick);
    this.reasons.mark(pick, (place) => this.grid.letterOf(place));
    for (const name of ["all_bad", "all_equal"]) {
      this.find(`[data-action="${name}"]`).setAttribute("aria-pressed", pick.outcome === name);
    }
    const whole = pick.outcome === "all_bad" || pick.outcome === "all_equal";
    if (whole) this.root.dataset.outcome = pick.outcome;
    else delete this.root.dataset.outcome;
    this.refreshSubmit();
    this.say(this.describe(pick));
  }

  describe(pick) {
    if (pick.outcome === "all_bad" || pick.outcome === "all_equal") {
      return t(`status.${pick.outcome}`);
    }
    if (!this.loaded) return t("status.loading");
    const letter = (place) => (place === null ? null : this.grid.letterOf(place));
    const [best, worst] = [letter(pick.win), letter(pick.lose)];
    if (this.frame.reference !== null) {
      return worst ? t("status.worst_only", { worst }) : t("status.start_reference");
    }
    if (best && worst) return t("status.both", { best, worst });
    if (best) return t("status.best", { best });
    return worst ? t("status.worst", { worst }) : t("status.start");
  }

  refreshSubmit() {
    const busy = !this.task || this.flow.busy;
    this.find(".ws-submit").disabled = busy || !this.loaded || !picks.isComplete(this.pick);
    for (const name of OUTCOMES) this.find(`[data-action="${name}"]`).disabled = busy;
  }

  say(text) {
    this.find(".ws-status").textContent = text;
  }

  /** Draws the eye to what is still missing. */
  nudge() {
    const status = this.find(".ws-status");
    this.say(this.describe(this.pick));
    status.classList.remove("ws-nudge");
    requestAnimationFrame(() => status.classList.add("ws-nudge"));
  }

  submit() {
    if (!this.loaded || !picks.isComplete(this.pick)) return this.nudge();
    return this.send(this.pick.outcome);
  }

  async flag() {
    const note = await this.dialogs.askReason();
    if (note !== null) await this.send("flag", note);
  }

  async send(outcome, note = "") {
    await this.flow.submit(this.task, this.pick, outcome, note);
  }

  async undo() {
    if (this.flow.busy) return;
    if (this.task && this.history.length > 0) this.setPick(this.history.pop());
    else await this.flow.undo();
  }

  // ── showing ──────────────────────────────────────────────────────────────────────────────

  /** Goes on with the server's answer; `notice` names what the status line says of the last one. */
  async receive({ task, progress }, notice = null) {
    this.notice = notice;
    this.showProgress(progress);
    this.pause.check();
    if (task) await this.showTask(task);
    else this.showBlank();
  }

  async showTask(task) {
    const asked = this.task?.question ?? this.lastQuestion;
    const places = task.candidates.map((_, position) => position);
    // The reference has no number: it takes the last place, and stands first on the page.
    if (task.reference !== null) places.push(...places.splice(task.reference, 1));
    const reference = task.reference === null ? null : places.length - 1;
    this.task = { ...task, positionOf: places };
    this.frame = { count: places.length, reference };
    this.lastQuestion = task.question;
    this.root.dataset.state = "task";
    this.find(".ws-blank").hidden = true;
    this.history = [];
    this.loaded = false;
    this.look.begin();
    this.clock.restart();
    this.brief.show(this.task, asked !== undefined && asked !== task.question);
    const shown = this.loadImages();
    const empty = picks.emptyPick(this.frame);
    this.setPick(task.previous ? picks.fromAnswer(task.previous, places, this.frame) : empty);
    await shown;
  }

  async loadImages() {
    const { task, frame } = this;
    const candidates = task.positionOf.map((position) => task.candidates[position]);
    const loading = this.grid.show(candidates, frame.reference, task.source);
    this.zoom.reset();
    this.look.refresh();
    const failed = await loading;
    if (task !== this.task) return;
    this.grid.mark(this.pick);
    this.loaded = failed === 0;
    this.clock.noteLoaded();
    this.refreshSubmit();
    const said = this.notice ? t(this.notice, { key: this.capOf("undo") }) : null;
    this.say(failed ? t("status.broken", { count: failed }) : (said ?? this.describe(this.pick)));
    this.ahead.look();
  }

  showProgress({ done, remaining }) {
    this.progress = { done, remaining };
    const total = done + remaining;
    const bar = this.find(".ws-bar");
    bar.max = Math.max(total, 1);
    bar.value = done;
    this.find(".ws-count").textContent = t("progress.count", { done, total });
  }

  showBlank() {
    this.task = null;
    this.root.dataset.state = "blank";
    this.grid.clear();
    this.find(".ws-blank").hidden = false;
    this.find(".ws-blank-title").textContent = t("blank.done");
    this.find(".ws-blank-text").textContent = t("blank.done_text");
    this.find(".ws-blank-action").textContent = t("blank.look");
    this.history = [];
    this.frame = { count: 0, reference: null };
    this.setPick(picks.emptyPick(this.frame));
    this.say(this.notice ? t(this.notice, { key: this.capOf("undo") }) : "");
    this.flow.poll();
  }

  // ── the annotator's own settings ─────────────────────────────────────────────────────────

  capOf(name) {
    return capOf(this.keymap.keyOf[name]);
  }

  applySettings() {
    for (const name of ["crisp", "ratings", "shortcuts"]) {
      this.root.toggleAttribute(`data-${name}`, this.settings.get(name));
    }
    for (const button of this.root.querySelectorAll("[data-action]")) {
      const cap = button.querySelector("kbd");
      if (cap) cap.textContent = this.capOf(button.dataset.action);
      if (this.settings.get("shortcuts")) {
        button.setAttribute("aria-keyshortcuts", this.keymap.keyOf[button.dataset.action] ?? "");
      } else button.removeAttribute("aria-keyshortcuts");
    }
    this.look.refresh();
    this.grid.layout();
  }

  async chooseLanguage(code) {
    this.settings.set("language", code);
    document.cookie = `winsome_language=${code}; path=/; max-age=31536000; SameSite=Lax`;
    await this.changeLanguage(code);
  }

  async changeLanguage(code) {
    await setLanguage(code);
    translate(this.root);
    translate(this.find(".ws-card-template").content);
    document.title = t("title");
    for (const button of this.root.querySelectorAll("[data-lang]")) {
      button.setAttribute("aria-pressed", button.dataset.lang === currentLanguage());
    }
    this.dialogs.translate();
    this.reasons.translate();
    this.applySettings();
    if (this.progress) this.showProgress(this.progress);
    if (this.task) {
      this.brief.show(this.task, false);
      this.grid.relabel();
      this.setPick(this.pick);
    } else if (this.root.dataset.state === "blank") this.showBlank();
  }

  async logout() {
    await fetch("/logout", { method: "POST", credentials: "same-origin" });
    location.assign("/login");
  }
}

export function start(element) {
  return new Canvas(element.querySelector(".ws")).start();
}
