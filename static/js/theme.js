// Switch the theme without reloading. The cookie is what counts: the server reads it and paints the first frame right.
// The admin writes its own <html> tag, so there this runs before the first frame, as a plain script; else as a module.
{
  const root = document.documentElement;
  root.dataset.theme ??= document.cookie.match(/(?:^|; )theme=(auto|light|dark)/)?.[1] ?? "auto";
  const announce = () => document.dispatchEvent(new CustomEvent("themechange"));

  document.addEventListener("submit", (event) => {
    const theme = event.submitter?.value;
    if (event.submitter?.name !== "theme" || !["auto", "light", "dark"].includes(theme)) return;
    event.preventDefault();
    const secure = location.protocol === "https:" ? "; secure" : "";
    document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=lax${secure}`;
    root.dataset.theme = theme;
    for (const button of document.querySelectorAll('button[name="theme"]')) {
      button.setAttribute("aria-pressed", String(button.value === theme));
    }
    announce(); // charts paint with colours of their own and listen for this
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (root.dataset.theme === "auto") announce();
  });
}
