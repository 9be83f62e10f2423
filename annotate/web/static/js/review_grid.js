// Samples: the same prompts and noise, a column for each checkpoint; two of them as a blind task.

import { ApiError, call } from "./api.js";
import { button, make } from "./dom.js";
import { t } from "./i18n.js";
import { figure, nothing, number } from "./review_tables.js";

const QUESTIONS = ["overall", "aesthetics", "instruction", "detail"];

const addressOf = (run, set, image) =>
  `/api/review/run/image?${new URLSearchParams({ run: run.id, set, image })}`;

/** One sample large; the arrows go to the next checkpoint and the next prompt, in one place. */
class Viewer {
  constructor(run) {
    this.run = run;
    this.picture = make("img", { alt: "" });
    this.caption = make("p", { role: "status" });
    this.dialog = make("dialog", { class: "rv-viewer", "aria-label": t("grid.viewer") });
    this.dialog.append(
      this.picture,
      this.caption,
      make("p", { class: "rv-note", text: t("grid.keys") }),
      button(t("dialog.close"), () => this.dialog.close()),
    );
    this.dialog.addEventListener("keydown", (event) => this.onKey(event));
  }

  open(row, column) {
    this.show(row, column);
    this.dialog.showModal();
  }

  show(row, column) {
    const { sets, rows } = this.run.grid;
    [this.row, this.column] = [(row + rows.length) % rows.length, (column + sets.length) % sets.length];
    const [set, { prompt, images }] = [sets[this.column], rows[this.row]];
    const image = images[this.column];
    this.caption.textContent = `${set} · ${prompt}`;
    this.picture.hidden = image === null;
    if (image !== null) this.picture.src = addressOf(this.run, set, image);
    this.picture.alt = this.caption.textContent;
  }

  onKey(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    this.show(this.row + step[0], this.column + step[1]);
  }
}

function gridTable(run, viewer) {
  const { sets, rows } = run.grid;
  const head = make(
    "tr",
    {},
    make("th", { scope: "col", text: t("column.prompt") }),
    ...sets.map((set) => make("th", { scope: "col", text: set })),
  );
  const cell = (row, place, column) => {
    const image = row.images[column];
    if (image === null) return make("td", { text: "–" });
    const label = `${sets[column]}, ${row.prompt}`;
    const open = button("", () => viewer.open(place, column), { "aria-label": label });
    open.append(make("img", { src: addressOf(run, sets[column], image), alt: "", loading: "lazy" }));
    return make("td", {}, open);
  };
  const body = rows.map((row, place) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", lang: row.lang }, make("span", { text: row.prompt }), make("small", { text: row.noise })),
      ...sets.map((_, column) => cell(row, place, column)),
    ),
  );
  return make(
    "div",
    { class: "rv-scroll rv-samples", tabindex: 0, role: "region", "aria-label": t("figure.grid") },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)),
  );
}

function choice(label, options, value) {
  const select = make("select", {}, ...options.map(([id, text]) => make("option", { value: id, text })));
  select.value = value;
  return [select, make("label", { class: "rv-field" }, make("span", { text: label }), select)];
}

/** Sends two columns to the annotators, who do not learn which is which. */
function blindForm(run) {
  const names = run.grid.sets.map((set) => [set, set]);
  const [first, firstField] = choice(t("blind.first"), names, names[0][0]);
  const [second, secondField] = choice(t("blind.second"), names, names.at(-1)[0]);
  const questions = QUESTIONS.map((question) => [question, t(`question.${question}.name`)]);
  const [question, questionField] = choice(t("column.question"), questions, "overall");
  const people = make("input", { type: "number", min: 1, max: 50, value: 3, required: "" });
  const said = make("p", { role: "status", class: "rv-status" });
  const form = make(
    "form",
    { class: "rv-blind", "aria-label": t("blind.send") },
    firstField,
    secondField,
    questionField,
    make("label", { class: "rv-field" }, make("span", { text: t("blind.annotators") }), people),
    make("button", { type: "submit", class: "rv-primary", text: t("blind.send") }),
    said,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = {
      run: run.id,
      first: first.value,
      second: second.value,
      question: question.value,
      annotators: Number(people.value),
    };
    try {
      const { tasks, same } = await call("review/run/blind", asked, { seconds: 120 });
      const left = same > 0 ? ` ${t("blind.same", { count: number(same) })}` : "";
      said.textContent = t("blind.sent", { count: number(tasks) }) + left;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      said.textContent = error.message;
    }
  });
  return form;
}

/** The figure of a run's samples; empty for a run that has none. */
export function makeGrid(run, source) {
  const { sets, rows, all_rows: all } = run.grid;
  const title = t("figure.grid");
  if (rows.length === 0) return [figure({ title, wide: true }, nothing("grid.none"))];
  const viewer = new Viewer(run);
  const note = t("note.grid", { shown: number(rows.length), all: number(all) });
  const csv = `/api/review/run/grid.csv?${new URLSearchParams({ run: run.id })}`;
  const blind = run.may_send && sets.length > 1 ? [blindForm(run)] : [];
  return [figure({ title, note, csv, source, wide: true }, gridTable(run, viewer), ...blind, viewer.dialog)];
}
