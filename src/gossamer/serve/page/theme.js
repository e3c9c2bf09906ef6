// Runs before the page is drawn, so that a chosen theme does not flash up in the other's colors.
try {
  const { theme } = JSON.parse(localStorage.getItem("gossamer-settings")) ?? {};
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // nothing was chosen
}
