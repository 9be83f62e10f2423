// An annotator's own answers, and how the work goes: for them alone, never a ranking.

import { call } from "./api.js";
import { button, make } from "./dom.js";
import { currentLanguage, t } from "./i18n.js";

export class HistoryDialog {
  constructor(root, canvas, guideline) {
    this.canvas = canvas;
    this.guideline = guideline;
    this.dialog = root.querySelector(".ws-history");
    this.list = this.dialog.querySelector(".ws-history-list");
    this.pace = this.dialog.querySelector(".ws-pace");
    this.more = this.dialog.querySelector(".ws-history-more");
    this.more.addEventListener("click", () => this.load());
  }

  async show() {
    this.picks = [];
    this.list.replaceChildren();
    this.pace.textContent = "";
    this.dialog.showModal();
    await this.load();
  }

  async load() {
    const before = this.picks.at(-1)?.number;
    try {
      const page = await call(before ? `history?before=${before}` : "history");
      this.picks.push(...page.picks);
      this.list.append(...page.picks.map((pick) => this.makeRow(pick)));
      this.more.hidden = !page.more;
      this.showPace();
    } catch (error) {
      this.pace.textContent = error.message;
    }
  }

  /** Today's count, the usual time a task takes, and the minutes since the last break. */
  showPace() {
    const today = new Date().toDateString();
    const isToday = (pick) => new Date(pick.submitted_at).toDateString() === today;
    const done = this.picks.filter(isToday);
    const times = done.flatMap((pick) => pick.active_ms ?? []).sort((a, b) => a - b);
    const whole = this.more.hidden || done.length < this.picks.length;
    const parts = [t("history.today", { count: whole ? done.length : `${done.length}+` })];
    if (times.length > 0) {
      const seconds = Math.round(times[Math.floor(times.length / 2)] / 1000);
      parts.push(t("history.median", { seconds }));
    }
    parts.push(t("history.since_break", { minutes: this.canvas.pause.minutes }));
    this.pace.textContent = this.picks.length === 0 ? t("history.none") : parts.join(" · ");
  }

  makeRow(pick) {
    const time = new Intl.DateTimeFormat(currentLanguage(), {
      dateStyle: "short",
      timeStyle: "short",
    }).format(new Date(pick.submitted_at));
    const images = [
      [pick.win, "best"],
      [pick.lose, "worst"],
    ].flatMap(([src, mark]) =>
      src ? [make("img", { src, alt: t(`mark.${mark}`), data: { mark }, loading: "lazy" })] : [],
    );
    const row = make(
      "li",
      {},
      make("div", { class: "ws-history-images" }, ...images),
      make(
        "div",
        {},
        make("p", { class: "ws-history-prompt", text: pick.prompt, lang: pick.lang }),
        make("p", {
          class: "ws-history-facts",
          text: [time, t(`question.${pick.question}.name`), t(`outcome.${pick.outcome}`)].join(" · "),
        }),
      ),
    );
    if (this.canvas.me.may_write_guideline && pick.win && pick.lose) {
      row.append(button(t("history.example"), () => this.makeExample(pick)));
    }
    return row;
  }

  async makeExample(pick) {
    this.dialog.close();
    const tokenOf = (src) => src.split("/").at(-1);
    await this.guideline.edit({
      question: pick.question,
      win: tokenOf(pick.win),
      lose: tokenOf(pick.lose),
      why: {},
    });
  }

  translate() {
    if (this.dialog.open) this.show();
  }
}
