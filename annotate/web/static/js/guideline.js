// The guideline: how to judge, with worked examples; leads write its next version here.

import { call } from "./api.js";
import { button, make } from "./dom.js";
import { LANGUAGES, catalogue, currentLanguage, t } from "./i18n.js";

const SECTIONS = ["general", "overall", "aesthetics", "instruction", "detail"];
const BUILT_IN_EXAMPLES = ["aesthetics", "instruction", "detail"];

/** The texts that come with Winsome, for a first version to start from. */
async function builtInTexts() {
  const texts = {};
  for (const code of LANGUAGES) {
    const words = await catalogue(code);
    texts[code] = Object.fromEntries(
      SECTIONS.map((name) => [name, words[`guideline.text.${name}`]]),
    );
  }
  return texts;
}

export class GuidelineDialog {
  constructor(root, canvas) {
    this.canvas = canvas;
    this.dialog = root.querySelector(".ws-guide");
    this.body = this.dialog.querySelector(".ws-guide-body");
    this.title = this.dialog.querySelector(".ws-guide-version");
    this.actions = this.dialog.querySelector(".ws-guide-actions");
    this.draft = null;
    this.dialog.addEventListener("close", () => (this.draft = null));
  }

  async show() {
    this.body.replaceChildren();
    this.dialog.showModal();
    if (await this.load()) this.showText();
  }

  async load() {
    try {
      this.stored = await call("guideline");
    } catch (error) {
      this.body.replaceChildren(make("p", { role: "alert", text: error.message }));
      return false;
    }
    this.canvas.guidelineVersion = this.stored.version;
    return true;
  }

  // ── reading ──────────────────────────────────────────────────────────────────────────────

  showText() {
    const { version } = this.stored;
    const words = version === null ? "guideline.built_in" : "guideline.version";
    this.title.textContent = t(words, { version, author: this.stored.author });
    this.body.replaceChildren(...SECTIONS.flatMap((name) => this.makeSection(name)));
    const current = this.canvas.task?.question;
    this.body.querySelector(`[data-section="${current}"]`)?.scrollIntoView({ block: "start" });
    const edit = button(t("guideline.edit"), () => this.edit());
    this.actions.replaceChildren(...(this.canvas.me.may_write_guideline ? [edit] : []));
  }

  makeSection(name) {
    const text = this.textOf(name);
    const examples = this.examplesOf(name);
    if (!text && examples.length === 0) return [];
    const heading = name === "general" ? t("guideline.general") : t(`question.${name}.name`);
    return [
      make(
        "section",
        { data: { section: name } },
        make("h3", { text: heading }),
        make("p", { class: "ws-guide-text", text }),
        ...examples.map((example) => this.makeExample(example)),
      ),
    ];
  }

  /** The studio's own text in the reader's language, else in the other; without one, ours. */
  textOf(name) {
    if (this.stored.version === null) return t(`guideline.text.${name}`);
    const [mine, ...others] = [currentLanguage(), ...LANGUAGES];
    for (const language of [mine, ...others]) {
      const text = this.stored.texts[language]?.[name];
      if (text) return text;
    }
    return "";
  }

  examplesOf(name) {
    if (this.stored.version !== null) {
      return this.stored.examples
        .filter((example) => example.question === name)
        .map(({ win, lose, why }) => ({
          win: `/media/${win}`,
          lose: `/media/${lose}`,
          why: why[currentLanguage()] ?? Object.values(why)[0] ?? "",
        }));
    }
    if (!BUILT_IN_EXAMPLES.includes(name)) return [];
    return [
      {
        win: "/static/examples/poster.png",
        lose: `/static/examples/${name}.png`,
        why: t(`guideline.example.${name}`),
      },
    ];
  }

  makeExample({ win, lose, why }) {
    const image = (src, mark) =>
      make(
        "span",
        { class: "ws-example-image", data: { mark } },
        make("img", { src, alt: t(`mark.${mark}`) }),
        make("span", { class: "ws-example-mark", text: t(`mark.${mark}`) }),
      );
    return make(
      "figure",
      { class: "ws-example" },
      image(win, "best"),
      image(lose, "worst"),
      make("figcaption", { text: why }),
    );
  }

  // ── writing ──────────────────────────────────────────────────────────────────────────────

  /** Opens the editor on the newest version, with a further example where one is given. */
  async edit(example = null) {
    if (!this.dialog.open) this.dialog.showModal();
    if (!(await this.load())) return;
    const { version, examples } = this.stored;
    const texts = version === null ? await builtInTexts() : this.stored.texts;
    this.draft = {
      replaces: version,
      texts: Object.fromEntries(LANGUAGES.map((code) => [code, { ...texts[code] }])),
      examples: [...examples, ...(example ? [example] : [])],
    };
    this.showEditor();
  }

  showEditor() {
    this.title.textContent = t("guideline.editing");
    this.fault = make("p", { role: "alert", class: "ws-guide-fault" });
    this.body.replaceChildren(
      ...SECTIONS.map((name) => this.makeEditorSection(name)),
      make("p", { class: "ws-hint", text: t("guideline.how_example") }),
      this.fault,
    );
    this.actions.replaceChildren(
      button(t("dialog.cancel"), () => this.leaveEditor()),
      button(t("guideline.publish"), () => this.publish(), { class: "ws-primary" }),
    );
  }

  makeEditorSection(name) {
    const heading = name === "general" ? t("guideline.general") : t(`question.${name}.name`);
    const fields = LANGUAGES.map((code) =>
      this.makeField(`${heading} · ${code === "en" ? "English" : "中文"}`, code, {
        read: () => this.draft.texts[code][name] ?? "",
        write: (text) => (this.draft.texts[code][name] = text),
      }),
    );
    const examples = this.draft.examples
      .filter((example) => example.question === name)
      .map((example) => this.makeEditorExample(example));
    return make("fieldset", {}, make("legend", { text: heading }), ...fields, ...examples);
  }

  makeEditorExample(example) {
    const figure = this.makeExample({
      win: `/media/${example.win}`,
      lose: `/media/${example.lose}`,
      why: "",
    });
    const fields = LANGUAGES.map((code) =>
      this.makeField(`${t("guideline.why")} · ${code === "en" ? "English" : "中文"}`, code, {
        read: () => example.why[code] ?? "",
        write: (text) => (example.why = { ...example.why, [code]: text }),
      }),
    );
    const remove = button(t("guideline.remove"), () => {
      this.draft.examples = this.draft.examples.filter((each) => each !== example);
      this.showEditor();
    });
    figure.querySelector("figcaption").append(...fields, remove);
    return figure;
  }

  makeField(label, lang, { read, write }) {
    const area = make("textarea", { rows: 3, maxlength: 20000, lang });
    area.value = read();
    area.addEventListener("input", () => write(area.value));
    return make("label", { class: "ws-field" }, make("span", { text: label }), area);
  }

  async publish() {
    try {
      this.stored = await call("guideline", this.draft);
    } catch (error) {
      this.fault.textContent = error.message;
      this.fault.scrollIntoView({ block: "nearest" });
      return;
    }
    this.canvas.guidelineVersion = this.stored.version;
    this.draft = null;
    this.showText();
  }

  async leaveEditor() {
    this.draft = null;
    if (await this.load()) this.showText();
  }

  translate() {
    if (!this.dialog.open) return;
    if (this.draft) this.showEditor();
    else this.showText();
  }
}
