// What an annotator has decided so far about one task: pure values, no page.
//
// A pick is {outcome, win, lose, followed, reasons, regions, marks}. win and lose are places on the page from
// 0, or null; followed says that nobody chose the worst: of two it is the other; reasons are texts like "win:detail"; a region is {place, x, y, width, height,
// criterion} in pixels of the image; marks are {place: {rating, thumb}}.
// A frame says what is judged: {count, reference}, the place of the gold image or null.

export const CRITERIA = ["aesthetics", "instruction", "detail"];

/** Nothing decided yet. In reference mode the gold image is the best from the start. */
export function emptyPick(frame) {
  const marked = { outcome: null, win: frame.reference, lose: null, followed: false };
  return { ...marked, reasons: [], regions: [], marks: {} };
}

/** Marks `place` as best; pressing the best again clears it. */
export function markBest(pick, place, frame) {
  if (frame.reference !== null) return pick;
  if (pick.win === place) {
    return settle(pick, { win: null, lose: frame.count === 2 ? null : pick.lose });
  }
  const lose = pick.lose === place ? null : pick.lose;
  return settle(pick, { win: place, lose: other(place, lose, frame) });
}

/** Marks `place` as worst; pressing the worst again clears it. */
export function markWorst(pick, place, frame) {
  if (frame.reference === place) return pick;
  if (pick.lose === place) {
    return settle(pick, { win: frame.count === 2 ? null : pick.win, lose: null });
  }
  const win = pick.win === place ? null : pick.win;
  return settle(pick, { win: other(place, win, frame), lose: place });
}

/** One key for both marks: the first press is the best, the next on another the worst. */
export function press(pick, place, frame, quick) {
  if (frame.reference !== null) return markWorst(pick, place, frame);
  if (frame.count === 2) return pressOfTwo(pick, place, frame, quick);
  if (pick.lose === place) return markWorst(pick, place, frame);
  const wantsWorst = quick && pick.win !== null && pick.win !== place && pick.lose === null;
  return wantsWorst ? markWorst(pick, place, frame) : markBest(pick, place, frame);
}

// "1 2" means best and worst among more candidates. Here too: a 2 that swapped them would reverse
// the answer of everybody who types both. What was chosen or confirmed, the number swaps.
function pressOfTwo(pick, place, frame, quick) {
  if (quick && pick.followed && pick.lose === place) return { ...pick, followed: false };
  return { ...markBest(pick, place, frame), followed: pick.win === null };
}

/** Chooses "all bad" or "all equal" instead of marks; choosing it again takes it back. */
export function markAll(pick, outcome, frame) {
  const { win, lose, followed } = emptyPick(frame);
  const bare = { ...pick, outcome: null, win, lose, followed, reasons: [] };
  return pick.outcome === outcome ? bare : { ...bare, outcome };
}

/** Gives or takes back a reason for the best ("win") or the worst ("lose"). */
export function toggleReason(pick, target, criterion) {
  if (pick[target] === null) return pick;
  const reason = `${target}:${criterion}`;
  const reasons = pick.reasons.includes(reason)
    ? pick.reasons.filter((each) => each !== reason)
    : [...pick.reasons, reason];
  return { ...pick, reasons };
}

/** Sets a rating of 1 to 5; the same again takes it back. */
export function rate(pick, place, rating) {
  return setMark(pick, place, { rating: pick.marks[place]?.rating === rating ? null : rating });
}

/** Raises or lowers a rating by one, from the middle where there is none. */
export function stepRating(pick, place, step) {
  const rating = pick.marks[place]?.rating;
  const next = rating ? Math.min(5, rating + step) : 3;
  return setMark(pick, place, { rating: next < 1 ? null : next });
}

/** Sets a thumb, "up" or "down"; the same again takes it back. */
export function setThumb(pick, place, thumb) {
  return setMark(pick, place, { thumb: pick.marks[place]?.thumb === thumb ? null : thumb });
}

export function addRegion(pick, region) {
  return { ...pick, regions: [...pick.regions, region] };
}

export function removeRegion(pick, index) {
  return { ...pick, regions: pick.regions.filter((_, each) => each !== index) };
}

/** Gives the newest region its criterion; the same again takes it back. */
export function nameRegion(pick, criterion) {
  if (pick.regions.length === 0) return pick;
  const last = pick.regions.at(-1);
  const named = { ...last, criterion: last.criterion === criterion ? null : criterion };
  return { ...pick, regions: [...pick.regions.slice(0, -1), named] };
}

export function isComplete(pick) {
  if (pick.outcome === "picked") return pick.win !== null && pick.lose !== null;
  return pick.outcome !== null;
}

export function isSame(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** The pick as the server takes it; `positionOf[place]` is where the server showed it. */
export function toBody(pick, outcome, positionOf) {
  const picked = outcome === "picked";
  return {
    outcome,
    win_position: picked ? positionOf[pick.win] : null,
    lose_position: picked ? positionOf[pick.lose] : null,
    reasons: (picked ? pick.reasons : []).map((reason) => {
      const [target, criterion] = reason.split(":");
      return { target, criterion };
    }),
    regions: pick.regions.map(({ place, ...box }) => ({ position: positionOf[place], ...box })),
    marks: Object.entries(pick.marks).map(([place, mark]) => ({
      position: positionOf[place],
      ...mark,
    })),
  };
}

/** An answer of the server as a pick. Outcomes that have no state on the page count as none. */
export function fromAnswer(answer, positionOf, frame) {
  const placeOf = (position) => (position === null ? null : positionOf.indexOf(position));
  const kept = ["picked", "all_bad", "all_equal"].includes(answer.outcome);
  const empty = emptyPick(frame);
  return {
    outcome: kept ? answer.outcome : null,
    win: answer.outcome === "picked" ? placeOf(answer.win_position) : empty.win,
    lose: placeOf(answer.lose_position),
    followed: false,
    reasons: answer.reasons.map(({ target, criterion }) => `${target}:${criterion}`),
    regions: answer.regions.map(({ position, ...box }) => ({ place: placeOf(position), ...box })),
    marks: Object.fromEntries(
      answer.marks.map(({ position, ...mark }) => [placeOf(position), mark]),
    ),
  };
}

function setMark(pick, place, change) {
  const mark = { rating: null, thumb: null, ...pick.marks[place], ...change };
  const { [place]: _, ...others } = pick.marks;
  const says = mark.rating !== null || mark.thumb !== null;
  return { ...pick, marks: says ? { ...others, [place]: mark } : others };
}

// Of two candidates the one that is not best is the worst.
function other(place, mark, frame) {
  return frame.count === 2 ? 1 - place : mark;
}

function settle(pick, { win, lose }) {
  const kept = { win: win === pick.win, lose: lose === pick.lose };
  const reasons = pick.reasons.filter((reason) => kept[reason.split(":")[0]]);
  const outcome = win === null && lose === null ? null : "picked";
  return { ...pick, outcome, win, lose, followed: false, reasons };
}
