// The review pages: one view at a time, named by the address after "#".
//
// Names, prompts and notes enter the page through textContent alone, as on the canvas.

import { call } from "./api.js";
import { button, make } from "./dom.js";
import { currentLanguage, setLanguage, t, translate } from "./i18n.js";
import { isForeign } from "./keys.js";
import { disputes } from "./review_disputes.js";
import { labelling, models, quality } from "./review_figures.js";
import { runs } from "./review_runs.js";
import { snapshots } from "./review_tables.js";
import { Settings } from "./settings.js";
import { switchTheme } from "./theme.js";

const VIEWS = { labelling, quality, models, disputes, runs, snapshots };

class ReviewPage {
  constructor(root) {
    this.root = root;
    this.settings = new Settings();
    this.body = this.find(".rv-body");
    this.turn = 0;
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async start() {
    this.me = await call("me");
    await this.changeLanguage(this.settings.get("language") ?? this.me.language);
    this.find(".rv-theme").addEventListener("click", switchTheme);
    this.find(".rv-logout").addEventListener("click", () => this.logout());
    this.find(".rv-refresh").addEventListener("click", () => this.open({ again: true }));
    for (const choice of this.root.querySelectorAll("[data-lang]")) {
      choice.addEventListener("click", () => this.chooseLanguage(choice.dataset.lang));
    }
    window.addEventListener("hashchange", () => this.open());
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.root.dataset.state = "ready";
    await this.open();
    this.find(".rv-report").hidden = !(await call("review")).has_report;
  }

  /** The view that the address names, and what it is about: "runs" and a run's id. */
  get address() {
    const [name, ...rest] = location.hash.slice(1).split("/");
    return [name in VIEWS ? name : "labelling", decodeURIComponent(rest.join("/"))];
  }

  async open({ again = false } = {}) {
    const turn = (this.turn += 1);
    const [name, about] = this.address;
    const moved = name !== this.name || about !== this.about;
    [this.name, this.about, this.view] = [name, about, VIEWS[name]];
    if (moved) {
      this.data = null;
      this.body.replaceChildren(make("p", { class: "rv-note", text: t("boot.loading") }));
    }
    this.showHead(true);
    try {
      const data = await this.view.load(this, about, again);
      if (turn !== this.turn) return;
      this.data = data;
      this.show();
    } catch (error) {
      if (turn !== this.turn) return;
      this.showHead();
      this.body.replaceChildren(
        make("p", { role: "alert", class: "rv-fault", text: error.message }),
        button(t("banner.retry"), () => this.open()),
      );
    }
    // Who came by a link hears where they are; who only refreshed keeps their place.
    if (moved && turn > 1) this.find("h1").focus({ preventScroll: true });
  }

  show() {
    this.showHead();
    this.body.replaceChildren(...this.view.render(this, this.data));
  }

  showHead(busy = false) {
    const title = this.about || t(`review.${this.name}`);
    this.find("h1").textContent = title;
    document.title = `${title} · Winsome`;
    for (const link of this.root.querySelectorAll(".rv-views a")) {
      if (link.hash === `#${this.name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const refresh = this.find(".rv-refresh");
    refresh.hidden = !this.view.age;
    refresh.disabled = busy;
    const age = this.data && this.view.age ? this.view.age(this.data) : "";
    this.find(".rv-age").textContent = busy && this.view.age ? t("review.making") : age;
  }

  onKey(event) {
    if (isForeign(event) || !this.settings.get("shortcuts") || !this.data) return;
    this.view.onKey?.(event, this.data);
  }

  async chooseLanguage(code) {
    this.settings.set("language", code);
    document.cookie = `winsome_language=${code}; path=/; max-age=31536000; SameSite=Lax`;
    await this.changeLanguage(code);
    if (this.data) this.show();
  }

  async changeLanguage(code) {
    await setLanguage(code);
    translate(this.root);
    for (const choice of this.root.querySelectorAll("[data-lang]")) {
      choice.setAttribute("aria-pressed", choice.dataset.lang === currentLanguage());
    }
  }

  async logout() {
    await fetch("/logout", { method: "POST", credentials: "same-origin" });
    location.assign("/login");
  }
}

export function start(element) {
  return new ReviewPage(element.querySelector(".rv")).start();
}
