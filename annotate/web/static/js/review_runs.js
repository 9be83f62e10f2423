// Runs: the list with curves beside each other, and a page for each.

import { ApiError, call } from "./api.js";
import { calibration, lineChart } from "./charts.js";
import { make } from "./dom.js";
import { t } from "./i18n.js";
import { makeGrid } from "./review_grid.js";
import { figure, figureOf, moment, nothing, number, short, table } from "./review_tables.js";

const COMPARED = 4; // runs whose curves are drawn before anybody chooses
const SHOWN_METRICS = 4;

const query = (values) => new URLSearchParams(values).toString();

const sourceOf = (run) =>
  [t("run.source", { run: run.id }), ...(run.snapshot_digest ? [t("run.snapshot", { digest: short(run.snapshot_digest) })] : [])].join(" · ");

// ── the list ───────────────────────────────────────────────────────────────────────────────

function runTable(rows, chosen, onChoose) {
  const result = (run) =>
    Object.entries(run.metrics)
      .slice(0, SHOWN_METRICS)
      .map(([name, value]) => `${name} ${figureOf(value)}`)
      .join(", ");
  const box = (run) => {
    const node = make("input", { type: "checkbox", "aria-label": t("run.compare_one", { run: run.id }) });
    node.checked = chosen.includes(run.id);
    node.addEventListener("change", () => onChoose(run.id, node.checked));
    return node;
  };
  const link = (run) => make("a", { href: `#runs/${encodeURIComponent(run.id)}`, text: run.id });
  return table(t("review.runs"), [
    { text: t("column.run"), cell: link },
    { text: t("column.kind"), cell: (run) => run.kind },
    { text: t("column.status"), cell: (run) => t(`run.${run.status}`) },
    { text: t("column.started"), cell: (run) => moment(run.created_at) },
    { text: t("column.snapshot"), cell: (run) => short(run.snapshot_digest) || "–" },
    { text: t("column.result"), cell: result },
    { text: t("run.compare"), cell: box },
  ], rows);
}

/** The curves of one metric for the chosen runs, drawn again with each choice. */
class Comparison {
  constructor(rows) {
    this.chosen = rows.slice(0, COMPARED).map((run) => run.id);
    this.metric = "";
    this.root = make("div", { class: "rv-comparison" });
  }

  async choose(id, wanted) {
    this.chosen = this.chosen.filter((each) => each !== id);
    if (wanted) this.chosen.push(id);
    await this.draw();
  }

  async draw() {
    const asked = query([...this.chosen.map((id) => ["run", id]), ["metric", this.metric]]);
    const found = await call(`review/curves?${asked}`).catch((error) => {
      if (!(error instanceof ApiError)) throw error;
      this.root.replaceChildren(make("p", { role: "alert", class: "rv-fault", text: error.message }));
    });
    if (!found) return;
    const select = make("select", {}, ...found.metrics.map((name) => make("option", { value: name, text: name })));
    select.value = found.metric;
    select.addEventListener("change", () => {
      this.metric = select.value;
      this.draw();
    });
    const chart = lineChart({ series: found.series, label: found.metric, size: [940, 260] });
    const wanted = this.root.contains(document.activeElement) && document.activeElement.matches("select");
    this.root.replaceChildren(
      figure(
        {
          title: t("run.side_by_side"),
          csv: `/api/review/curves.csv?${query([...this.chosen.map((id) => ["run", id]), ["metric", found.metric]])}`,
          source: this.chosen.map((run) => t("run.source", { run })).join(" · "),
          wide: true,
        },
        make("label", { class: "rv-field" }, make("span", { text: t("run.metric") }), select),
        ...(chart.length > 0 ? chart : [nothing("run.no_curves")]),
      ),
    );
    if (wanted) select.focus();
  }
}

function renderList(rows) {
  if (rows.length === 0) return [nothing("run.none")];
  const comparison = new Comparison(rows);
  comparison.draw();
  return [
    runTable(rows, comparison.chosen, (id, wanted) => comparison.choose(id, wanted)),
    comparison.root,
  ];
}

// ── one run ────────────────────────────────────────────────────────────────────────────────

function facts(run) {
  const shown = [
    ["kind", run.kind],
    ["status", t(`run.${run.status}`)],
    ["started", moment(run.created_at)],
    ["snapshot", run.snapshot_digest ?? "–"],
  ];
  return make(
    "dl",
    { class: "rv-facts" },
    ...shown.map(([key, text]) => make("div", {}, make("dt", { text: t(`column.${key}`) }), make("dd", { text }))),
  );
}

function alarmList(run) {
  if (run.alarms.length === 0) {
    const text = t(run.is_watched ? "alarm.none" : "alarm.unwatched");
    return make("p", { class: "rv-quiet", text });
  }
  const line = ({ kind, step, detail }) => {
    const at = step === null ? "" : ` · ${t("alarm.step", { step: number(step) })}`;
    return make("li", {}, make("b", { text: t(`alarm.${kind}`) }), `${at}${detail ? `: ${detail}` : ""}`);
  };
  return make(
    "section",
    { class: "rv-alarms", "aria-label": t("alarm.title") },
    make("h2", { text: t("alarm.title") }),
    make("ul", {}, ...run.alarms.map(line)),
  );
}

function chartFigures(run) {
  const csv = `/api/review/run/curves.csv?${query({ run: run.id })}`;
  const drawn = run.charts.map(({ chart, series }) => {
    const title = chart ? t(`chart.${chart}`) : series[0].name;
    return figure({ title, csv, source: sourceOf(run) }, ...lineChart({ series, label: title }));
  });
  const isMain = (_, place) => run.charts[place].chart !== null;
  const rest = drawn.filter((_, place) => !isMain(_, place));
  const more = make("details", { class: "rv-more" }, make("summary", { text: t("run.more", { count: rest.length }) }));
  more.append(make("div", { class: "rv-body" }, ...rest));
  return [...drawn.filter(isMain), ...(rest.length > 0 ? [more] : [])];
}

function reliabilityFigure(run) {
  const found = run.reliability;
  if (!found) return [];
  const title = t("figure.reliability");
  const note = t("note.reliability", {
    ece: number(found.ece),
    expected: number(found.ece_expected),
    accuracy: number(found.accuracy),
    ceiling: number(found.ceiling),
  });
  const csv = `/api/review/run/reliability.csv?${query({ run: run.id })}`;
  const digest = found.snapshot_digest ?? run.snapshot_digest;
  const source = digest ? t("run.snapshot", { digest: short(digest) }) : sourceOf(run);
  return [figure({ title, note, csv, source }, calibration(found.bins, title))];
}

/** What of the folder was left out: a file or a line that is half written or damaged. */
function unreadable(run) {
  if (run.unreadable.length === 0) return [];
  const shown = run.unreadable.slice(0, 10).join(", ");
  const text = t("run.unreadable", { count: run.unreadable.length, files: shown });
  return [make("p", { class: "rv-fault", text })];
}

function renderRun(run) {
  const back = make("p", {}, make("a", { href: "#runs", text: t("run.all") }));
  if (!run.is_there) return [back, facts(run), make("p", { class: "rv-fault", text: t("run.gone") })];
  const charts = chartFigures(run);
  const more = charts.at(-1)?.matches("details") ? charts.pop() : null;
  return [
    back,
    facts(run),
    ...unreadable(run),
    alarmList(run),
    ...(charts.length > 0 ? charts : [nothing("run.no_curves")]),
    ...reliabilityFigure(run),
    ...(run.kind === "reward" ? [] : makeGrid(run, sourceOf(run))),
    ...(more ? [more] : []),
  ];
}

export const runs = {
  load: (page, id) => call(id ? `review/run?${query({ run: id })}` : "review/runs"),
  render: (page, data) => (Array.isArray(data) ? renderList(data) : renderRun(data)),
};
