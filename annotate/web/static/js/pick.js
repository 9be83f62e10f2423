// What an annotator has decided so far about one task: pure values, no page.
// A pick is {outcome, win, lose}; win and lose are display positions from 0, or null.

export const EMPTY = Object.freeze({ outcome: null, win: null, lose: null });

/** Marks `position` as best; pressing the best again clears it. */
export function markBest(pick, position, count) {
  if (pick.win === position) return settle({ win: null, lose: count === 2 ? null : pick.lose });
  const lose = pick.lose === position ? null : pick.lose;
  return settle({ win: position, lose: other(position, lose, count) });
}

/** Marks `position` as worst; pressing the worst again clears it. */
export function markWorst(pick, position, count) {
  if (pick.lose === position) return settle({ win: count === 2 ? null : pick.win, lose: null });
  const win = pick.win === position ? null : pick.win;
  return settle({ win: other(position, win, count), lose: position });
}

/** One key for both marks: the first press is the best, the next on another the worst. */
export function press(pick, position, count, quick) {
  if (count === 2) return markBest(pick, position, count);
  if (pick.lose === position) return markWorst(pick, position, count);
  const wantsWorst = quick && pick.win !== null && pick.win !== position && pick.lose === null;
  return wantsWorst ? markWorst(pick, position, count) : markBest(pick, position, count);
}

/** Chooses "all bad" or "all equal" instead of marks; choosing it again takes it back. */
export function markAll(pick, outcome) {
  return pick.outcome === outcome ? EMPTY : { outcome, win: null, lose: null };
}

export function isComplete(pick) {
  if (pick.outcome === "picked") return pick.win !== null && pick.lose !== null;
  return pick.outcome !== null;
}

export function isSame(a, b) {
  return a.outcome === b.outcome && a.win === b.win && a.lose === b.lose;
}

// Of two candidates the one that is not best is the worst.
function other(position, mark, count) {
  return count === 2 ? 1 - position : mark;
}

function settle({ win, lose }) {
  return { outcome: win === null && lose === null ? null : "picked", win, lose };
}
