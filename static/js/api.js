// Swagger UI has a dark look of its own, under a class of <html>: keep it in step with the portal's theme.

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");

function follow() {
  const { theme } = root.dataset;
  root.classList.toggle("dark-mode", theme === "dark" || (theme === "auto" && system.matches));
}

document.addEventListener("themechange", follow);
follow();
