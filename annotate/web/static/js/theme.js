// Light or dark, for our own pages and for the parts that Gradio draws. Each page loads this
// first, by itself.

import { Settings } from "./settings.js";

const system = window.matchMedia("(prefers-color-scheme: dark)");
const settings = new Settings();

function currentTheme() {
  const wanted = settings.get("theme");
  return wanted === "auto" ? (system.matches ? "dark" : "light") : wanted;
}

function apply() {
  document.documentElement.dataset.theme = currentTheme();
  document.body.classList.toggle("dark", currentTheme() === "dark");
}

export function switchTheme() {
  settings.set("theme", currentTheme() === "dark" ? "light" : "dark");
  apply();
}

system.addEventListener("change", apply);
apply();
