// Draw the charts, one after the other. Their colours are variables of the style sheet, so that they follow light, dark and print.
const muted = "var(--muted)";
const text = { labelColor: muted, titleColor: muted, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 500 };
const config = {
  background: null,
  font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
  padding: 2,
  view: { stroke: null },
  axis: { ...text, gridColor: "var(--grid)", domainColor: "var(--line)", tickColor: "var(--line)" },
  legend: { ...text, symbolStrokeWidth: 2 },
  bar: { color: "var(--blue)" },
  area: { color: "var(--blue)" },
  line: { color: "var(--orange)", strokeWidth: 1.8 },
  point: { color: "var(--orange)", filled: true },
  text: { color: "var(--ink)", fontSize: 11 },
  range: { category: Array.from({ length: 9 }, (_, place) => `var(--c${place})`) },
};
const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config };

async function drawAll() {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  let drawn = 0;
  for (const [id, spec] of Object.entries(charts)) {
    try {
      await vegaEmbed(document.getElementById(id), spec, options);
      drawn += 1;
    } catch (error) {
      document.getElementById(id).textContent = `This chart can't be drawn: ${error}`;
      console.error(id, error);
    }
  }
  document.documentElement.dataset.drawn = String(drawn);
}

drawAll();
