// What the review pages are built of: tables, figures with their source and CSV, and plain lists.

import { call } from "./api.js";
import { make } from "./dom.js";
import { currentLanguage, t } from "./i18n.js";

const DIGITS = 12;

export const short = (digest) => (digest ?? "").slice(0, DIGITS);

/** A measured share or strength: always with its decimals, a whole one too. */
export function share(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(currentLanguage(), options).format(value);
}

/** A count as it is, a fraction with so many decimals; "–" for none. */
export const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : share(value, Number.isInteger(value) ? 0 : digits);

/** Four significant digits: for values of any size. */
export const figureOf = (value) =>
  new Intl.NumberFormat(currentLanguage(), { maximumSignificantDigits: 4 }).format(value);

export function moment(text) {
  const style = { dateStyle: "medium", timeStyle: "short" };
  return text ? new Intl.DateTimeFormat(currentLanguage(), style).format(new Date(text)) : "–";
}

/** "as of 22:14, 3 minutes ago" */
export function ageOf(text) {
  const minutes = Math.round((Date.now() - new Date(text)) / 60_000);
  const ago = new Intl.RelativeTimeFormat(currentLanguage(), { numeric: "auto" });
  return t("review.age", { at: moment(text), ago: ago.format(-minutes, "minute") });
}

/**
 * A table that scrolls by itself where it is too wide.
 * Columns: {text, cell: row => string or node, number}.
 */
export function table(label, columns, rows) {
  const head = make(
    "tr",
    {},
    ...columns.map(({ text, number: isNumber }) =>
      make("th", { scope: "col", text, ...(isNumber ? { class: "rv-number" } : {}) }),
    ),
  );
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      ...columns.map(({ cell, number: isNumber }, place) => {
        const node = make(place === 0 ? "th" : "td", place === 0 ? { scope: "row" } : {});
        if (isNumber) node.className = "rv-number";
        node.append(cell(row) ?? "–");
        return node;
      }),
    ),
  );
  return make(
    "div",
    { class: "rv-scroll", tabindex: 0, role: "region", "aria-label": label },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)),
  );
}

/** A chart or table with its title, what it is made of, and its CSV. */
export function figure({ title, note, csv, source, wide = false }, ...body) {
  const caption = make("figcaption", {}, make("h2", { text: title }));
  if (csv) {
    const label = t("review.csv_of", { title });
    caption.append(make("a", { href: csv, text: "CSV", "aria-label": label, download: "" }));
  }
  return make(
    "figure",
    { class: wide ? "rv-figure rv-wide" : "rv-figure" },
    caption,
    ...(note ? [make("p", { class: "rv-note", text: note })] : []),
    ...body,
    ...(source ? [make("p", { class: "rv-source", text: source })] : []),
  );
}

export const nothing = (key) => make("p", { class: "rv-note", text: t(key) });

/** The snapshots that were cut here. */
export const snapshots = {
  load: () => call("review/snapshots"),
  render(page, rows) {
    if (rows.length === 0) return [nothing("review.no_snapshots")];
    const title = t("review.snapshots");
    const counts = (row) =>
      Object.entries(row.counts)
        .map(([noun, count]) => `${number(count)} ${noun}`)
        .join(", ");
    return [
      table(title, [
        { text: t("column.digest"), cell: (row) => make("code", { text: row.digest }) },
        { text: t("column.cut"), cell: (row) => moment(row.created_at) },
        { text: t("column.counts"), cell: counts },
      ], rows),
    ];
  },
};
