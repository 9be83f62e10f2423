// The labelling canvas: shows one task, collects one pick, sends it, goes on.
//
// Whatever a person wrote (prompts, names) enters the page through textContent and setAttribute
// only: the component that holds this page evaluates ${...} in its templates.

import { ApiError, Outbox, call, newKey } from "./api.js";
import { Clock } from "./clock.js";
import { Banner, Connection } from "./connection.js";
import { Dialogs } from "./dialogs.js";
import { Grid, letterOf } from "./grid.js";
import { currentLanguage, setLanguage, t, translate } from "./i18n.js";
import { actionOf, isForeign } from "./keys.js";
import { EMPTY, isComplete, isSame, markAll, markBest, markWorst, press } from "./pick.js";
import { Settings } from "./settings.js";
import { switchTheme } from "./theme.js";
import { Zoom } from "./zoom.js";

const HEARTBEAT_MS = 60_000;
const EMPTY_POLL_MS = 20_000;

class Canvas {
  constructor(root) {
    this.root = root;
    this.settings = new Settings();
    this.grid = new Grid(this.find(".ws-stage"), this.find(".ws-card-template"));
    this.dialogs = new Dialogs(root, this.settings, () => this.applySettings());
    this.task = null;
    this.pick = EMPTY;
    this.history = [];
    this.notice = null;
    this.loaded = false;
    this.clock = new Clock();
    this.zoom = new Zoom(root, this.grid, () => this.clock.noteZoom());
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async start() {
    this.me = await call("me");
    await this.changeLanguage(this.settings.get("language") ?? this.me.language);
    this.find(".ws-user").textContent = this.me.name;
    this.find(".ws-review").hidden = !this.me.may_review;
    this.outbox = new Outbox(this.me.id);
    this.banner = new Banner(this.root);
    this.connection = new Connection(this.banner, this.outbox, () => this.refreshSubmit());
    this.applySettings();
    this.listen();
    if (this.outbox.pending) await this.send(this.outbox.pending);
    else await this.next();
  }

  listen() {
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("click", (event) => this.onClick(event));
    this.zoom.listen();
    setInterval(() => this.heartbeat(), HEARTBEAT_MS);
    document.addEventListener("visibilitychange", () => this.heartbeat());
  }

  // ── input ────────────────────────────────────────────────────────────────────────────────

  onKey(event) {
    if (isForeign(event) || this.dialogs.isOpen || !this.settings.get("shortcuts")) return;
    const action = actionOf(event);
    if (!action) return;
    const button = event.target.closest?.("button, a");
    const activates = action.name === "submit" || action.name === "zoom";
    if (button && activates) return; // Enter and Space belong to the focused control
    event.preventDefault();
    if (event.repeat) return;
    this.act(action);
  }

  onClick(event) {
    const button = event.target.closest("button");
    const frame = event.target.closest(".ws-frame");
    const card = event.target.closest(".ws-card");
    const position = card ? this.grid.cards.indexOf(card) : -1;
    if (frame) {
      if (this.zoom.fingerHeld) return; // a held finger enlarges, it does not choose
      if (!frame.querySelector(".ws-broken").hidden) this.loadImages();
      else this.act({ name: event.shiftKey ? "worst" : "press", position });
    } else if (button?.matches(".ws-mark-best")) this.act({ name: "best", position });
    else if (button?.matches(".ws-mark-worst")) this.act({ name: "worst", position });
    else if (button?.dataset.action) this.act({ name: button.dataset.action });
    else if (button?.dataset.lang) this.chooseLanguage(button.dataset.lang);
    else if (button?.matches(".ws-theme")) switchTheme();
    else if (button?.matches(".ws-help")) this.dialogs.showKeys();
    else if (button?.matches(".ws-more")) this.togglePrompt();
    else if (button?.matches(".ws-blank-action")) this.next();
    else if (button?.matches(".ws-logout")) this.logout();
    // After a mouse click, Enter means "submit" again and not "click that once more".
    if (button && event.detail > 0) button.blur();
  }

  act({ name, position, key }) {
    if (name === "help") return this.dialogs.showKeys();
    if (name === "undo") return this.undo();
    if (!this.task || this.connection.busy) return undefined;
    if (name === "focus") return this.grid.moveFocus(key);
    if (name === "zoom") return this.zoom.begin();
    if (name === "submit") return this.submit();
    if (name === "skip") return this.sendOutcome("skip");
    if (name === "flag") return this.flag();
    if (name === "all_bad" || name === "all_equal") return this.change(markAll(this.pick, name));
    return this.markCard(name, position ?? this.grid.focused);
  }

  markCard(name, position) {
    const count = this.task.candidates.length;
    if (position < 0 || position >= count) return;
    const marks = { best: markBest, worst: markWorst };
    const pick = marks[name]
      ? marks[name](this.pick, position, count)
      : press(this.pick, position, count, this.settings.get("quick"));
    this.change(pick);
  }

  change(pick) {
    if (isSame(pick, this.pick)) return;
    this.clock.noteAction();
    this.notice = null;
    this.history.push(this.pick);
    this.setPick(pick);
  }

  setPick(pick) {
    this.pick = pick;
    this.grid.mark(pick);
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
    const best = pick.win === null ? null : letterOf(pick.win);
    const worst = pick.lose === null ? null : letterOf(pick.lose);
    if (best && worst) return t("status.both", { best, worst });
    if (best) return t("status.best", { best });
    if (worst) return t("status.worst", { worst });
    return this.loaded ? t("status.start") : t("status.loading");
  }

  refreshSubmit() {
    const ready = Boolean(this.task) && this.loaded && !this.connection.busy && isComplete(this.pick);
    this.find(".ws-submit").disabled = !ready;
    for (const name of ["all_bad", "all_equal", "skip", "flag"]) {
      this.find(`[data-action="${name}"]`).disabled = !this.task || this.connection.busy;
    }
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

  // ── one task after another ───────────────────────────────────────────────────────────────

  async next() {
    await this.connection.attempt(() => call("claim", {}), (answer) => this.receive(answer));
  }

  /** Goes on with the server's answer; `notice` names what the status line says of the last one. */
  async receive({ task, progress }, notice = null) {
    this.notice = notice;
    this.showProgress(progress);
    if (task) await this.showTask(task);
    else this.showBlank("blank.done", "blank.done_text");
  }

  async showTask(task) {
    clearTimeout(this.pollTimer);
    const asked = this.task?.question ?? this.lastQuestion;
    this.task = task;
    this.lastQuestion = task.question;
    this.root.dataset.state = "task";
    this.find(".ws-blank").hidden = true;
    this.history = [];
    this.loaded = false;
    this.clock.restart();
    this.showBrief(asked !== undefined && asked !== task.question);
    const shown = this.loadImages();
    // A task that was taken back comes with the marks it was sent with.
    const isBack = this.sent?.assignment_id === task.assignment_id;
    this.setPick(isBack ? this.sent.pick : EMPTY);
    await shown;
  }

  async loadImages() {
    const task = this.task;
    const failed = await this.grid.show(task.candidates);
    if (task !== this.task) return;
    this.grid.mark(this.pick);
    this.loaded = failed === 0;
    this.clock.noteLoaded();
    this.refreshSubmit();
    const said = this.notice ? t(this.notice) : this.describe(this.pick);
    this.say(failed ? t("status.broken", { count: failed }) : said);
  }

  showBrief(changed) {
    const { question, prompt } = this.task;
    this.find(".ws-criterion").textContent = t(`question.${question}.name`);
    this.find(".ws-question").textContent = t(`question.${question}.ask`);
    const touch = window.matchMedia("(pointer: coarse)").matches;
    const enlarge = t(touch ? "hint.hold" : "hint.space");
    this.find(".ws-hint").textContent = t(`question.${question}.hint`, { enlarge });
    const text = this.find(".ws-prompt-text");
    text.textContent = prompt.text;
    text.lang = prompt.lang;
    this.togglePrompt(false);
    const ask = this.find(".ws-ask");
    delete ask.dataset.changed;
    if (changed) requestAnimationFrame(() => (ask.dataset.changed = ""));
  }

  togglePrompt(open = this.find(".ws-prompt").dataset.open === undefined) {
    const prompt = this.find(".ws-prompt");
    const text = this.find(".ws-prompt-text");
    const more = this.find(".ws-more");
    if (open) prompt.dataset.open = "";
    else delete prompt.dataset.open;
    more.hidden = !open && text.scrollHeight <= text.clientHeight + 2;
    more.textContent = t(open ? "prompt.less" : "prompt.more");
    more.setAttribute("aria-expanded", open);
  }

  showProgress({ done, remaining }) {
    this.progress = { done, remaining };
    const total = done + remaining;
    const bar = this.find(".ws-bar");
    bar.max = Math.max(total, 1);
    bar.value = done;
    this.find(".ws-count").textContent = t("progress.count", { done, total });
  }

  showBlank(title, text) {
    this.task = null;
    this.blank = [title, text];
    this.root.dataset.state = "blank";
    this.grid.stage.replaceChildren();
    this.grid.cards = [];
    this.find(".ws-blank").hidden = false;
    this.find(".ws-blank-title").textContent = t(title);
    this.find(".ws-blank-text").textContent = t(text);
    this.find(".ws-blank-action").textContent = t("blank.look");
    this.history = [];
    this.setPick(EMPTY);
    this.say(this.notice ? t(this.notice) : "");
    clearTimeout(this.pollTimer);
    this.pollTimer = setTimeout(() => this.next(), EMPTY_POLL_MS);
  }

  // ── answers ──────────────────────────────────────────────────────────────────────────────

  submit() {
    if (!this.loaded || !isComplete(this.pick)) return this.nudge();
    return this.sendOutcome(this.pick.outcome);
  }

  async flag() {
    const note = await this.dialogs.askReason();
    if (note !== null) await this.sendOutcome("flag", note);
  }

  async sendOutcome(outcome, note = "") {
    const picked = outcome === "picked";
    const body = {
      idempotency_key: newKey(),
      assignment_id: this.task.assignment_id,
      lease_token: this.task.lease_token,
      outcome,
      win_position: picked ? this.pick.win : null,
      lose_position: picked ? this.pick.lose : null,
      note,
      ...this.clock.reading(),
    };
    this.sent = { assignment_id: body.assignment_id, pick: this.pick };
    this.outbox.put(body);
    await this.send(body);
  }

  async send(body) {
    await this.connection.attempt(
      () => call("submit", body),
      async (answer) => {
        this.outbox.clear();
        await this.receive(answer, "status.saved");
      },
      (error) => {
        // The server understood and refused: sending it again cannot help.
        this.outbox.clear();
        const text = t("banner.refused", { reason: error.message });
        this.banner.show(text, t("banner.next"), () => this.next());
      },
    );
  }

  async undo() {
    if (this.connection.busy) return;
    if (this.task && this.history.length > 0) {
      this.setPick(this.history.pop());
      return;
    }
    await this.connection.attempt(
      () => call("undo", {}),
      async (answer) => {
        if (answer.task) await this.receive(answer, "status.undone");
        else this.say(t("status.nothing_to_undo"));
      },
    );
  }

  async heartbeat() {
    if (!this.task || this.connection.busy || document.visibilityState !== "visible") return;
    const { task } = this;
    try {
      await call("heartbeat", {
        assignment_id: task.assignment_id,
        lease_token: task.lease_token,
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) this.connection.askToSignIn();
      // Anything else shows itself, with its remedy, when the pick is sent.
    }
  }

  // ── the annotator's own settings ─────────────────────────────────────────────────────────

  applySettings() {
    if (this.settings.get("crisp")) this.root.dataset.crisp = "";
    else delete this.root.dataset.crisp;
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
    if (this.progress) this.showProgress(this.progress);
    if (this.task) {
      this.showBrief(false);
      this.grid.mark(this.pick);
      this.say(this.describe(this.pick));
    } else if (this.blank && this.root.dataset.state === "blank") this.showBlank(...this.blank);
  }

  async logout() {
    await fetch("/logout", { method: "POST", credentials: "same-origin" });
    location.assign("/login");
  }
}

export function start(element) {
  return new Canvas(element.querySelector(".ws")).start();
}
