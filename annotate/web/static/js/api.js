// Talks to the server. A pick that was made is never lost: it lies in localStorage until the
// server has answered for it, and is sent again under the same idempotency key.

export class ApiError extends Error {
  /** `status` is 0 where no answer came. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** True where sending the same again later can succeed. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Asks `/api/path`: GET without a body, else POST, or the `method` given. */
export async function call(path, body, { method = body === undefined ? "GET" : "POST", seconds = 15 } = {}) {
  let reply;
  try {
    reply = await fetch(`/api/${path}`, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "same-origin",
      signal: AbortSignal.timeout(seconds * 1000),
    });
  } catch (error) {
    throw new ApiError(0, String(error));
  }
  const answer = await reply.json().catch(() => null);
  if (!reply.ok) throw new ApiError(reply.status, answer?.error ?? `HTTP ${reply.status}`);
  return answer;
}

/** A fresh idempotency key. `crypto.randomUUID` is missing where the page is served without TLS. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Holds the picks that are on their way, across reloads; a second tab adds its own. */
export class Outbox {
  constructor(user) {
    this.prefix = `winsome.outbox.${user}.`;
  }

  /** The picks that the server has not answered for, in the order in which they were made. */
  get pending() {
    const slots = Object.keys(localStorage).filter((slot) => slot.startsWith(this.prefix));
    const entries = slots.flatMap((slot) => {
      try {
        return [JSON.parse(localStorage.getItem(slot))];
      } catch {
        return []; // not JSON: nothing of ours
      }
    });
    return entries.sort((a, b) => a.at - b.at).map(({ body }) => body);
  }

  put(body) {
    const entry = { at: Date.now(), body };
    localStorage.setItem(this.prefix + body.idempotency_key, JSON.stringify(entry));
  }

  remove(body) {
    localStorage.removeItem(this.prefix + body.idempotency_key);
  }
}
