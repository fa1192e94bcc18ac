// Switch the theme without reloading. The cookie is what counts: the server reads it and paints the first frame right.

const form = document.querySelector(".theme-switch");

form?.addEventListener("submit", (event) => {
  const theme = event.submitter?.value;
  if (!theme) return;
  event.preventDefault();
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=lax${secure}`;
  document.documentElement.dataset.theme = theme;
  for (const button of form.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.value === theme));
  }
  // Charts paint with colours of their own and listen for this.
  document.dispatchEvent(new CustomEvent("themechange", { detail: { theme } }));
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (document.documentElement.dataset.theme === "auto") document.dispatchEvent(new CustomEvent("themechange"));
});
