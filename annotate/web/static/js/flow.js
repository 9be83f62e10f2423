// One task after another: claims, sends, takes back, keeps the lease, and loads ahead.

import { ApiError, Outbox, call, newKey } from "./api.js";
import { Banner, Connection } from "./connection.js";
import { t } from "./i18n.js";
import { toBody } from "./pick.js";

const HEARTBEAT_MS = 60_000;
const EMPTY_POLL_MS = 20_000;

export class Flow {
  /** `canvas` shows what comes: receive(answer, notice), refreshSubmit(), say(text). */
  constructor(canvas, root, user, clock) {
    this.canvas = canvas;
    this.clock = clock;
    this.outbox = new Outbox(user);
    this.banner = new Banner(root);
    this.connection = new Connection(this.banner, this.outbox, () => canvas.refreshSubmit());
  }

  get busy() {
    return this.connection.busy;
  }

  async start() {
    setInterval(() => this.heartbeat(), HEARTBEAT_MS);
    document.addEventListener("visibilitychange", () => this.heartbeat());
    const [first] = this.outbox.pending;
    await (first ? this.send(first) : this.next());
  }

  async next() {
    clearTimeout(this.pollTimer);
    await this.connection.attempt(
      () => call("claim", {}),
      (answer) => this.canvas.receive(answer),
    );
  }

  /** Looks for new tasks from time to time while there are none. */
  poll() {
    clearTimeout(this.pollTimer);
    this.pollTimer = setTimeout(() => this.next(), EMPTY_POLL_MS);
  }

  async submit(task, pick, outcome, note = "") {
    const body = {
      idempotency_key: newKey(),
      assignment_id: task.assignment_id,
      lease_token: task.lease_token,
      note,
      guideline_version: this.canvas.guidelineVersion,
      ...toBody(pick, outcome, task.positionOf),
      ...this.clock.reading(),
    };
    this.outbox.put(body);
    await this.send(body);
  }

  async send(body) {
    await this.connection.attempt(
      () => call("submit", body),
      async (answer) => {
        this.outbox.remove(body);
        const [waiting] = this.outbox.pending;
        if (waiting) await this.send(waiting);
        else await this.canvas.receive(answer, "status.saved");
      },
      (error) => {
        // The server understood and refused: sending it again cannot help.
        this.outbox.remove(body);
        const text = t("banner.refused", { reason: error.message });
        this.banner.show(text, t("banner.next"), () => this.next());
      },
    );
  }

  async undo() {
    await this.connection.attempt(
      () => call("undo", {}),
      async (answer) => {
        if (answer.task) await this.canvas.receive(answer, "status.undone");
        else this.canvas.say(t("status.nothing_to_undo"));
      },
    );
  }

  async heartbeat() {
    const { task } = this.canvas;
    if (!task || this.busy || document.visibilityState !== "visible") return;
    try {
      await call("heartbeat", {
        assignment_id: task.assignment_id,
        lease_token: task.lease_token,
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) this.connection.askToSignIn();
      // Anything else shows itself, with its remedy, when the pick is sent.
    }
  }
}
