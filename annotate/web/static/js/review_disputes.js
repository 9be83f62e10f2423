// The dispute queue: a reviewer's word on one task after the other. The answers stay as they are.

import { call } from "./api.js";
import { button, make } from "./dom.js";
import { t } from "./i18n.js";
import * as picks from "./pick.js";
import { ageOf, number } from "./review_tables.js";

const KEYS = { keep: "y", discard: "x", return: "r", all_bad: "0", all_equal: "=", next: "j", previous: "k", override: "Enter", undo: "z" };
const letterOf = (place) => String.fromCharCode(65 + place);

class Disputes {
  constructor(page, data) {
    this.page = page;
    this.data = data;
    this.waiting = [...data.disputes];
    this.given = []; // what can be taken back: {number, dispute}
    this.place = 0;
    this.status = make("p", { class: "rv-status", role: "status" });
    this.root = make("div", { class: "rv-dispute" });
    this.take();
  }

  get dispute() {
    return this.waiting[this.place];
  }

  /** Begins with the task at `place`, nothing decided. */
  take() {
    this.place = Math.min(Math.max(this.place, 0), Math.max(this.waiting.length - 1, 0));
    this.frame = { count: this.dispute?.images.length ?? 0, reference: null };
    this.pick = picks.emptyPick(this.frame);
    this.cause = "hard";
    this.note = "";
    this.busy = false;
  }

  // ── deciding ─────────────────────────────────────────────────────────────────────────────

  mark(place, worst) {
    if (place >= this.frame.count) return;
    this.change(
      worst ? picks.markWorst(this.pick, place, this.frame) : picks.press(this.pick, place, this.frame, true),
    );
  }

  change(pick) {
    this.pick = pick;
    const focus = document.activeElement?.dataset?.key;
    this.draw();
    this.root.querySelector(`[data-key="${CSS.escape(focus ?? "-")}"]`)?.focus();
    const { win, lose, outcome } = pick;
    const letter = (place) => (place === null ? "–" : letterOf(place));
    this.say(
      outcome && outcome !== "picked"
        ? t(`status.${outcome}`)
        : t("dispute.chosen", { best: letter(win), worst: letter(lose) }),
    );
  }

  say(text) {
    this.status.textContent = text;
  }

  async decide(decision) {
    const { dispute, pick } = this;
    if (!dispute || this.busy) return;
    const verdict = { decision, cause: this.cause, note: this.note };
    if (decision === "override") {
      if (!picks.isComplete(pick)) return this.say(t("dispute.incomplete"));
      verdict.outcome = pick.outcome;
      if (pick.outcome === "picked") {
        verdict.win_id = dispute.candidate_ids[pick.win];
        verdict.lose_id = dispute.candidate_ids[pick.lose];
      }
    }
    await this.ask(async () => {
      const { review } = await call(`review/tasks/${encodeURIComponent(dispute.task_id)}`, verdict);
      this.given.push({ number: review, dispute });
      this.waiting = this.waiting.filter((each) => each !== dispute);
      this.data.waiting -= 1;
      this.take();
      this.redraw(t("dispute.saved", { decision: t(`decision.${decision}`) }));
    });
  }

  async undo() {
    const last = this.given.at(-1);
    if (this.busy) return;
    if (!last) return this.say(t("status.nothing_to_undo"));
    await this.ask(async () => {
      await call(`review/reviews/${last.number}`, undefined, { method: "DELETE" });
      this.given.pop();
      this.waiting.splice(this.place, 0, last.dispute);
      this.data.waiting += 1;
      this.take();
      this.redraw(t("dispute.undone"));
    });
  }

  /** Runs a request; a refusal is said, and nothing is lost. */
  async ask(request) {
    this.busy = true;
    try {
      await request();
    } catch (error) {
      this.say(error.message);
    }
    this.busy = false;
  }

  move(step) {
    this.place += step;
    this.take();
    this.redraw("");
  }

  redraw(said) {
    this.draw();
    this.root.querySelector(".rv-dispute-prompt")?.focus({ preventScroll: true });
    this.say(said);
  }

  onKey(event) {
    const { key, code } = event;
    const digit = /^Digit([1-9])$/.exec(code)?.[1];
    const onControl = event.target.closest?.("button, a, select");
    const acts = {
      [KEYS.keep]: () => this.decide("confirm"),
      [KEYS.discard]: () => this.decide("discard"),
      [KEYS.return]: () => this.decide("return"),
      [KEYS.override]: () => this.decide("override"),
      [KEYS.undo]: () => this.undo(),
      [KEYS.next]: () => this.move(1),
      [KEYS.previous]: () => this.move(-1),
      [KEYS.all_bad]: () => this.change(picks.markAll(this.pick, "all_bad", this.frame)),
      [KEYS.all_equal]: () => this.change(picks.markAll(this.pick, "all_equal", this.frame)),
    };
    if (event.repeat || (key === "Enter" && onControl)) return;
    if (digit && this.dispute) this.mark(Number(digit) - 1, event.shiftKey);
    else if (acts[key]) acts[key]();
    else return;
    event.preventDefault();
  }

  // ── showing ──────────────────────────────────────────────────────────────────────────────

  draw() {
    const { dispute } = this;
    if (!dispute) {
      const note = make("p", { class: "rv-note", text: t("dispute.none") });
      const undo = make("div", { class: "rv-buttons" }, this.act("undo", () => this.undo()));
      this.root.replaceChildren(note, this.status, ...(this.given.length > 0 ? [undo] : []));
      return;
    }
    const facts = t("dispute.facts", {
      place: number(this.place + 1),
      count: number(this.data.waiting),
      agreement: number(dispute.agreement, 2),
      leverage: number(dispute.leverage),
    });
    this.root.replaceChildren(
      make("p", { class: "rv-note", text: `${t(`question.${dispute.question}.name`)} · ${facts}` }),
      make("h2", { class: "rv-dispute-prompt", tabindex: -1, text: dispute.prompt }),
      make("div", { class: "rv-cards" }, ...dispute.images.map((src, place) => this.makeCard(src, place))),
      this.makeAnswers(),
      this.makeVerdict(),
      this.status,
    );
  }

  makeCard(src, place) {
    const letter = letterOf(place);
    const mark = this.pick.win === place ? "best" : this.pick.lose === place ? "worst" : "none";
    const id = this.dispute.candidate_ids[place];
    const chips = this.dispute.answers.flatMap((answer) => [
      ...(answer.win_id === id ? [["best", answer.annotator]] : []),
      ...(answer.lose_id === id ? [["worst", answer.annotator]] : []),
    ]);
    const label = t("card.label", { letter, state: t(`mark.${mark}`) });
    const choose = button("", (event) => this.mark(place, event.shiftKey), {
      class: "rv-card-image",
      "aria-label": label,
      "aria-pressed": mark !== "none",
      "data-key": `card-${place}`,
    });
    choose.append(
      make("img", { src, alt: t("card.alt", { letter }) }),
      make("span", { class: "rv-letter", text: mark === "none" ? letter : `${letter} · ${t(`mark.${mark}`)}` }),
    );
    return make(
      "div",
      { class: "rv-card", data: { mark } },
      choose,
      make(
        "p",
        { class: "rv-chips" },
        ...chips.map(([side, who]) =>
          make("span", { class: "rv-chip", data: { mark: side }, text: `${t(`mark.${side}`)}: ${who}` }),
        ),
      ),
    );
  }

  makeAnswers() {
    const seconds = (answer) =>
      answer.active_ms === null ? "" : ` · ${t("cell.seconds", { seconds: number(answer.active_ms / 1000, 1) })}`;
    return make(
      "ul",
      { class: "rv-answers" },
      ...this.dispute.answers.map((answer) =>
        make("li", {
          text: `${answer.annotator}: ${t(`outcome.${answer.outcome}`)}${seconds(answer)}${answer.note ? ` · ${answer.note}` : ""}`,
        }),
      ),
    );
  }

  makeVerdict() {
    const cause = make(
      "select",
      { "data-key": "cause" },
      ...this.data.causes.map((name) => make("option", { value: name, text: t(`cause.${name}`) })),
    );
    cause.value = this.cause;
    cause.addEventListener("change", () => (this.cause = cause.value));
    const note = make("input", { maxlength: 2000, "data-key": "note" });
    note.value = this.note;
    note.addEventListener("input", () => (this.note = note.value));
    const all = (outcome) =>
      this.act(outcome, () => this.change(picks.markAll(this.pick, outcome, this.frame)), {
        "aria-pressed": this.pick.outcome === outcome,
      });
    return make(
      "div",
      { class: "rv-verdict", role: "group", "aria-label": t("dispute.verdict") },
      make("label", {}, make("span", { text: t("dispute.cause") }), cause),
      make("label", { class: "rv-wider" }, make("span", { text: t("dispute.note") }), note),
      make(
        "div",
        { class: "rv-buttons" },
        this.act("keep", () => this.decide("confirm")),
        this.act("override", () => this.decide("override"), { class: "rv-primary" }),
        all("all_bad"),
        all("all_equal"),
        this.act("return", () => this.decide("return")),
        this.act("discard", () => this.decide("discard")),
        this.act("previous", () => this.move(-1)),
        this.act("next", () => this.move(1)),
        this.act("undo", () => this.undo()),
        this.makeSwitch(),
      ),
    );
  }

  act(name, onClick, attributes = {}) {
    const node = button(t(`dispute.${name}`), onClick, { "data-key": name, ...attributes });
    if (this.page.settings.get("shortcuts")) {
      node.append(make("kbd", { text: KEYS[name] === "Enter" ? "⏎" : KEYS[name].toUpperCase() }));
      node.setAttribute("aria-keyshortcuts", KEYS[name]);
    }
    return node;
  }

  /** Single keys can be switched off, here as on the canvas (WCAG 2.1.4). */
  makeSwitch() {
    const box = make("input", { type: "checkbox", "data-key": "shortcuts" });
    box.checked = this.page.settings.get("shortcuts");
    box.addEventListener("change", () => {
      this.page.settings.set("shortcuts", box.checked);
      this.change(this.pick);
    });
    return make("label", { class: "rv-check" }, box, make("span", { text: t("settings.shortcuts") }));
  }
}

export const disputes = {
  load: (page, about, again) => call(again ? "review/disputes?again=true" : "review/disputes"),
  age: (data) => ageOf(data.made_at),
  render(page, data) {
    if (!data.desk) data.desk = new Disputes(page, data);
    data.desk.draw();
    const csv = make("a", { href: "/api/review/reviews.csv", text: t("dispute.all_reviews"), download: "" });
    return [data.desk.root, make("p", { class: "rv-source" }, csv)];
  },
  onKey: (event, data) => data.desk?.onKey(event),
};
