// Requests that survive a bad connection: the page waits, says so, and tries again.

import { ApiError } from "./api.js";
import { t } from "./i18n.js";

const RETRY_MS = [2_000, 5_000, 10_000, 30_000];

/** The bar in the place of the top: what the annotator should know, and the one thing to do about it. */
export class Banner {
  constructor(root) {
    this.bar = root.querySelector(".ws-banner");
    this.text = root.querySelector(".ws-banner-text");
    this.button = root.querySelector(".ws-banner-action");
    this.button.addEventListener("click", () => this.onAction?.());
  }

  show(text, action, onAction) {
    this.text.textContent = text;
    this.button.textContent = action;
    this.onAction = onAction;
    this.bar.hidden = false;
  }

  hide() {
    this.bar.hidden = true;
  }
}

export class Connection {
  /** `outbox` holds the pick on its way; `onBusy` is told when a request begins and ends. */
  constructor(banner, outbox, onBusy) {
    this.banner = banner;
    this.outbox = outbox;
    this.onBusy = onBusy;
    this.busy = false;
    window.addEventListener("online", () => this.retryNow?.());
  }

  /** Runs a request until it is answered, one at a time; `onRefusal` takes a final no. */
  async attempt(request, onAnswer, onRefusal = (error) => this.showError(error)) {
    this.setBusy(true);
    for (let tries = 0; ; tries += 1) {
      let answer;
      try {
        answer = await request();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 401) return this.askToSignIn();
        if (error.isTemporary) {
          await this.waitToRetry(tries);
          continue;
        }
        this.setBusy(false);
        return onRefusal(error);
      }
      this.setBusy(false);
      this.banner.hide();
      return onAnswer(answer);
    }
  }

  setBusy(busy) {
    this.busy = busy;
    this.onBusy();
  }

  waitToRetry(tries) {
    const text = this.outbox.pending.length > 0 ? "banner.unsaved" : "banner.offline";
    const pause = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)];
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.retryNow(), pause);
      this.retryNow = () => {
        clearTimeout(timer);
        this.retryNow = null;
        resolve();
      };
      this.banner.show(t(text), t("banner.retry"), () => this.retryNow?.());
    });
  }

  askToSignIn() {
    const text = this.outbox.pending.length > 0 ? "banner.signed_out_unsaved" : "banner.signed_out";
    this.banner.show(t(text), t("banner.sign_in"), () => location.assign("/login?next=/annotate"));
  }

  showError(error) {
    this.banner.show(error.message, t("banner.reload"), () => location.reload());
  }
}
