// Labelling, quality and models: the views over the figures that the server keeps.

import { call } from "./api.js";
import { interval, lineChart, stackedBars } from "./charts.js";
import { make } from "./dom.js";
import { t } from "./i18n.js";
import { ageOf, figure, nothing, number, share, short, table } from "./review_tables.js";

const QUESTIONS = ["overall", "aesthetics", "instruction", "detail"];
const OUTCOMES = ["picked", "all_bad", "all_equal", "skip", "flag", "cannot_judge"];
const COUNTED = ["days", "outcomes", "people"]; // of all answers, the others of the newest
const SHOWN_DAYS = 60;
const MAKING_S = 600; // a large studio's figures take minutes

const load = (page, about, again) =>
  again ? call("review/figures", {}, { seconds: MAKING_S }) : call("review/figures", undefined, { seconds: MAKING_S });

function age(data) {
  const parts = [ageOf(data.made_at)];
  if (data.is_renewing) parts.push(t("review.renewing"));
  if (data.fault) parts.push(t("review.fault", { reason: data.fault }));
  return parts.join(" ");
}

const sourceOf = (data, name) =>
  COUNTED.includes(name)
    ? t("review.counted", { digest: short(data.counts_digest), count: number(data.totals.answers) })
    : t("review.source", { digest: short(data.digest), count: number(data.answers) });

/** A model version is often a path: its end says enough, the rest is in the title and the CSV. */
function modelName(key) {
  const cell = (row) => {
    const parts = row[key].split("/").filter(Boolean);
    return make("span", { text: parts.slice(-2).join("/"), title: row[key] });
  };
  return column(key, cell, false);
}

/** A figure of one table, with its CSV and the answers that it is made of. */
function of(data, name, body, options = {}) {
  return figure(
    {
      title: t(`figure.${name}`),
      note: t(`note.${name}`),
      csv: `/api/review/figures/${name}.csv`,
      source: sourceOf(data, name),
      ...options,
    },
    ...[body].flat(),
  );
}

const column = (key, cell, isNumber = true) => ({ text: t(`column.${key}`), cell, number: isNumber });
const plain = (key, digits) => column(key, (row) => number(row[key], digits));
const ratio = (key) => column(key, (row) => share(row[key]));
const name = (key) => column(key, (row) => row[key], false);

/** Columns of a value with its interval: drawn, and in numbers. */
function measured(key, low, high, range) {
  return [
    column("interval", (row) =>
      row[key] === null || row[key] === undefined
        ? "–"
        : interval({ value: row[key], from: row[low], to: row[high] }, range), false),
    column(key, (row) => share(row[key])),
    column("interval_numbers", (row) =>
      row[low] === null || row[low] === undefined ? "–" : `${share(row[low])} – ${share(row[high])}`),
  ];
}

// ── labelling ──────────────────────────────────────────────────────────────────────────────

function headline({ totals }) {
  return make(
    "dl",
    { class: "rv-headline" },
    ...["answers", "waiting", "tasks", "prompts"].map((key) =>
      make("div", {}, make("dt", { text: t(`total.${key}`) }), make("dd", { text: number(totals[key]) })),
    ),
  );
}

function daysFigure(data) {
  const rows = data.tables.days.slice(-SHOWN_DAYS);
  const names = QUESTIONS.map((question) => t(`question.${question}.name`));
  if (rows.length === 0) return of(data, "days", nothing("review.no_answers"), { wide: true });
  const bars = rows.map((row) => ({ name: row.day, values: QUESTIONS.map((q) => row[q]) }));
  const sum = rows.reduce((all, row) => all + QUESTIONS.reduce((own, q) => own + row[q], 0), 0);
  const label = t("label.days", { count: number(sum), from: rows[0].day, to: rows.at(-1).day });
  return of(data, "days", stackedBars({ rows: bars, names, label }), { wide: true });
}

const outcomeColumns = () =>
  OUTCOMES.map((outcome) => ({
    text: t(`outcome.${outcome}`),
    cell: (row) => number(row[outcome]),
    number: true,
  }));

function outcomesFigure(data) {
  const question = column("question", (row) => t(`question.${row.question}.name`), false);
  const columns = [question, ...outcomeColumns(), plain("all")];
  return of(data, "outcomes", table(t("figure.outcomes"), columns, data.tables.outcomes), { wide: true });
}

function peopleFigure(data) {
  const columns = [name("name"), plain("answers"), ...outcomeColumns(), plain("median s", 1), name("last")];
  return of(data, "people", table(t("figure.people"), columns, data.tables.people), { wide: true });
}

function fatigueFigure(data) {
  const rows = data.tables.fatigue;
  const part = (row) => {
    const next = rows.find((other) => other["minutes from"] > row["minutes from"]);
    return next ? `${row["minutes from"]} – ${next["minutes from"]}` : `${row["minutes from"]} +`;
  };
  const columns = [
    column("minutes", part, false),
    plain("answers"),
    plain("median s", 1),
    ratio("skipped or flagged"),
  ];
  return of(data, "fatigue", table(t("figure.fatigue"), columns, rows), { wide: true });
}

export const labelling = {
  load,
  age,
  render: (page, data) => [
    headline(data),
    daysFigure(data),
    outcomesFigure(data),
    fatigueFigure(data),
    peopleFigure(data),
  ],
};

// ── quality ────────────────────────────────────────────────────────────────────────────────

function agreementFigure(data) {
  const rows = data.tables.agreement;
  if (rows.length === 0) return of(data, "agreement", nothing("review.no_overlap"), { wide: true });
  const columns = [
    column("measure", (row) => t(`measure.${row.measure}`), false),
    ...measured("value", "low", "high", { low: -0.2, high: 1, zero: 0 }),
    column("n", (row) => number(row.n)),
  ];
  return of(data, "agreement", table(t("figure.agreement"), columns, rows), { wide: true });
}

function annotatorsFigure(data) {
  const rows = data.tables.annotators;
  const most = Math.max(1, ...rows.map((row) => row["temperature high"] ?? 0));
  const has = (key) => rows.some((row) => row[key] !== null && row[key] !== undefined);
  const columns = [
    name("annotator"),
    plain("answers"),
    ...(has("temperature")
      ? measured("temperature", "temperature low", "temperature high", { low: 0, high: Math.min(most, 8), zero: 1 })
      : []),
    ...["against others", "gold", "gold right", "repeats", "same best", "position p"]
      .filter(has)
      .map((key) => (["gold", "repeats"].includes(key) ? plain(key) : ratio(key))),
  ];
  return of(data, "annotators", table(t("figure.annotators"), columns, rows), { wide: true });
}

/** Who agrees with whom: the share of pairs ordered alike, the darker the more. */
function matrixFigure(data) {
  const rows = data.tables.pairs;
  if (rows.length === 0) return of(data, "pairs", nothing("review.no_overlap"));
  const people = [...new Set(rows.flatMap((row) => [row.first, row.second]))].sort();
  const found = new Map(
    rows.flatMap((row) => [
      [JSON.stringify([row.first, row.second]), row],
      [JSON.stringify([row.second, row.first]), row],
    ]),
  );
  const cell = (one, other) => {
    const row = found.get(JSON.stringify([one, other]));
    if (!row) return "–";
    const alike = row["pairs alike"] ?? row["same best"];
    const node = make("span", { class: "rv-heat", text: share(alike, 2) });
    node.style.setProperty("--heat", `${Math.round(Math.max(0, (alike - 0.5) * 2) * 55)}%`);
    node.append(make("small", { text: t("cell.tasks", { count: number(row.tasks) }) }));
    return node;
  };
  const columns = [
    { text: "", cell: (one) => one },
    ...people.map((other) => ({ text: other, cell: (one) => cell(one, other), number: true })),
  ];
  columns[0].text = t("column.annotator");
  return of(data, "pairs", table(t("figure.pairs"), columns, people), { wide: people.length > 5 });
}

function positionsFigure(data) {
  const rows = data.tables.positions;
  if (rows.length === 0) return of(data, "positions", nothing("review.no_answers"));
  const range = { low: 0, high: 2, zero: 1 };
  const columns = [
    column("side", (row) => t(`mark.${row.side}`), false),
    plain("position"),
    plain("chosen"),
    plain("expected", 1),
    column("ratio", (row) => interval({ value: row.chosen / row.expected }, range), false),
  ];
  const p = (side) => number(rows.find((row) => row.side === side)?.p, 4);
  const note = t("note.positions", { best: p("best"), worst: p("worst") });
  return of(data, "positions", table(t("figure.positions"), columns, rows), { note });
}

function driftFigure(data) {
  const people = new Map();
  for (const row of data.tables.drift) {
    const points = people.get(row.annotator) ?? [];
    points.push([new Date(row.to).getTime(), row.value]);
    people.set(row.annotator, points);
  }
  if (people.size === 0) return of(data, "drift", nothing("review.no_overlap"));
  const series = [...people].map(([annotator, points]) => ({ name: annotator, points }));
  const xText = (time) => new Date(time).toISOString().slice(0, 10);
  const chart = lineChart({ series, label: t("figure.drift"), xText });
  return of(data, "drift", chart);
}

export const quality = {
  load,
  age,
  render: (page, data) => [
    agreementFigure(data),
    annotatorsFigure(data),
    matrixFigure(data),
    positionsFigure(data),
    driftFigure(data),
  ],
};

// ── models ─────────────────────────────────────────────────────────────────────────────────

function standingsFigure(data) {
  const rows = data.tables.standings;
  if (rows.length === 0) return of(data, "standings", nothing("review.no_models"), { wide: true });
  const ends = rows.flatMap((row) => [row.low, row.high]);
  const range = { low: Math.min(-0.1, ...ends), high: Math.max(0.1, ...ends), zero: 0 };
  const columns = [
    modelName("model"),
    ...measured("strength", "low", "high", range),
    ratio("win rate"),
    plain("comparisons"),
  ];
  return of(data, "standings", table(t("figure.standings"), columns, rows), { wide: true });
}

function blindFigure(data) {
  const rows = data.tables.blind;
  if (rows.length === 0) return of(data, "blind", nothing("review.no_blind"), { wide: true });
  const columns = [
    modelName("first"),
    modelName("second"),
    ...measured("win rate", "low", "high", { low: 0, high: 1, zero: 0.5 }),
    plain("wins"),
    plain("losses"),
    plain("ties"),
    plain("prompts"),
  ];
  return of(data, "blind", table(t("figure.blind"), columns, rows), { wide: true });
}

export const models = {
  load,
  age,
  render: (page, data) => [standingsFigure(data), blindFigure(data)],
};
