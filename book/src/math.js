// Formulas are written as on GitHub: $`x^2`$ inside a line, a fenced block named math by itself.
for (const code of document.querySelectorAll("code.language-math")) {
  const place = document.createElement("div");
  katex.render(code.textContent, place, { displayMode: true, throwOnError: false });
  code.closest("pre").replaceWith(place);
}
for (const code of document.querySelectorAll(":not(pre) > code")) {
  const before = code.previousSibling, after = code.nextSibling;
  if (!before?.nodeValue?.endsWith("$") || !after?.nodeValue?.startsWith("$")) continue;
  before.nodeValue = before.nodeValue.slice(0, -1);
  after.nodeValue = after.nodeValue.slice(1);
  const place = document.createElement("span");
  katex.render(code.textContent, place, { throwOnError: false });
  code.replaceWith(place);
}
