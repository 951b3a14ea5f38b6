// Before anything is drawn: the theme that was chosen on this device, or the system's.
const chosen = localStorage.getItem("lamella-theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
