// The top bar of the review pages.

import { switchTheme } from "./theme.js";

export async function start(element) {
  element.querySelector(".ws-review-theme").addEventListener("click", switchTheme);
  element.querySelector(".ws-review-logout").addEventListener("click", async () => {
    await fetch("/logout", { method: "POST", credentials: "same-origin" });
    location.assign("/login");
  });
  const reply = await fetch("/api/review");
  element.querySelector(".ws-report").hidden = !(await reply.json()).has_report;
}
